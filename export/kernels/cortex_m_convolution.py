"""Convolutions on Cortex-M with the DSP extension, by blocks of output rows.

A block's input rows are widened to int16 once, zero points around them, into scratch memory; the weights of two output
channels are unpacked beside them and used for the block's pixels, two at a time (:mod:`cortex_m_tiles`). So nothing is
copied for each pixel, weights of 8, 4 and 2 bits cost the same in the loop, and requantization takes a multiplication,
a shift and a saturation. With weights of one bit inputs stay bytes, which are added and subtracted, twice as many in
an instruction. One kernel serves all layers of one kind: what differs between them is read from a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels import cortex_m_dot, cortex_m_tiles
from compress.export.kernels.building import HIGH
from compress.export.kernels.code import Placed
from compress.export.kernels.convolutions import UNITS, folded_bias, image, stored_bits
from compress.export.kernels.cortex_m_tables import GEOMETRY, Kind, as_bytes, halves, narrow, words
from compress.export.kernels.cortex_m_tiles import Saturation, Tiles
from compress.export.kernels.cortex_m_weights import LINE_ZEROS, PLAIN, pack, register_words
from compress.export.kernels.cortex_m_writing import kernel
from compress.export.kernels.emitted import Emitted
from compress.export.kernels.fusion import ConvolutionAdd
from compress.export.kernels.isa import Isa
from compress.integer.fixed_point import LARGEST_SHIFT, wrap
from compress.integer.program import Add, Convolution, Op, Requantize, Tensor

PIXELS = 128
"""Output pixels for which weights are unpacked once, at most; more hardly spare anything."""
LINE = 4096
"""Weights of a linear layer from which on a kernel of its own is worth its code."""
LARGEST_HIGH_SHIFT = 54
"""Up to this shift the zero point fits beside the rounding term; see :mod:`cortex_m_tiles`."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a layer's inputs and weights stand in scratch memory.

    Attributes:
        differences: see :class:`Tiles`.
        word: inputs in a word: four bytes, or two int16. A step of the loop takes two words.
        multiple: a pixel's channels are filled up to it; of bytes, so that segments are whole steps.
    """

    differences: bool
    word: int
    multiple: int

    def own(self, channels: int) -> int:
        """Inputs of a pixel, filled up."""
        return -(-channels // self.multiple) * self.multiple

    def steps(self, op: Convolution) -> int:
        """Of a segment: the inputs under a row of the kernel."""
        inputs = int(op.weight.shape[2]) * self.own(op.weight.shape[3])
        return -(-inputs // (2 * self.word))

    def zero(self, zero_point: int) -> int:
        """The zero point as an int16, or as two bytes of one."""
        return (((zero_point + 128) * 0x0101) ^ 0x8000) - 0x8000 if self.differences else zero_point


PAIRS = Form(False, word=2, multiple=2)
BYTES = Form(True, word=4, multiple=8)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's kind, tables and memory.

    Attributes:
        kind: of the kernel.
        table: int32: :data:`GEOMETRY`, with an addition :data:`ADDITION`, then what :attr:`Kind.first_entry` says.
        weights: int32 (pairs * words,).
        scratch: bytes.
        once: no output is computed twice, so that an addition may be done in place.
    """

    kind: Kind
    table: NDArray[np.int32]
    weights: NDArray[np.int32]
    scratch: int
    once: bool


@dataclass(frozen=True)
class Emit:
    """An emitter of convolutions of one group without gaps between their columns, with an addition behind them or not.

    Attributes:
        budgets: scratch memory that an operator may take, in bytes, by its output. It takes what it needs at least
            (:func:`scratch_bytes`) without asking.
    """

    budgets: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
        """The kernel; None for other operators."""
        convolution = _convolution(op)
        if convolution is None or isa.dot != "dsp":
            return None
        ends = [placed[name] for name in (*op.inputs, op.output)]
        if any(place.layout is not None for place in ends) or ends[0].tensor.dtype != "int8":
            return None
        layer = _layer(convolution, ends[0].tensor, ends[-1].tensor, self.budgets.get(op.output, 0), op is convolution)
        return _emitted(op, layer, isa, symbol)


def scratch_bytes(op: Op, tensors: Mapping[str, Tensor]) -> int:
    """The least scratch memory that an operator's kernel takes."""
    convolution = _convolution(op)
    if convolution is None:
        return 0
    return _layer(convolution, tensors[op.inputs[0]], tensors[op.output], 0, op is convolution).scratch


def _convolution(op: Op) -> Convolution | None:
    found = op.convolution if isinstance(op, ConvolutionAdd) else op
    if not isinstance(found, Convolution) or found.groups != 1 or found.dilations[1] != 1:
        return None
    return found


def _emitted(op: Op, layer: Layer, isa: Isa, symbol: str) -> Emitted:
    if isinstance(op, ConvolutionAdd):
        layer = _with_addition(layer, op)
    # The addition's second operand is read just before its place is written.
    shared = (1,) if layer.kind.add and layer.once else ()
    return Emitted(kernel(layer.kind, isa, symbol), (layer.weights, layer.table), layer.scratch, shared)


