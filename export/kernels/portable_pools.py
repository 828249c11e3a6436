"""Pooling, integer and float, reductions, and bilinear enlargement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.axes import Axis
from compress.export.kernels.building import (
    Rescaling,
    at,
    constant,
    dot,
    each,
    function,
    lanes,
    loops,
    pointer,
    registers,
    requantized,
    store,
)
from compress.export.kernels.code import Placed
from compress.export.kernels.emitted import Emitted, Emitter, Kernels, table
from compress.export.kernels.isa import Isa
from compress.export.kernels.spans import span, widths
from compress.export.kernels.vectors import load, put, splat, typed
from compress.integer.program import LIMITS, FloatPool, FloatReduce, Op, Pool, Resize


def _axes(op: Pool | FloatPool, x: Placed, y: Placed) -> tuple[Axis, Axis]:
    """Rows and columns of the windows; a halo isn't read."""
    found = []
    for k in range(2):
        size, out = x.tensor.shape[k], y.tensor.shape[k]
        start, stop = op.padding[k], (out - 1) * op.strides[k] + op.kernel[k] - op.padding[k]
        free = start == 0 and stop <= size
        found.append(Axis(size, out, op.kernel[k], op.strides[k], 1, start, x.strides[k], y.strides[k], 1, free))
    return found[0], found[1]


