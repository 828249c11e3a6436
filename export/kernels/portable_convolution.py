"""Convolutions and linear layers on every instruction set, in integers of any width and in float32.

A block of pixels times a block of output channels stays in registers while the window and the input channels are
walked. Output channels fill the vector's lanes where there are any; else the block is of scalars. Columns whose window
leaves the image are done one by one, unless a halo makes that unnecessary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.axes import Axis, axes_of
from compress.export.kernels.building import (
    Rescaling,
    constant,
    function,
    fused,
    lanes,
    pointer,
    registers,
    requantized,
)
from compress.export.kernels.code import Placed
from compress.export.kernels.emitted import Emitted
from compress.export.kernels.isa import Isa
from compress.export.kernels.packing import Packing
from compress.export.kernels.vectors import clamp, load, put, splat, typed
from compress.integer.program import Convolution, FloatConvolution, Op

REGISTERS: Mapping[int, tuple[int, int, int]] = {16: (32, 12, 4), 8: (16, 8, 3), 4: (32, 8, 4), 1: (16, 4, 4)}
"""By lanes: registers for accumulators, activations and one vector of weights; most pixels and most vectors of output
channels in a block."""


@dataclass(frozen=True, eq=False, slots=True)
class _Plan:
    """What the emission of one convolution knows."""

    op: Convolution | FloatConvolution
    x: Placed
    y: Placed
    isa: Isa
    rows: Axis
    columns: Axis
    packing: Packing
    pixels: int
    depthwise: bool
    groups: int
    outputs: int
    inputs: int
    pairs: bool

    @property
    def blocks(self) -> int:
        return -(-self.outputs // self.packing.block)

    @property
    def floating(self) -> bool:
        return isinstance(self.op, FloatConvolution)

    @property
    def kind(self) -> str:
        return "float32" if self.floating else "int32"


def _plan(op: Convolution | FloatConvolution, x: Placed, y: Placed, isa: Isa) -> _Plan:
    rows, columns = axes_of(op, x, y)
    depthwise = op.weight.shape[3] == 1 and op.groups == op.weight.shape[0] and op.groups > 1
    groups, inputs = (1, 1) if depthwise else (op.groups, op.weight.shape[3])
    outputs = op.weight.shape[0] // groups
    bits = op.weight_bits if isinstance(op, Convolution) else 32
    width = lanes(isa)
    room, most, vectors = REGISTERS[width]
    if isa.family == "cortex-m":
        room, most, vectors = 8, 2, 2
    if width == 1 and bits < 8:
        room = 11
    # Two sums in a 64-bit register, one above the other, as long as the lower one can't overflow into the other.
    pairs = isa.triple.startswith("riscv64") and isinstance(op, Convolution) and not depthwise and 1 < bits <= 8
    pairs = pairs and outputs > 1 and op.weight[0].size << (bits + 7) < 2**31
    vectors = {4: 2, 3: 8, 2: 4, 1: 8}[bits] if depthwise and bits < 8 else _fitting(-(-outputs // width), vectors)
    vectors += vectors % 2 if pairs else 0
    low, high = columns.inner
    count = max(high - low, 1)
    held = vectors // 2 if pairs else vectors
    most = max(1, min(most, (room - 1) // (held + 1), count))
    pixels = min(range(1, most + 1), key=lambda p: (-(-count // p) * (p + 1), -p))
    packing = Packing.of(bits, vectors, width, inputs)
    return _Plan(op, x, y, isa, rows, columns, packing, pixels, depthwise, groups, outputs, inputs, pairs)


def _fitting(count: int, most: int) -> int:
    """How many of ``count`` vectors a block takes: few blocks, with little in the last one that doesn't count."""
    return min(range(1, most + 1), key=lambda v: (-(-count // v) * (v + 0.5), -v))


def _constants(plan: _Plan) -> tuple[list[NDArray[Any]], list[tuple[str, str, int]], Rescaling | None]:
    """The constants behind input and output, their parameters, and the factors if the output is of 8 bits."""
    op, packing = plan.op, plan.packing
    padded = plan.blocks * packing.block
    weight = op.weight.reshape(plan.groups, plan.outputs, -1, plan.inputs)
    packed = packing.pack(weight).ravel()

    def spread(values: NDArray[Any]) -> NDArray[Any]:
        full = np.zeros((plan.groups, padded), values.dtype)
        full[:, : plan.outputs] = values.reshape(plan.groups, plan.outputs)
        return full.ravel()

    found = [packed, spread(op.bias)]
    names = ["weight", "bias"]
    factors = None
    if isinstance(op, Convolution):
        if op.requantize is not None:
            factors = Rescaling.of(op.requantize, op.weight.shape[0])
            found += [spread(table) for table in factors.tables]
            names += ["multiplier", "half", "shift"]
        elif op.scale is not None:
            found.append(spread(np.broadcast_to(op.scale, op.weight.shape[:1]).astype(np.float32)))
            names.append("scale")
    return found, [(name, str(a.dtype), a.size) for name, a in zip(names, found, strict=True)], factors


class _Writer:
    """Writes the statements of one block of pixels times one block of output channels."""

    def __init__(self, plan: _Plan, buffers: list[Any], factors: Rescaling | None) -> None:
        self.plan, self.factors = plan, factors
        self.x, self.y, self.weight, self.bias, *self.tables = buffers

    def block(self, group: Any, block: Any, row: Any, column: Any, pixels: int, whole: bool) -> None:
        """One block; with ``whole`` every column's window lies in memory."""
        from tvm.tirx.script import builder as T

        plan, packing, width = self.plan, self.plan.packing, self.plan.packing.width
        vectors = packing.vectors
        held = pixels * vectors // 2 if plan.pairs else pixels * vectors * width
        acc = registers(held, "int64" if plan.pairs else plan.kind)
        sums = registers(pixels, "int32") if self.masked else None
        first = (group * plan.blocks + block) * packing.block
        for k in range(held) if plan.pairs else ():
            put(acc, constant(0, "int64"), k, 1)
        for v in range(0 if plan.pairs else vectors):
            for p in range(pixels):
                start = constant(0, plan.kind, width) if self.masked else load(self.bias, first + v * width, width)
                put(acc, start, (p * vectors + v) * width, width)
        if sums is not None:
            for p in range(pixels):
                put(sums, constant(0, "int32"), p, 1)
        rows, columns = plan.rows, plan.columns
        row_taps = (0, rows.kernel) if rows.free else rows.taps(row)
        column_taps = (0, columns.kernel) if whole else columns.taps(column)
        steps = packing.steps(plan.inputs)
        per_tap = steps * packing.step
        with T.serial(*row_taps) as i, T.serial(*column_taps) as j:
            tap = i * rows.tap + j * columns.tap
            weights = ((group * plan.blocks + block) * (rows.kernel * columns.kernel) + tap) * per_tap
            corner = (
                (row * rows.stride - rows.before + i * rows.dilation) * rows.pitch
                + (column * columns.stride - columns.before + j * columns.dilation) * columns.pitch
                + (plan.x.origin + (block * packing.block if plan.depthwise else group * plan.inputs))
            )
            inside = plan.inputs // packing.unit
            if inside:
                with T.serial(inside) as c:
                    self._step(acc, sums, corner + c * packing.unit, weights + c * packing.step, packing.unit, pixels)
            if plan.inputs % packing.unit:
                self._step(
                    acc,
                    sums,
                    corner + inside * packing.unit,
                    weights + inside * packing.step,
                    plan.inputs % packing.unit,
                    pixels,
                )
        self._finish(acc, sums, first, group, block, row, column, pixels)

    @property
    def masked(self) -> bool:
        """One-bit weights: ``sum w x = 2 * sum of x where w is 1, minus the sum of x``."""
        return self.plan.packing.bits == 1 and not self.plan.depthwise

    def _step(self, acc: Any, sums: Any, corner: Any, weights: Any, unit: int, pixels: int) -> None:
        """Adds the products of ``unit`` input channels."""
        plan, packing = self.plan, self.plan.packing
        width, vectors = packing.width, packing.vectors
        pitch = plan.columns.stride * plan.columns.pitch
        words = None
        if packing.bits < 8:
            words = registers(width, "int32")
            put(words, packing.load(self.weight, weights), 0, width)
        for u in range(unit):
            values = registers(pixels, plan.kind) if not plan.depthwise else None
            if values is not None:
                for p in range(pixels):
                    put(values, self._value(corner + p * pitch + u, 1), p, 1)
                    if sums is not None:
                        put(sums, sums[p] + values[p], p, 1)
            if plan.pairs and values is not None:
                self._pairs(acc, values, [self._weights(words, weights, u, v) for v in range(vectors)], pixels)
                continue
            for v in range(vectors):
                w = self._weights(words, weights, u, v)
                held = registers(width, plan.kind)
                put(held, w, 0, width)
                for p in range(pixels):
                    place = (p * vectors + v) * width
                    if values is None:
                        value = self._value(corner + p * pitch + v * width, width)
                    else:
                        value = splat(values[p], width)
                    put(acc, self._sum(load(acc, place, width), value, load(held, 0, width)), place, width)

    def _pairs(self, acc: Any, values: Any, weights: list[Any], pixels: int) -> None:
        """``a + 2^32 b += x (u + 2^32 w)``: two products by one multiplication, exact while ``a`` stays in 32 bits."""
        from tvm.tirx.script import builder as T

        count = len(weights) // 2
        for k in range(count):
            both = registers(1, "int64")
            low, high = (T.cast(w, "int64") for w in weights[2 * k : 2 * k + 2])
            put(both, low + (high << constant(32, "int64")), 0, 1)
            for p in range(pixels):
                place = p * count + k
                put(acc, acc[place] + T.cast(values[p], "int64") * both[0], place, 1)

    def _value(self, offset: Any, width: int) -> Any:
        """Activations less their zero point."""
        from tvm.tirx.script import builder as T

        value = load(self.x, offset, width)
        if self.plan.floating:
            return value
        zero = self.plan.x.tensor.zero_point
        wide = T.cast(value, typed("int32", width))
        return wide - constant(zero, "int32", width) if zero else wide

    def _weights(self, words: Any, weights: Any, unit: int, index: int) -> Any:
        from tvm.tirx.script import builder as T

        packing = self.plan.packing
        width = packing.width
        if packing.bits < 8:
            return packing.unpack(load(words, 0, width), unit, index)
        found = load(self.weight, weights + index * width, width)
        return found if self.plan.floating else T.cast(found, typed("int32", width))

    def _sum(self, total: Any, value: Any, weight: Any) -> Any:
        """``total + value * weight``."""
        from tvm.tirx.script import builder as T

        packing = self.plan.packing
        if self.plan.floating and fused(self.plan.isa):
            return T.fma(value, weight, total)
        if packing.bits == 1 and not self.plan.depthwise:
            return total + (value & weight)
        if packing.bits == 1:
            negative = weight ^ constant(-1, "int32", packing.width)
            return total + ((value ^ negative) - negative)
        if packing.width > 1 and not self.plan.floating:
            half, wide = typed("int16", packing.width), typed("int32", packing.width)
            return total + T.cast(T.cast(value, half), wide) * T.cast(T.cast(weight, half), wide)
        return total + value * weight

    def _finish(
        self, acc: Any, sums: Any, first: Any, group: Any, block: Any, row: Any, column: Any, pixels: int
    ) -> None:
        """Results of a block, those of channels that exist."""
        from tvm.tirx.script import builder as T

        plan, size = self.plan, self.plan.packing.block
        rest = plan.outputs % size
        corner = (
            row * plan.rows.out_pitch
            + column * plan.columns.out_pitch
            + (group * plan.outputs + block * size + plan.y.origin)
        )
        if rest == 0 or plan.blocks == 1:
            self._store(acc, sums, first, corner, pixels, rest or size)
            return
        with T.If(block < plan.blocks - 1):
            with T.Then():
                self._store(acc, sums, first, corner, pixels, size)
            with T.Else():
                self._store(acc, sums, first, corner, pixels, rest)

    def _store(self, acc: Any, sums: Any, first: Any, corner: Any, pixels: int, count: int) -> None:
        """Results of the first ``count`` channels of a block."""
        plan, packing = self.plan, self.plan.packing
        width, dtype = packing.width, plan.y.tensor.dtype
        for v in range(-(-count // width)):
            for p in range(pixels):
                value = self._total(acc, p, v, first)
                if sums is not None:
                    bias = load(self.bias, first + v * width, width)
                    value = bias + value * constant(2, "int32", width) - splat(sums[p], width)
                result = self._result(value, first + v * width, width)
                place = corner + p * plan.columns.out_pitch + v * width
                if (v + 1) * width <= count:
                    put(self.y, result, place, width)
                    continue
                part = registers(width, dtype)
                put(part, result, 0, width)
                for k in range(count - v * width):
                    put(self.y, part[k], place + k, 1)

    def _total(self, acc: Any, pixel: int, index: int, first: Any) -> Any:
        """What a block's accumulators hold for a pixel and a vector of channels."""
        from tvm.tirx.script import builder as T

        packing = self.plan.packing
        if not self.plan.pairs:
            return load(acc, (pixel * packing.vectors + index) * packing.width, packing.width)
        both = acc[(pixel * packing.vectors + index) // 2]
        value = T.cast(both, "int32")
        if index % 2:
            value = T.cast((both - T.cast(value, "int64")) >> constant(32, "int64"), "int32")
        return value + self.bias[first + index]

    def _result(self, value: Any, channel: Any, width: int) -> Any:
        """What stands in the output for an accumulator."""
        from tvm.tirx.script import builder as T

        op = self.plan.op
        if isinstance(op, FloatConvolution):
            if np.isfinite(op.low) or np.isfinite(op.high):
                low, high = (constant(limit, "float32", width) for limit in (op.low, op.high))
                return clamp(value, low, high)
            return value
        tables = tuple(load(table, channel, width) for table in self.tables)
        if op.requantize is not None and self.factors is not None:
            high_word = self.factors.high
            return requantized(value, tables, op.requantize, high_word, self.plan.y.tensor.dtype, width)
        return T.cast(value, typed("float32", width)) * tables[0]


def emit(op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
    """The kernel, if the operator is a convolution."""
    from tvm.tirx.script import builder as T

    if not isinstance(op, (Convolution, FloatConvolution)) or (isinstance(op, FloatConvolution) and op.half):
        return None
    plan = _plan(op, placed[op.inputs[0]], placed[op.output], isa)
    constants, parameters, factors = _constants(plan)
    single = plan.rows.out == 1
    rows = plan.groups * plan.blocks if single else plan.rows.out
    with function(symbol, [pointer("x", plan.x), pointer("y", plan.y), *parameters], rows) as body:
        writer = _Writer(plan, body.buffers, factors)
        if single:
            with T.serial(body.first, body.last) as number:
                _columns(plan, writer, number // plan.blocks, number % plan.blocks, 0)
        else:
            with T.serial(body.first, body.last) as row, T.serial(plan.groups) as group, T.serial(plan.blocks) as block:
                _columns(plan, writer, group, block, row)
    extra = plan.packing.block * plan.x.tensor.bytes // plan.x.tensor.elements if plan.depthwise else 0
    return Emitted(body.done, tuple(constants), extra_read=extra if plan.outputs % plan.packing.block else 0)


def _columns(plan: _Plan, writer: _Writer, group: Any, block: Any, row: Any) -> None:
    """All columns of a row: blocks of them where windows lie in memory, the others one by one."""
    from tvm.tirx.script import builder as T

    low, high = plan.columns.inner
    count, pixels = high - low, plan.pixels
    if count:
        blocks = -(-count // pixels)
        with T.serial(blocks) as k:
            # The last block may do a few columns of the one before again.
            start = T.min(k * pixels, count - pixels) if count % pixels else k * pixels
            writer.block(group, block, row, start + low, pixels, True)
    others = plan.columns.out - count
    if others:
        with T.serial(others) as k:
            column = k + T.cast(k >= low, "int32") * count if low and count else k + count
            writer.block(group, block, row, column, 1, False)


__all__ = ["emit"]