def fusable(op: ConvolutionAdd) -> bool:
    """Whether :class:`Emit` has a kernel for a convolution with an addition behind it."""
    convolution, how = op.convolution, op.convolution.requantize
    if convolution.groups != 1 or convolution.dilations[1] != 1 or how is None or not high(how, 0):
        return False
    return abs(_constant(op)) + sum(abs(m) for m in op.add.multipliers) * 128 < 1 << 31


def _layer(op: Convolution, source: Tensor, target: Tensor, budget: int, alone: bool) -> Layer:
    (height, width, channels), (out_h, out_w, outputs) = image(source.shape), image(target.shape)
    kernel_h, kernel_w = op.weight.shape[1:3]
    if (kernel_h, kernel_w) == (1, 1) and op.strides == (1, 1) and not any(op.padding):
        out_h, out_w = height, width = _folded(height * width)
    line = alone and out_h * out_w == 1 == kernel_h * kernel_w and op.weight.size >= LINE
    form = BYTES if not line and by_differences(op) else PAIRS
    aligned, own, steps = channels % (2 * form.word) == 0, form.own(channels), form.steps(op)
    weight = _rows(op.weight, form, steps, aligned)
    bits = 1 if form.differences else stored(op, weight)
    unit = 0 if form.differences else UNITS[bits]
    packed = pack(weight, bits)
    unpacked = 0 if line else register_words(packed.shape[1], bits) // (form.word // 2)
    row = max((out_w - 1) * op.strides[1] + kernel_w, op.padding[1] + width) * own // form.word
    span = (kernel_h - 1) * op.dilations[0] + 1
    # Two pixels lie half a row apart where rows are even, else half a block of rows.
    by_rows = out_w % 2 == 1 and out_h % 2 == 0

    def scratch(rows: int) -> int:
        # Behind the last row the last step may read a few numbers that meet weights of zero.
        return int(unpacked + ((rows - 1) * op.strides[0] + span) * row + 2 * steps + (LINE_ZEROS if line else 0)) * 4

    block = min(out_h, 2)
    while block < out_h and block * out_w < PIXELS and scratch(min(block + 2, out_h)) <= budget:
        block = min(block + 2, out_h)
    last = max(outputs - 2, 0)
    starts = np.minimum(np.arange(0, outputs, 2), last)
    chosen = np.stack([starts, np.minimum(starts + 1, outputs - 1)], axis=1)
    short = op.requantize is not None and high(op.requantize, unit)
    tiles = None
    if op.requantize is not None and short and not line:
        limits = saturation(op.requantize.low, op.requantize.high)
        tiles = Tiles(limits, None, form.differences)
    unrolled = cortex_m_dot.unroll(steps) if tiles is None else 1
    turns, entry = cortex_m_tiles.turns(steps) if tiles is not None else (steps // unrolled, 0)
    geometry = {
        "out_rows": out_h, "block": block, "stride": op.strides[0], "top": op.padding[0], "in_rows": height,
        "span": span, "row": row, "left": op.padding[1] * own // form.word,
        "right": row - (op.padding[1] + width) * own // form.word,
        "groups": width * channels // 4 if aligned else width,
        "channels": channels, "zero": form.zero(source.zero_point),
        "pairs": len(starts), "last": last, "second": min(outputs - 1, 1), "words": packed.shape[1],
        "skip": op.dilations[0] * row * 4 - steps * 8, "turns": turns, "end": kernel_h * steps * 4,
        "images": unpacked, "split": int(by_rows), "down": op.strides[0] * row,
        "apart": 0 if by_rows else out_w // 2 * op.strides[1] * own // form.word,
        "columns": out_w if by_rows else -(-out_w // 2), "step": op.strides[1] * own // form.word,
        "out_row": out_w * outputs, "out_apart": 0 if by_rows else out_w // 2 * outputs, "outputs": outputs,
        "out_zero": 0, "low": 0, "high": 0, "entry": entry,
        "blocks": -(-out_h // block),
    }  # fmt: skip
    geometry["x_row"] = (geometry["down"] - geometry["columns"] * geometry["step"]) * 4
    geometry["y_row"] = geometry["out_row"] - geometry["columns"] * outputs
    start = folded_bias(op, source.zero_point).astype(np.int64) << unit
    if form.differences:
        start = _start_of_differences(op, source.zero_point)
    bias = wrap(start).astype(np.int32)[chosen]
    if op.requantize is None:
        assert op.scale is not None
        # Taking 2^unit out of the scale is exact.
        scale = (np.broadcast_to(op.scale, outputs) / np.float32(1 << unit)).astype(np.float32)
        columns, tail = [bias, scale.view(np.int32)[chosen]], np.zeros(0, np.int32)
    else:
        how = op.requantize
        geometry |= {"out_zero": how.zero_point, "low": how.low, "high": how.high}
        multiplier = np.broadcast_to(how.multiplier.ravel(), outputs)[chosen]
        shift = (np.broadcast_to(how.shift.ravel(), outputs) + unit)[chosen]
        columns, tail = [bias, multiplier], as_bytes(shift.astype(np.int64))
    numbers = [geometry[name] for name in GEOMETRY]
    kind = Kind(bits, not narrow(numbers), tiles, unrolled, target.dtype == "float32", line, short)
    entries = np.concatenate(columns, axis=1).astype(np.int32).reshape(-1)
    table = np.concatenate([words(numbers) if kind.wide else halves(numbers), entries, tail])
    once = outputs % 2 == 0 and (by_rows or out_w % 2 == 0)
    return Layer(kind, table, packed.reshape(-1), scratch(block), once)


def _folded(pixels: int) -> tuple[int, int]:
    """Rows and columns for the pixels of a 1x1 convolution, which may lie in any order."""
    if pixels <= 2 * PIXELS:
        return 1, pixels
    columns = max(each for each in range(1, 2 * PIXELS + 1) if pixels % each == 0)
    return (pixels // columns, columns) if columns >= 8 else (1, pixels)


def by_differences(op: Convolution) -> bool:
    """Whether a convolution's weights of one bit are added and subtracted: the loop takes no more steps than with
    products, and sums need no unit."""
    return (
        op.weight_bits == 1
        and op.requantize is not None
        and high(op.requantize, 0)
        and BYTES.steps(op) <= PAIRS.steps(op)
    )


def _start_of_differences(op: Convolution, zero_point: int) -> NDArray[np.int64]:
    """What sums of absolute differences start with.

    With n weights of -1 among N, and inputs u = x + 128 against m = 0 or 255: ``sum w (x - z) = sum |u - m| - 255 n -
    (z + 128) (N - 2 n)``. What fills pixels up is the zero point, and its weights are 1.
    """
    outputs, *kernel, channels = op.weight.shape
    count = int(np.prod(kernel)) * BYTES.own(channels)
    negative = (op.weight.reshape(outputs, -1) < 0).sum(axis=1)
    start: NDArray[np.int64] = op.bias - 255 * negative - (zero_point + 128) * (count - 2 * negative)
    return start


def _rows(weight: NDArray[np.int8], form: Form, steps: int, aligned: bool) -> NDArray[np.int8]:
    """(pairs, KH * steps * 2 * step): for each step of a segment the weights of one channel, then of the other."""
    outputs, rows, columns, channels = weight.shape
    own, step, fill = form.own(channels), 2 * form.word, int(form.differences)
    wide = np.full((outputs, rows, steps * step), fill, np.int8)
    padded = np.pad(weight, ((0, 0), (0, 0), (0, 0), (0, own - channels)), constant_values=fill)
    wide[:, :, : columns * own] = padded.reshape(outputs, rows, columns * own)
    each = wide.reshape(outputs, rows * steps, step)
    if not (aligned or form.differences):
        each = each[..., list(PLAIN)]
    starts = np.minimum(np.arange(0, outputs, 2), max(outputs - 2, 0))
    both = np.stack([each[starts], each[np.minimum(starts + 1, outputs - 1)]], axis=2)
    return np.ascontiguousarray(both.reshape(len(starts), -1))


def stored(op: Convolution, rows: NDArray[np.int8]) -> int:
    """The width in which weights are stored; ``rows`` are all of them, with the zeros that fill steps up."""
    weight = op.weight.reshape(len(op.weight), -1)
    weight = weight if rows.all() else np.pad(weight, ((0, 0), (0, 1)))
    bits = stored_bits(op.weight_bits, weight, 255, op.bias)
    if op.requantize is not None and int(op.requantize.shift.max()) + UNITS[bits] > LARGEST_SHIFT:
        return 8
    return bits


def high(how: Requantize, unit: int) -> bool:
    """Whether the products' high words are all that is needed."""
    return int(how.shift.min()) + unit >= HIGH and int(how.shift.max()) + UNITS[1] <= LARGEST_HIGH_SHIFT


def saturation(low: int, high: int) -> Saturation:
    """How results are clamped to [low, high]."""
    return {(-128, 127): "int8", (0, 127): "positive"}.get((low, high), "limits")  # type: ignore[return-value]


def _constant(op: ConvolutionAdd) -> int:
    """What :func:`_with_addition` adds: rounding, both zero points of the operands, and the result's."""
    add: Add = op.add
    taken = sum(z * m for z, m in zip(op.zero_points, add.multipliers, strict=True))
    return (1 << (add.shift - 1)) - taken + (add.zero_point << add.shift)


def _with_addition(layer: Layer, op: ConvolutionAdd) -> Layer:
    """The layer with the words of :data:`ADDITION` in front of its pairs."""
    add, own, tiles = op.add, op.own, layer.kind.tiles
    assert tiles is not None
    numbers = [add.multipliers[own], add.multipliers[1 - own], _constant(op), add.shift, add.low, add.high]
    kind = replace(layer.kind, tiles=replace(tiles, addition=saturation(add.low, add.high)))
    return replace(layer, kind=kind, table=np.insert(layer.table, kind.head, words(numbers)))


__all__ = ["Emit", "fusable", "high", "image", "saturation", "scratch_bytes", "stored"]