def _pool(op: Pool | FloatPool, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    from tvm.tirx.script import builder as T

    x, y = placed[op.inputs[0]], placed[op.output]
    rows, columns = _axes(op, x, y)
    channels, dtype = x.tensor.shape[2], x.tensor.dtype
    largest = op.kind == "max"
    kind = dtype if largest else ("float32" if isinstance(op, FloatPool) else "int32")
    unit = lanes(isa) * (4 // np.dtype(kind).itemsize) if lanes(isa) > 1 else 1
    wanted = (4 * unit, unit) if unit > 1 else (4,)
    tables, parameters, factors = _averages(op)
    with function(symbol, [pointer("x", x), pointer("y", y), *parameters], rows.out) as body:
        source, target, *constants = body.buffers
        with T.serial(body.first, body.last) as row, T.serial(columns.out) as column:
            row_taps = (0, rows.kernel) if rows.free else rows.taps(row)
            column_taps = (0, columns.kernel) if columns.free else columns.taps(column)
            for first, wide, repeats in widths(channels, *wanted):
                lane = unit if wide >= unit else 1
                with T.serial(repeats) as r:
                    channel = span(first, wide, r)
                    acc = registers(wide, kind)
                    for place in range(0, wide, lane):
                        put(acc, constant(_start(op, dtype), kind, lane), place, lane)
                    with T.serial(*row_taps) as i, T.serial(*column_taps) as j:
                        corner = at(
                            x,
                            row * rows.stride + (i - rows.before),
                            column * columns.stride + (j - columns.before),
                            channel,
                        )
                        for place in range(0, wide, lane):
                            value, held = load(source, corner + place, lane), load(acc, place, lane)
                            if largest:
                                put(acc, T.max(held, value), place, lane)
                            elif kind == "float32":
                                put(acc, held + value, place, lane)
                            else:
                                number = T.cast(value, typed("int32", lane))
                                put(acc, held + (number - constant(x.tensor.zero_point, "int32", lane)), place, lane)
                    for place in range(0, wide, lane):
                        held = load(acc, place, lane)
                        pixel = row * columns.out + column
                        if isinstance(op, FloatPool) and not largest:
                            held = held / splat(constants[0][pixel], lane)
                        elif isinstance(op, Pool) and op.requantize is not None and factors is not None:
                            numbers = tuple(splat(c[pixel], lane) for c in constants) or factors.numbers(lane)
                            held = requantized(held, numbers, op.requantize, factors.high, y.tensor.dtype, lane)
                        put(target, held, at(y, row, column, channel + place), lane)
    return Emitted(body.done, tables)


def _start(op: Pool | FloatPool, dtype: str) -> float:
    """What a window starts from."""
    if op.kind == "average":
        return 0
    return -np.inf if dtype == "float32" else LIMITS[dtype][0]


def _averages(
    op: Pool | FloatPool,
) -> tuple[tuple[NDArray[Any], ...], list[tuple[str, str, int]], Rescaling | None]:
    """Constants of each pixel, their parameters, and the factors."""
    if op.kind == "max":
        return (), [], None
    if isinstance(op, FloatPool):
        counts = np.ascontiguousarray(np.ones(1) if op.counts is None else op.counts, np.float32)
        return (counts,), [("counts", "float32", counts.size)], None
    if op.requantize is None:
        return (), [], None
    factors = Rescaling.of(op.requantize)
    if factors.multiplier.size == 1:
        return (), [], factors
    return factors.tables, factors.parameters, factors


def _resize(op: Resize, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    from tvm.tirx.script import builder as T

    from compress.integer.reference import RESIZE_BITS

    x, y = placed[op.inputs[0]], placed[op.output]
    height, width, channels = y.tensor.shape
    factors = Rescaling.of(op.requantize)
    tables = (
        np.ascontiguousarray(op.rows, np.int32).ravel(),
        np.ascontiguousarray(op.columns, np.int32).ravel(),
    )
    parameters = [("rows", "int32", tables[0].size), ("columns", "int32", tables[1].size)]
    zero, one = x.tensor.zero_point, 1 << RESIZE_BITS
    parameters = [pointer("x", x), pointer("y", y), *parameters]
    with each(symbol, parameters, (height, width, channels), shared=True) as (body, (row, column, channel)):
        source, target, rows, columns = body.buffers

        def pixel(i: int, j: int, row: Any = row, column: Any = column, channel: Any = channel) -> Any:
            place = at(x, rows[row * 3 + i], columns[column * 3 + j], channel)
            return T.cast(source[place], "int32") - zero

        fx, fy = columns[column * 3 + 2], rows[row * 3 + 2]
        upper, lower = (pixel(i, 0) * (one - fx) + pixel(i, 1) * fx for i in (0, 1))
        total = upper * (one - fy) + lower * fy
        result = requantized(total, factors.numbers(), op.requantize, factors.high, y.tensor.dtype)
        store(target, result, at(y, row, column, channel))
    return Emitted(body.done, tables)


def _reduce(op: FloatReduce, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    """Sums or maxima over some axes: in lanes along the last axis, whether that one goes or stays."""
    from tvm.tirx.script import builder as T

    x, y = placed[op.inputs[0]], placed[op.output]
    shape = x.tensor.shape
    axes = {axis % len(shape) for axis in op.axes}
    last = len(shape) - 1
    width = lanes(isa)
    start = -np.inf if op.kind == "max" else 0.0
    count = int(np.prod([shape[a] for a in axes]))

    def join(a: Any, b: Any) -> Any:
        return T.max(a, b) if op.kind == "max" else a + b

    outer = [1 if a in axes or a == last else size for a, size in enumerate(shape)]
    inner = [size if a in axes and a != last else 1 for a, size in enumerate(shape)]
    with function(symbol, [pointer("x", x), pointer("y", y)]) as body:
        source, target = body.buffers
        with loops(outer) as index:
            if last in axes:
                _along(source, target, x, y, index, inner, width, start, join, count if op.kind == "mean" else 1)
            else:
                for first, wide, repeats in widths(shape[-1], width):
                    with T.serial(repeats) as r:
                        channel = span(first, wide, r)
                        acc = registers(wide, "float32")
                        put(acc, constant(start, "float32", wide), 0, wide)
                        with loops(inner) as step:
                            place = dot(x.strides[:-1], _sum(index, step)[:-1], x.origin) + channel
                            put(acc, join(load(acc, 0, wide), load(source, place, wide)), 0, wide)
                        result = load(acc, 0, wide)
                        if op.kind == "mean":
                            result = result / constant(count, "float32", wide)
                        put(target, result, dot(y.strides[:-1], index[:-1], y.origin) + channel, wide)
    return Emitted(body.done)


def _sum(a: list[Any], b: list[Any]) -> list[Any]:
    """Index plus index, without adding zeros."""
    return [
        q if isinstance(p, int) and p == 0 else p if isinstance(q, int) and q == 0 else p + q
        for p, q in zip(a, b, strict=True)
    ]


def _along(
    source: Any,
    target: Any,
    x: Placed,
    y: Placed,
    index: list[Any],
    inner: list[int],
    width: int,
    start: float,
    join: Callable[[Any, Any], Any],
    divisor: int,
) -> None:
    """Reduces the last axis (and those of ``inner``) in lanes, and the lanes at the end."""
    from tvm.tirx.script import builder as T

    total = registers(1, "float32")
    put(total, constant(start, "float32"), 0, 1)
    with loops(inner) as step:
        base = dot(x.strides[:-1], _sum(index, step)[:-1], x.origin)
        for first, wide, repeats in widths(x.tensor.shape[-1], width):
            if wide == 1:
                with T.serial(repeats) as r:
                    put(total, join(total[0], source[base + span(first, 1, r)]), 0, 1)
                continue
            acc = registers(wide, "float32")
            put(acc, constant(start, "float32", wide), 0, wide)
            with T.serial(repeats) as r:
                put(acc, join(load(acc, 0, wide), load(source, base + span(first, wide, r), wide)), 0, wide)
            for k in range(wide):
                put(total, join(total[0], acc[k]), 0, 1)
    result = total[0] / constant(divisor, "float32") if divisor > 1 else total[0]
    store(target, result, at(y, *index))


KERNELS: Mapping[type[Op], Kernels] = {
    Pool: _pool,
    FloatPool: _pool,
    Resize: _resize,
    FloatReduce: _reduce,
}

emit: Emitter = table(KERNELS)
"""The kernel, if the operator is one of these."""


__all__ = ["emit"]
