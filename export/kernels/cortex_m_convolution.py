"""Convolutions on Cortex-M with the DSP extension, by blocks of output rows.

A block's input rows are widened to int16 once, zero points around them, into scratch memory; the weights of two output
channels are unpacked beside them and used for the block's pixels, two at a time (:mod:`cortex_m_dot`). So nothing is
copied for each pixel, weights of any width cost the same in the loop, and requantization takes a multiplication, a
shift and a saturation. One kernel serves all layers of one kind: what differs between them is read from a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels import cortex_m_dot
from compress.export.kernels.building import HIGH, clamp
from compress.export.kernels.code import Kernel, Placed
from compress.export.kernels.cortex_m_weights import PLAIN, UNITS, pack, register_words, unpacked, widened
from compress.export.kernels.dot import stored_bits
from compress.export.kernels.emitted import Emitted
from compress.export.kernels.fusion import ConvolutionAdd
from compress.export.kernels.isa import Isa
from compress.export.kernels.vectors import Expr, intrinsic, let, load, view
from compress.integer.fixed_point import wrap
from compress.integer.program import Convolution, Op, Requantize, Tensor

PIXELS = 64
"""Output pixels for which weights are unpacked once, at least, where the image and the scratch memory allow it."""
SCRATCH_BYTES = 24 * 1024
"""Scratch memory that more than two rows at once may take."""
LARGEST_SHIFT = 54
"""Up to this shift the zero point fits beside the rounding term; see :func:`_requantized`."""
GEOMETRY = (
    "out_rows", "block", "stride", "top", "in_rows", "span", "row", "left", "right", "groups", "in_row", "zero",
    "pairs", "last", "second", "words", "skip", "turns", "end", "images", "split", "down", "pair", "across", "step",
    "out_row", "out_pair", "channels", "out_zero", "low", "high",
)  # fmt: skip
"""Words in front of a layer's table, see :class:`Layer`."""
ADDITION = (
    "add_own", "add_other", "add_constant", "add_shift", "add_zero", "add_low", "add_high",
)  # fmt: skip
"""Words behind them where an addition is fused."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kernel is compiled for.

    Attributes:
        bits: of stored weights.
        unroll: of the inner loop.
        aligned: channels are a multiple of four.
        odd: channels are odd; a pixel is widened to one more.
        high: only the products' high words are needed.
        clamped: to less than the output's type.
        output: its type.
        add: an addition follows; ``add_clamped`` as ``clamped``.
    """

    bits: int
    unroll: int
    aligned: bool
    odd: bool
    high: bool
    clamped: bool
    output: str
    add: bool
    add_clamped: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's kind, tables and memory.

    Attributes:
        kind: of the kernel.
        table: int32: :data:`GEOMETRY`, with an addition :data:`ADDITION`, then for each pair of output channels two biases, two multipliers, two shifts
            (or, where the output is float32, the bits of two scales).
        weights: int32 (pairs * words,).
        scratch: bytes.
        once: no output is computed twice, so that an addition may be done in place.
    """

    kind: Kind
    table: NDArray[np.int32]
    weights: NDArray[np.int32]
    scratch: int
    once: bool


def emit(op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
    """The kernel of a convolution of one group without gaps between its columns, with an addition behind it or not;
    None for others."""
    convolution = op.convolution if isinstance(op, ConvolutionAdd) else op
    if not isinstance(convolution, Convolution) or isa.dot != "dsp":
        return None
    if convolution.groups != 1 or convolution.dilations[1] != 1:
        return None
    ends = [placed[name] for name in (*op.inputs, op.output)]
    if any(place.layout is not None for place in ends) or ends[0].tensor.dtype != "int8":
        return None
    layer = _layer(convolution, ends[0].tensor, ends[-1].tensor)
    if isinstance(op, ConvolutionAdd):
        layer = _with_addition(layer, op)
    kernel = _kernel(layer.kind, isa, symbol)
    # The second input of a fused addition is read just before its place is written.
    shared = (1,) if layer.kind.add and layer.once else ()
    return Emitted(kernel, (layer.weights, layer.table), layer.scratch, shared)


def image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(rows, columns, channels) of an image, a sequence or a vector."""
    return (1,) * (3 - len(shape)) + shape  # type: ignore[return-value]  # at most three axes


