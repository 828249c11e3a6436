"""Depthwise convolutions on Cortex-M with the DSP extension, by blocks of output rows and groups of four channels.

Four channels of a block's input rows are widened to int16, zero points around them, and used for all of the block's
outputs in these channels (:mod:`cortex_m_channels`). The last group overlaps where channels aren't a multiple of four.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels import cortex_m_channels
from compress.export.kernels.building import function
from compress.export.kernels.code import Kernel, Placed
from compress.export.kernels.convolutions import UNITS, folded_bias, image
from compress.export.kernels.cortex_m_assembly import imported
from compress.export.kernels.cortex_m_channels import WIDEN_GROUP, Channels
from compress.export.kernels.cortex_m_convolution import high, saturation, stored
from compress.export.kernels.cortex_m_weights import FILL, pack, register_words, widen
from compress.export.kernels.emitted import Emitted
from compress.export.kernels.isa import Isa
from compress.export.kernels.vectors import Expr, let
from compress.integer.fixed_point import wrap
from compress.integer.program import Convolution, Op, Tensor

GEOMETRY = (
    "out_rows", "block", "stride", "top", "in_rows", "span", "row", "left", "width", "right", "channels", "zero",
    "groups", "words", "end", "images", "dilated", "down", "columns", "last_step", "y_last", "out_row", "out_zero",
    "low", "high", "blocks",
)  # fmt: skip
"""Words in front of a layer's table, as in :mod:`cortex_m_tables`; then for each group of channels four biases, four
multipliers and a word of four shifts."""
ENTRY = 9
ROWS = 8
"""Output rows at a time, at least."""
MOST_ROWS = 32


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kernel is compiled for: bits of stored weights, and the inner loops."""

    bits: int
    channels: Channels


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's kind, table, weights (int32, a row a group) and scratch memory in bytes."""

    kind: Kind
    table: NDArray[np.int32]
    weights: NDArray[np.int32]
    scratch: int


@dataclass(frozen=True)
class Emit:
    """An emitter of depthwise convolutions of one output a channel, at least four channels and two columns.

    Attributes:
        budgets: as those of :class:`compress.export.kernels.cortex_m_convolution.Emit`.
    """

    budgets: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
        """The kernel; None for other operators."""
        if isa.dot != "dsp" or not isinstance(op, Convolution):
            return None
        source, target = placed[op.inputs[0]], placed[op.output]
        if source.layout is not None or target.layout is not None or source.tensor.dtype != "int8":
            return None
        layer = _layer(op, source.tensor, target.tensor, self.budgets.get(op.output, 0))
        if layer is None:
            return None
        return Emitted(_kernel(layer.kind, isa, symbol), (layer.weights.reshape(-1), layer.table), layer.scratch)


def scratch_bytes(op: Op, tensors: Mapping[str, Tensor]) -> int:
    """The least scratch memory that an operator's kernel takes."""
    if not isinstance(op, Convolution):
        return 0
    layer = _layer(op, tensors[op.inputs[0]], tensors[op.output], 0)
    return 0 if layer is None else layer.scratch


