"""What is one output element a thread on a GPU: pools, reductions, matrix products, joins, padded copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.building import (
    Rescaling,
    at,
    constant,
    each,
    loops,
    pointer,
    registers,
    requantized,
)
from compress.export.kernels.code import Placed
from compress.export.kernels.convolutions import image
from compress.export.kernels.emitted import Emitted, Kernels, table
from compress.export.kernels.isa import Isa
from compress.export.kernels.vectors import put
from compress.integer.program import (
    LIMITS,
    Concatenate,
    Copy,
    FloatMatMul,
    FloatPool,
    FloatReduce,
    MatMul,
    Op,
    Pool,
)


def _pool(op: Pool | FloatPool, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    from tvm.tirx.script import builder as T

    x, y = placed[op.inputs[0]], placed[op.output]
    (height, width, _), out = image(x.tensor.shape), image(y.tensor.shape)
    largest, floating = op.kind == "max", isinstance(op, FloatPool)
    kind = "float32" if floating else "int32"
    start = (-np.inf if floating else LIMITS["int32"][0]) if largest else 0
    factors = Rescaling.of(op.requantize) if isinstance(op, Pool) and op.requantize is not None else None
    tables: tuple[NDArray[Any], ...] = ()
    if isinstance(op, FloatPool) and op.counts is not None:
        tables = (np.ascontiguousarray(op.counts, np.float32).ravel(),)
    elif factors is not None and factors.multiplier.size > 1:
        tables = factors.tables
    parameters = [(f"constant{k}", str(values.dtype), values.size) for k, values in enumerate(tables)]
    with each(symbol, [pointer("x", x), pointer("y", y), *parameters], out) as (body, (row, column, channel)):
        source, target, *constants = body.buffers
        acc = registers(1, kind)
        put(acc, constant(start, kind), 0, 1)
        with T.serial(op.kernel[0]) as i, T.serial(op.kernel[1]) as j:
            r = row * op.strides[0] + i - op.padding[0]
            c = column * op.strides[1] + j - op.padding[1]
            with T.If((r >= 0) & (r < height) & (c >= 0) & (c < width)), T.Then():
                value = T.cast(source[(r * width + c) * out[2] + channel], kind)
                if largest:
                    put(acc, T.max(acc[0], value), 0, 1)
                else:
                    put(acc, acc[0] + (value - x.tensor.zero_point if x.tensor.zero_point else value), 0, 1)
        pixel = row * out[1] + column
        value = acc[0]
        if isinstance(op, FloatPool):
            value = value / constants[0][pixel] if tables else value
        elif op.requantize is not None and factors is not None and not largest:
            numbers = tuple(values[pixel] for values in constants) or factors.numbers()
            value = requantized(value, numbers, op.requantize, factors.high, y.tensor.dtype)
        else:
            value = T.cast(value, y.tensor.dtype)
        put(target, value, body.first, 1)
    return Emitted(body.done, tables)


def _reduce(op: FloatReduce, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    from tvm.tirx.script import builder as T

    x, y = placed[op.inputs[0]], placed[op.output]
    shape = x.tensor.shape
    axes = {axis % len(shape) for axis in op.axes}
    inner = [size if a in axes else 1 for a, size in enumerate(shape)]
    with each(symbol, [pointer("x", x), pointer("y", y)], y.tensor.shape) as (body, index):
        source, target = body.buffers
        total = registers(1, "float32")
        put(total, constant(-np.inf if op.kind == "max" else 0.0, "float32"), 0, 1)
        with loops(inner) as step:
            value = source[at(x, *(k if a in axes else i for a, (i, k) in enumerate(zip(index, step, strict=True))))]
            put(total, T.max(total[0], value) if op.kind == "max" else total[0] + value, 0, 1)
        result = total[0]
        if op.kind == "mean":
            result = result / constant(int(np.prod(inner)), "float32")
        put(target, result, body.first, 1)
    return Emitted(body.done)


def _product(op: MatMul | FloatMatMul, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    from tvm.tirx.script import builder as T

    a, b, y = placed[op.inputs[0]], placed[op.inputs[1]], placed[op.output]
    kind = "float32" if isinstance(op, FloatMatMul) else "int32"
    parameters = [pointer("a", a), pointer("b", b), pointer("y", y)]
    with each(symbol, parameters, y.tensor.shape) as (body, (*lead, m, n)):
        left, right, target = body.buffers

        def value(buffer: Any, place: Placed, *index: Any) -> Any:
            found, zero = T.cast(buffer[at(place, *index)], kind), place.tensor.zero_point
            return found - zero if zero else found

        acc = registers(1, kind)
        put(acc, constant(0, kind), 0, 1)
        with T.serial(a.tensor.shape[-1]) as k:
            put(acc, acc[0] + value(left, a, *lead, m, k) * value(right, b, *lead, k, n), 0, 1)
        result = acc[0]
        if isinstance(op, MatMul) and op.requantize is not None:
            factors = Rescaling.of(op.requantize)
            result = requantized(result, factors.numbers(), op.requantize, factors.high, y.tensor.dtype)
        elif isinstance(op, MatMul):
            assert op.scale is not None
            result = T.cast(result, "float32") * constant(float(np.float32(op.scale)), "float32")
        put(target, result, body.first, 1)
    return Emitted(body.done)


def _concatenate(op: Concatenate, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    from tvm.tirx.script import builder as T

    sources, y = [placed[name] for name in op.inputs], placed[op.output]
    axis = op.axis % len(y.tensor.shape)
    parameters = [*(pointer(f"x{k}", source) for k, source in enumerate(sources)), pointer("y", y)]
    with each(symbol, parameters, y.tensor.shape) as (body, index):
        *inputs, target = body.buffers
        end = y.tensor.shape[axis]
        value: Any = None
        for buffer, source in reversed(list(zip(inputs, sources, strict=True))):
            end -= source.tensor.shape[axis]
            here = buffer[at(source, *(i - end if k == axis else i for k, i in enumerate(index)))]
            value = (
                here if value is None else T.if_then_else(index[axis] < end + source.tensor.shape[axis], here, value)
            )
        put(target, value, body.first, 1)
    return Emitted(body.done)


def _padded(op: Copy, x: Placed, y: Placed, symbol: str) -> Emitted:
    """A copy whose gaps are filled: every element of the output looks for the one that it comes from."""
    from tvm.tirx.script import builder as T

    assert op.fill is not None
    dtype = y.tensor.dtype
    places = np.full(y.tensor.elements, -1, np.int32)
    grid = np.indices(op.extents).reshape(len(op.extents), -1)
    places[op.out_offset + np.asarray(op.out_strides, np.int64) @ grid] = (
        op.in_offset + np.asarray(op.in_strides, np.int64) @ grid
    )
    parameters = [pointer("x", x), pointer("y", y), ("places", "int32", places.size)]
    with each(symbol, parameters, (y.tensor.elements,)) as (body, (i,)):
        source, target, held = body.buffers
        put(target, T.if_then_else(held[i] >= 0, source[held[i]], constant(op.fill, dtype)), i, 1)
    return Emitted(body.done, (places,))


KERNELS: Mapping[type[Op], Kernels] = {
    Pool: _pool,
    FloatPool: _pool,
    FloatReduce: _reduce,
    MatMul: _product,
    FloatMatMul: _product,
    Concatenate: _concatenate,
}

_kernel = table(KERNELS)


def emit(op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
    """The kernel, if the operator is one of these, or a copy that leaves gaps."""
    if isinstance(op, Copy) and op.fill is not None:
        return _padded(op, placed[op.inputs[0]], placed[op.output], symbol)
    return _kernel(op, placed, isa, symbol)


__all__ = ["emit"]