def _layer(op: Convolution, source: Tensor, target: Tensor) -> Layer:
    (height, width, channels), (out_h, out_w, outputs) = image(source.shape), image(target.shape)
    kernel_h, kernel_w = op.weight.shape[1:3]
    if (kernel_h, kernel_w) == (1, 1) and op.strides == (1, 1) and not any(op.padding):
        # A 1x1 convolution has no rows. Blocks want some.
        out_h, out_w = height, width = _folded(height * width)
    aligned = channels % 4 == 0
    own = channels + channels % 2
    steps = -(-kernel_w * own // 4)
    weight = _rows(op.weight, own, steps, aligned)
    bits = _bits(op, weight, channels)
    unrolled = cortex_m_dot.unroll(steps)
    columns = max((out_w - 1) * op.strides[1] + kernel_w, op.padding[1] + width)
    row = columns * own // 2
    span = (kernel_h - 1) * op.dilations[0] + 1
    # Two pixels of one row where their number is even, else of two rows.
    by_rows = out_w % 2 == 1 and out_h % 2 == 0
    end = kernel_h * steps * 4
    words = weight.shape[1] // 4
    packed = pack(weight, bits)
    unpacked_words = register_words(packed.shape[1], bits)

    def scratch(rows: int) -> int:
        # Behind the last row the last step may read a few numbers that meet weights of zero.
        return (unpacked_words + ((rows - 1) * op.strides[0] + span) * row + 2 * steps) * 4

    block = min(out_h, 2)
    while block < out_h and block * out_w < PIXELS and scratch(min(block + 2, out_h)) <= SCRATCH_BYTES:
        block = min(block + 2, out_h)
    unit = UNITS[bits]
    zero = source.zero_point
    correction = op.weight.astype(np.int64).reshape(outputs, -1).sum(axis=1) * zero
    bias = wrap((op.bias.astype(np.int64) - correction) << unit).astype(np.int32)
    last = max(outputs - 2, 0)
    starts = np.minimum(np.arange(0, outputs, 2), last)
    chosen = np.stack([starts, np.minimum(starts + 1, outputs - 1)], axis=1)
    requantize = op.requantize
    geometry = {
        "out_rows": out_h, "block": block, "stride": op.strides[0], "top": op.padding[0], "in_rows": height,
        "span": span, "row": row, "left": op.padding[1] * own // 2,
        "right": row - (op.padding[1] + width) * own // 2,
        "groups": width * channels // 4 if aligned else width,
        "in_row": width * channels, "zero": (zero & 0xFFFF) * 0x10001,
        "pairs": len(starts), "last": last, "second": min(outputs - 1, 1), "words": packed.shape[1],
        "skip": op.dilations[0] * row * 4 - steps * 8, "turns": steps // unrolled, "end": end,
        "images": unpacked_words, "split": 2 if by_rows else 1,
        "down": op.strides[0] * row, "pair": 0 if by_rows else out_w // 2 * op.strides[1] * own // 2,
        "across": out_w if by_rows else -(-out_w // 2), "step": op.strides[1] * own // 2,
        "out_row": out_w * outputs, "out_pair": 0 if by_rows else out_w // 2 * outputs, "channels": outputs,
        "out_zero": 0, "low": 0, "high": 0,
    }  # fmt: skip
    assert words * 2 <= unpacked_words
    kind = Kind(bits, unrolled, aligned, own != channels, True, False, target.dtype, False, False)
    if requantize is None:
        assert op.scale is not None
        # float32(acc) is the same with 2^unit taken out of the scale: a power of two.
        scale = (np.broadcast_to(op.scale, outputs) / np.float32(1 << unit)).astype(np.float32)
        pairs = np.concatenate([bias[chosen], scale.view(np.int32)[chosen]], axis=1)
    else:
        kind, pairs = _quantized(kind, requantize, outputs, unit, bias, chosen)
        geometry |= {"out_zero": requantize.zero_point, "low": requantize.low, "high": requantize.high}
    head = [geometry[name] for name in GEOMETRY]
    table = np.concatenate([wrap(np.array(head, np.int64)).astype(np.int32), pairs.reshape(-1)])
    once = outputs % 2 == 0 and (by_rows or out_w % 2 == 0)
    return Layer(kind, table, packed[: len(starts)].reshape(-1), scratch(block), once)


def _folded(pixels: int) -> tuple[int, int]:
    """Rows and columns for pixels in any order."""
    columns = next(each for each in range(min(pixels, 2 * PIXELS), 0, -1) if pixels % each == 0)
    if columns * 8 < pixels and pixels < 2 * PIXELS:
        return 1, pixels
    return pixels // columns, columns


def _rows(weight: NDArray[np.int8], own: int, steps: int, aligned: bool) -> NDArray[np.int8]:
    """(pairs, KH * steps * 8): for each step of a segment four weights of one channel, then of the other."""
    outputs, rows, columns, channels = weight.shape
    wide = np.zeros((outputs, rows, steps * 4), np.int8)
    padded = np.pad(weight, ((0, 0), (0, 0), (0, 0), (0, own - channels)))
    wide[:, :, : columns * own] = padded.reshape(outputs, rows, columns * own)
    fours = wide.reshape(outputs, rows * steps, 4)
    if not aligned:
        fours = fours[..., list(PLAIN)]
    last = max(outputs - 2, 0)
    starts = np.minimum(np.arange(0, outputs, 2), last)
    both = np.stack([fours[starts], fours[np.minimum(starts + 1, outputs - 1)]], axis=2)
    return np.ascontiguousarray(both.reshape(len(starts), -1))


def _bits(op: Convolution, rows: NDArray[np.int8], channels: int) -> int:
    """The width in which weights are stored: the least that holds them without a sum that could overflow."""
    bits = stored_bits(op.weight_bits)
    if bits == 1 and not rows.all():
        bits = 2  # zeros between the rows
    sums = np.abs(op.weight.astype(np.int64)).reshape(len(op.weight), -1).sum(axis=1) * 255
    large = int((sums + np.abs(op.bias.astype(np.int64))).max()) >= 1 << (31 - UNITS[bits])
    if large or (op.requantize is not None and int(op.requantize.shift.max()) > LARGEST_SHIFT):
        return 8
    return bits


def _quantized(
    kind: Kind, how: Requantize, outputs: int, unit: int, bias: NDArray[np.int32], chosen: NDArray[np.int64]
) -> tuple[Kind, NDArray[np.int32]]:
    """The kind, and the table of pairs."""
    multiplier = np.broadcast_to(how.multiplier.ravel(), outputs).astype(np.int32)
    shift = np.broadcast_to(how.shift.ravel(), outputs).astype(np.int32) + unit
    high = bool((shift >= HIGH).all() and (shift <= LARGEST_SHIFT).all())
    clamped = (how.low, how.high) != (-128, 127)
    pairs = np.concatenate([bias[chosen], multiplier[chosen], shift[chosen]], axis=1)
    return replace(kind, high=high, clamped=clamped), pairs.astype(np.int32)


def _with_addition(layer: Layer, op: ConvolutionAdd) -> Layer:
    """The layer with the words of :data:`ADDITION` in front of its pairs."""
    add, own = op.add, op.own
    constant = (1 << (add.shift - 1)) - sum(z * m for z, m in zip(op.zero_points, add.multipliers, strict=True))
    words = [add.multipliers[own], add.multipliers[1 - own], constant, add.shift, add.zero_point, add.low, add.high]
    kind = replace(layer.kind, add=True, add_clamped=(add.low, add.high) != (-128, 127))
    table = np.insert(layer.table, len(GEOMETRY), wrap(np.array(words, np.int64)).astype(np.int32))
    return replace(layer, kind=kind, table=table)


def _kernel(kind: Kind, isa: Isa, symbol: str) -> Kernel:
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script import builder as T

    huge = 1 << 28
    with IRBuilder() as ib:
        with T.prim_func(s_tir=True):
            T.func_name(symbol)
            # The addition's other operand may lie where the output does.
            T.func_attr({"global_symbol": symbol, "tirx.noalias": not kind.add})
            names = [("x", "int8"), *([("other", "int8")] if kind.add else []), ("y", kind.output)]
            names += [("w", "int32"), ("table", "int32"), ("scratch", "int32")]
            data = {name: T.arg(name, T.ptr(dtype)) for name, dtype in names}
            buffers = {name: T.decl_buffer((huge,), dtype, data=data[name]) for name, dtype in names}
            with cortex_m_dot.imported(isa.triple, kind.unroll):
                _Writer(kind, buffers).write()
        return Kernel(symbol, ib.get())


class _Writer:
    """Writes the statements of a kernel."""

    def __init__(self, kind: Kind, buffers: Mapping[str, Any]) -> None:
        self.kind, self.buffers = kind, buffers
        self.scratch, self.table = buffers["scratch"], buffers["table"]

    def geometry(self, name: str) -> Expr:
        return self.table[(GEOMETRY + ADDITION).index(name)]

    def write(self) -> None:
        from tvm.tirx.script import builder as T

        g = self.geometry
        blocks = (g("out_rows") + g("block") - 1) // g("block")
        with T.serial(blocks) as b:
            first = let(b * g("block"))
            rows = let(T.min(g("block"), g("out_rows") - first))
            self._widen_rows(first, rows)
            with T.serial(g("pairs")) as pair:
                self._unpack(pair)
                self._pixels(first, rows, pair)

    def _fill(self, at: Expr, count: Expr) -> None:
        from tvm.tirx.script import builder as T

        with T.serial(count) as i:
            T.buffer_store(self.scratch, self.geometry("zero"), [at + i])

    def _widen_rows(self, first: Expr, rows: Expr) -> None:
        from tvm.tirx.script import builder as T

        g = self.geometry
        with T.serial((rows - 1) * g("stride") + g("span")) as r:
            y = let(first * g("stride") - g("top") + r)
            at = let(g("images") + r * g("row"))
            with T.If(T.And(y >= 0, y < g("in_rows"))):
                with T.Then():
                    self._fill(at, g("left"))
                    start = let(at + g("left"))
                    if self.kind.aligned:
                        self._widen_aligned(let(y * g("in_row")), start)
                        behind = let(start + g("groups") * 2)
                    else:
                        behind = self._widen_any(let(y * g("in_row")), start)
                    self._fill(behind, g("right"))
                with T.Else():
                    self._fill(at, g("row"))

    def _widen_aligned(self, source: Expr, target: Expr) -> None:
        from tvm.tirx.script import builder as T

        with T.serial(self.geometry("groups")) as i:
            word = let(view(load(self.buffers["x"], source + i * 4, 4), "int32"))
            for half, value in enumerate(widened(word)):
                T.buffer_store(self.scratch, value, [target + i * 2 + half])

    def _widen_any(self, source: Expr, target: Expr) -> Expr:
        """Pixel by pixel, two channels a word, in their order."""
        from tvm.tirx.script import builder as T

        x, channels = self.buffers["x"], let(self.geometry("in_row") // self.geometry("groups"))
        words = let((channels + 1) // 2)
        whole = let(channels // 2)
        with T.serial(self.geometry("groups")) as pixel:
            here, there = let(source + pixel * channels), let(target + pixel * words)
            with T.serial(whole) as i:
                low, top = (T.cast(x[here + i * 2 + k], "int32") for k in (0, 1))
                T.buffer_store(self.scratch, (low & 0xFFFF) | (top << 16), [there + i])
            if self.kind.odd:
                T.buffer_store(self.scratch, T.cast(x[here + channels - 1], "int32") & 0xFFFF, [there + whole])
        return let(target + self.geometry("groups") * words)

    def _unpack(self, pair: Expr) -> None:
        from tvm.tirx.script import builder as T

        count, bits = self.geometry("words"), self.kind.bits
        start = let(pair * count)
        fields = 8 // bits
        with T.serial(count) as i:
            word = let(self.buffers["w"][start + i])
            for field, value in enumerate(unpacked(word, bits)):
                for half, pairs in enumerate(widened(value)):
                    T.buffer_store(self.scratch, pairs, [i * (2 * fields) + field * 2 + half])

    def _pixels(self, first: Expr, rows: Expr, pair: Expr) -> None:
        from tvm.tirx.script import builder as T

        g, floats = self.geometry, self.kind.output == "float32"
        size = 4 if floats else 6
        entry = let(len(GEOMETRY) + (len(ADDITION) if self.kind.add else 0) + pair * size)
        numbers = [let(self.table[entry + i]) for i in range(size)]
        channel = let(T.min(pair * 2, g("last")))
        # Both pixels lie in one row, or half of the block's rows apart.
        turns = let(rows // g("split"))
        apart = let(T.Select(g("split") == 2, turns * g("down"), g("pair")))
        out_apart = let(T.Select(g("split") == 2, turns * g("out_row"), g("out_pair")))
        scales = numbers[2:] if floats else self._scales(numbers[2:])
        skip, loops, end, second = let(g("skip")), let(g("turns")), let(g("end")), let(g("second"))
        stop = T.address_of(self.scratch[end])
        with T.serial(turns) as row, T.serial(g("across")) as column:
            at = let(g("images") + row * g("down") + column * g("step"))
            out = let((first + row) * g("out_row") + column * g("channels") + channel)
            sums = T.alloc_buffer((4,), "int32", scope="local")
            for i in range(4):
                T.buffer_store(sums, numbers[i % 2], [i])
            addresses = (T.address_of(self.scratch[at]), T.address_of(self.scratch[at + apart]))
            start = T.address_of(self.scratch[0])
            T.evaluate(cortex_m_dot.call(self.kind.unroll, sums.data, *addresses, start, skip, loops, stop))
            places = [out, out + second, out + out_apart, out + out_apart + second]
            self._store([sums[i] for i in range(4)], places, scales)

    def _scales(self, numbers: list[Expr]) -> list[Expr]:
        """Two multipliers, two rounding terms (with the zero point, where high words will do), two shifts."""
        from tvm import tirx

        m, s = numbers[:2], numbers[2:]
        one, zero = tirx.const(1, "int32"), self.geometry("out_zero")
        if not self.kind.high:
            return [*m, *s, *s]
        shifts = [let(each - 32) for each in s]
        return [*m, *(let((one << (each - 1)) + (zero << each)) for each in shifts), *shifts]

    def _store(self, sums: list[Expr], places: list[Expr], scales: list[Expr]) -> None:
        from tvm.tirx.script import builder as T

        others = [let(T.cast(self.buffers["other"][place], "int32")) for place in places] if self.kind.add else []
        for i, (value, place) in enumerate(zip(sums, places, strict=True)):
            if self.kind.output == "float32":
                result = T.cast(value, "float32") * view(scales[i % 2], "float32")
            else:
                result = self._requantized(value, *(scales[j + i % 2] for j in (0, 2, 4)))
                if self.kind.add:
                    result = self._added(result, others[i])
                result = T.cast(result, "int8")
            T.buffer_store(self.buffers["y"], result, [place])

    def _requantized(self, acc: Expr, multiplier: Expr, half: Expr, shift: Expr) -> Expr:
        """With ``acc * M = 2^32 h + l``: ``(h + 2^(s-33) + (zero << (s-32))) >> (s-32)``, one ``smmla`` and a shift.

        The zero point moves behind the shift unchanged, since its lower bits are zero; |h| <= 2^30, the rounding term
        is at most 2^21 and the zero point's at most 2^29 for shifts of up to 54, so nothing overflows.
        """
        from tvm import tirx
        from tvm.tirx.script import builder as T

        g = self.geometry
        product = T.cast(acc, "int64") * T.cast(multiplier, "int64")
        if self.kind.high:
            value = (T.cast(product >> tirx.const(32, "int64"), "int32") + half) >> shift
        else:
            wide = T.cast(shift, "int64")
            one = tirx.const(1, "int64")
            total = ((product + (one << (wide - one))) >> wide) + T.cast(g("out_zero"), "int64")
            value = T.cast(clamp(total, tirx.const(-128, "int64"), tirx.const(127, "int64")), "int32")
        return self._saturated(value, self.kind.clamped, "low", "high")

    def _saturated(self, value: Expr, clamped: bool, low: str, high: str) -> Expr:
        result = let(intrinsic("int32", "llvm.arm.ssat", value, 8))
        if clamped:
            result = clamp(result, self.geometry(low), self.geometry(high))
        return let(result)

    def _added(self, value: Expr, other: Expr) -> Expr:
        g = self.geometry
        total = value * g("add_own") + (other * g("add_other") + g("add_constant"))
        shifted = (total >> g("add_shift")) + g("add_zero")
        return self._saturated(shifted, self.kind.add_clamped, "add_low", "add_high")


__all__ = ["emit", "image"]