def _layer(op: Convolution, source: Tensor, target: Tensor, budget: int) -> Layer | None:
    (height, width, channels), (out_h, out_w, outputs) = image(source.shape), image(target.shape)
    how = op.requantize
    if not op.depthwise or outputs != channels or channels < 4 or out_w < 2 or how is None:
        return None
    starts = np.minimum(np.arange(0, channels, 4), channels - 4)
    taps = op.weight.reshape(channels, -1)
    rows = np.ascontiguousarray(np.stack([taps[start : start + 4].T.reshape(-1) for start in starts]))
    bits = stored(op, rows)
    unit = UNITS[bits]
    if not high(how, unit):
        return None
    packed = pack(rows, bits)
    unpacked = register_words(packed.shape[1], bits)
    kernel_h, kernel_w = op.weight.shape[1:3]
    reach = (out_w - 1) * op.strides[1] + (kernel_w - 1) * op.dilations[1] + 1
    columns = max(reach, op.padding[1] + width)
    row, span = columns * 2, (kernel_h - 1) * op.dilations[0] + 1

    def scratch(block: int) -> int:
        return int(unpacked + ((block - 1) * op.strides[0] + span) * row) * 4

    block = min(out_h, ROWS)
    while block < min(out_h, MOST_ROWS) and scratch(block + 1) <= budget:
        block += 1
    pairs = -(-out_w // 2)
    last = 2 - out_w % 2  # from the last pair but one to the last one, in pixels
    geometry = {
        "out_rows": out_h, "block": block, "stride": op.strides[0], "top": op.padding[0], "in_rows": height,
        "span": span, "row": row, "left": op.padding[1] * 2, "width": width,
        "right": row - (op.padding[1] + width) * 2, "channels": channels,
        "zero": (source.zero_point & 0xFFFF) * 0x10001, "groups": len(starts), "words": packed.shape[1],
        "end": kernel_h * kernel_w * 2, "images": unpacked, "dilated": op.dilations[0] * row * 4,
        "down": op.strides[0] * row * 4, "columns": pairs, "last_step": last * op.strides[1] * 8,
        "y_last": last * channels, "out_row": out_w * channels, "out_zero": how.zero_point, "low": how.low,
        "high": how.high, "blocks": -(-out_h // block),
    }  # fmt: skip
    chosen = starts[:, None] + np.arange(4)
    bias = wrap(folded_bias(op, source.zero_point).astype(np.int64) << unit)[chosen]
    multiplier = np.broadcast_to(how.multiplier.ravel(), channels).astype(np.int64)[chosen]
    shift = (np.broadcast_to(how.shift.ravel(), channels).astype(np.int64) + unit)[chosen]
    shifts = (shift << np.array([0, 8, 16, 24])).sum(axis=1, keepdims=True)
    entries = np.concatenate([bias, multiplier, shifts], axis=1).reshape(-1)
    head = np.array([geometry[name] for name in GEOMETRY], np.int64)
    table = wrap(np.concatenate([head, entries])).astype(np.int32)
    kind = Kind(bits, Channels(kernel_w, op.strides[1], op.dilations[1], saturation(how.low, how.high)))
    return Layer(kind, table, packed, scratch(block))


def _kernel(kind: Kind, isa: Isa, symbol: str) -> Kernel:
    from tvm.tirx.script import builder as T

    huge = 1 << 28
    pointers = [("x", "int8"), ("y", "int8"), ("w", "int32"), ("table", "int32"), ("scratch", "int32")]
    functions = [FILL, WIDEN_GROUP, widen(kind.bits), cortex_m_channels.function(kind.channels)]
    with function(symbol, [(name, dtype, huge) for name, dtype in pointers]) as body:
        x, y, w, table, scratch = body.buffers

        def g(name: str) -> Expr:
            return table[GEOMETRY.index(name)]

        with imported(isa.triple, functions), T.serial(g("blocks")) as block:
            first = let(block * g("block"))
            rows = let(T.min(g("block"), g("out_rows") - first))
            with T.serial(g("groups")) as group:
                channel = let(T.min(group * 4, g("channels") - 4))
                packed = T.address_of(w[group * g("words")])
                widen(kind.bits)(T.address_of(scratch[0]), packed, g("words"))
                with T.serial((rows - 1) * g("stride") + g("span")) as r:
                    _widen_row(g, x, scratch, first * g("stride") - g("top") + r, g("images") + r * g("row"), channel)
                _outputs(kind, g, table, scratch, T.address_of(y[first * g("out_row") + channel]), rows, group)
    return body.done


def _widen_row(g: Any, x: Any, scratch: Any, y: Expr, place: Expr, channel: Expr) -> None:
    from tvm.tirx.script import builder as T

    y, place = let(y), let(place)
    with T.If(T.And(y >= 0, y < g("in_rows"))):
        with T.Then():
            FILL(T.address_of(scratch[place]), g("zero"), g("left"))
            source = T.address_of(x[y * g("width") * g("channels") + channel])
            WIDEN_GROUP(T.address_of(scratch[place + g("left")]), source, g("width"), g("channels"))
            FILL(T.address_of(scratch[place + g("row") - g("right")]), g("zero"), g("right"))
        with T.Else():
            FILL(T.address_of(scratch[place]), g("zero"), g("row"))


def _outputs(kind: Kind, g: Any, table: Any, scratch: Any, out: Expr, rows: Expr, group: Expr) -> None:
    from tvm import tirx
    from tvm.tirx.script import builder as T

    start = let(len(GEOMETRY) + group * ENTRY)
    shifts = let(table[start + 8])
    one = tirx.const(1, "int32")
    x = T.address_of(scratch[g("images")])
    values = {
        "x": x, "y": out, "row": g("dilated"), "end": T.address_of(scratch[g("end")]),
        "weights": T.address_of(scratch[0]), "channels": g("channels"), "left": g("columns"), "columns": g("columns"),
        "rows": rows, "x_start": x, "y_start": out, "down": g("down"), "out_row": g("out_row"),
        "step": tirx.const(2 * kind.channels.stride * 8, "int32"), "y_step": g("channels") * 2,
        "last_step": g("last_step"), "y_last": g("y_last"), "low": g("low"), "high": g("high"),
    }  # fmt: skip
    for i in range(4):
        shift = let(((shifts >> (8 * i)) & 255) - 32)
        values |= {
            f"bias{i}": table[start + i],
            f"m{i}": table[start + 4 + i],
            f"half{i}": (one << (shift - 1)) + (g("out_zero") << shift),
            f"shift{i}": shift,
        }
    cortex_m_channels.function(kind.channels)(*(values[name] for name in cortex_m_channels.ARGUMENTS))


__all__ = ["Emit", "scratch_bytes"]
