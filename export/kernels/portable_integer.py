"""Integer operators that aren't convolutions: sums, products, softmax, matrix products, changes of type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compress.export.kernels.building import (
    THREADS,
    Body,
    Rescaling,
    at,
    constant,
    dot,
    each,
    function,
    lanes,
    pointer,
    registers,
    requantized,
    store,
)
from compress.export.kernels.code import Placed
from compress.export.kernels.emitted import Emitted, Emitter, Kernels, table
from compress.export.kernels.functions import is_nan, nearest
from compress.export.kernels.isa import Isa
from compress.export.kernels.spans import broadcast, merged, rows_of, span, widths
from compress.export.kernels.vectors import clamp, load, put, splat, typed
from compress.integer.program import Add, Dequantize, MatMul, Multiply, Op, Quantize, Softmax


def elementwise(
    symbol: str,
    sources: list[Placed],
    target: Placed,
    value: Callable[[list[Any]], Any],
    extra: list[tuple[str, str, tuple[int, ...]]] | None = None,
) -> tuple[Body, tuple[int, ...]]:
    """A kernel that computes each element of the output from those of the inputs, broadcast as numpy does.

    Args:
        symbol: the kernel's name.
        sources, target: the tensors.
        value: the expression, from the inputs' elements.
        extra: constants that take part as further inputs: name, dtype, shape.

    Returns:
        The finished function, and which inputs may share their memory with the output.
    """
    shape = target.tensor.shape
    places = [(place, broadcast(place, shape)) for place in sources]
    constants = extra or []
    steps = [strides for _, strides in places]
    for _, _, own in constants:
        dense = [int(np.prod(own[k + 1 :])) if size != 1 else 0 for k, size in enumerate(own)]
        steps.append((0,) * (len(shape) - len(own)) + tuple(dense))
    parameters = [pointer(f"x{k}", place) for k, place in enumerate(sources)] + [pointer("y", target)]
    parameters += [(name, dtype, int(np.prod(own))) for name, dtype, own in constants]
    rows = not THREADS.get() and rows_of(shape) > 1
    head, tail = (shape[:1], shape[1:]) if rows else ((), shape)
    sizes, inner = merged(tail, [s[len(head) :] for s in (*steps, target.strides)])
    with each(symbol, parameters, (*head, *sizes), shared=rows) as (body, index):
        inputs, y, tables = body.buffers[: len(sources)], body.buffers[len(sources)], body.buffers[len(sources) + 1 :]
        origins = [place.origin for place in sources] + [0] * len(tables)
        operands = [
            buffer[dot((*s[: len(head)], *i), index, origin)]
            for buffer, s, i, origin in zip([*inputs, *tables], steps, inner[:-1], origins, strict=True)
        ]
        place = dot((*target.strides[: len(head)], *inner[-1]), index, target.origin)
        store(y, value(operands), place)
    alike = tuple(k for k, place in enumerate(sources) if place.tensor.shape == shape)
    return body, alike


def _add(op: Add, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    from tvm.tirx.script import builder as T

    sources, target = [placed[name] for name in op.inputs], placed[op.output]
    # Zero points go into the rounding term: the sum of all is what the definition has, and the sum of the products
    # stays below 2^30, so nothing overflows on the way.
    rest = (1 << (op.shift - 1)) - sum(
        place.tensor.zero_point * m for place, m in zip(sources, op.multipliers, strict=True)
    )

    def value(operands: list[Any]) -> Any:
        products = [T.cast(x, "int32") * m for x, m in zip(operands, op.multipliers, strict=True)]
        total = products[0] if len(products) == 1 else products[0] + products[1]
        result = clamp((total + rest) >> op.shift, op.low - op.zero_point, op.high - op.zero_point)
        return T.cast(result + op.zero_point, target.tensor.dtype)

    body, alike = elementwise(symbol, sources, target, value)
    return Emitted(body.done, in_place=alike)


def _multiply(op: Multiply, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    from tvm.tirx.script import builder as T

    sources, target = [placed[name] for name in op.inputs], placed[op.output]
    factors = Rescaling.of(op.requantize)

    def value(operands: list[Any]) -> Any:
        a, b = (T.cast(x, "int32") - place.tensor.zero_point for x, place in zip(operands, sources, strict=True))
        return requantized(a * b, factors.numbers(), op.requantize, factors.high, target.tensor.dtype)

    body, alike = elementwise(symbol, sources, target, value)
    return Emitted(body.done, in_place=alike)


def _quantize(op: Quantize, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    from tvm.tirx.script import builder as T

    source, target = placed[op.inputs[0]], placed[op.output]
    tensor = target.tensor
    low, high = (constant(limit - tensor.zero_point, "float32") for limit in (op.low, op.high))
    scale = constant(float(np.float32(tensor.scale)), "float32")

    def value(operands: list[Any]) -> Any:
        quotient = operands[0] / scale
        bounded = clamp(T.Select(is_nan(quotient), T.float32(0), quotient), low, high)
        return T.cast(nearest(bounded) + tensor.zero_point, tensor.dtype)

    body, _ = elementwise(symbol, [source], target, value)
    return Emitted(body.done)


def _dequantize(op: Dequantize, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    from tvm.tirx.script import builder as T

    source, target = placed[op.inputs[0]], placed[op.output]
    scale = constant(float(np.float32(source.tensor.scale)), "float32")

    def value(operands: list[Any]) -> Any:
        return T.cast(T.cast(operands[0], "int32") - source.tensor.zero_point, "float32") * scale

    body, _ = elementwise(symbol, [source], target, value)
    return Emitted(body.done)


def _softmax(op: Softmax, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    from tvm.tirx.script import builder as T

    source, target = placed[op.inputs[0]], placed[op.output]
    *outer, count = source.tensor.shape
    largest = int(op.table.max())
    narrow = 2 * largest * op.factor + largest * count < 2**32 and 2 * largest * count < 2**32
    kind = "uint32" if narrow else "uint64"
    # Far from the maximum all entries are 0; one of them will do.
    values = np.ascontiguousarray(op.table[: min(int(np.flatnonzero(op.table).max(initial=0)) + 2, 256)], np.int32)
    parameters = [pointer("x", source), pointer("y", target), ("table", "int32", values.size)]
    with each(symbol, parameters, outer) as (body, index):
        x, y, table = body.buffers
        top, total = registers(1, "int32"), registers(1, kind)
        store(top, constant(-(2**31), "int32"), 0)
        with T.serial(count) as k:
            store(top, T.max(top[0], T.cast(x[at(source, *index, k)], "int32")), 0)
        store(total, constant(0, kind), 0)

        def power(k: Any, index: list[Any] = index, top: Any = top) -> Any:
            distance = top[0] - T.cast(x[at(source, *index, k)], "int32")
            return T.cast(table[distance if values.size == 256 else T.min(distance, values.size - 1)], kind)

        with T.serial(count) as k:
            store(total, total[0] + power(k), 0)
        with T.serial(count) as k:
            share = T.truncdiv(power(k) * constant(2 * op.factor, kind) + total[0], total[0] * constant(2, kind))
            wide = T.cast(T.min(share, constant(max(op.high - op.zero_point, 0), kind)), "int32")
            result = clamp(wide + op.zero_point, op.low, op.high)
            store(y, T.cast(result, target.tensor.dtype), at(target, *index, k))
    return Emitted(body.done, (values,))


def product(
    symbol: str,
    sources: list[Placed],
    target: Placed,
    isa: Isa,
    kind: str,
    term: Callable[[Any, Any, Any, int], Any],
    finish: Callable[[Any, int], Any],
) -> Emitted:
    """A matrix product of two computed tensors: blocks of rows times blocks of columns in registers.

    Args:
        symbol, sources, target, isa: as everywhere.
        kind: type of the accumulators.
        term: (accumulator, element of a, elements of b, lanes) -> accumulator.
        finish: (accumulator, lanes) -> the output's elements.
    """
    from tvm.tirx.script import builder as T

    a, b = sources
    *outer, m, k = a.tensor.shape
    n = target.tensor.shape[-1]
    width = lanes(isa)
    tall = min(4, m)
    blocks = -(-m // tall)
    leading = int(np.prod(outer, dtype=np.int64))
    parameters = [pointer("a", a), pointer("b", b), pointer("y", target)]
    with function(symbol, parameters, leading * blocks) as body:
        left, right, y = body.buffers
        with T.serial(body.first, body.last) as number:
            lead: list[Any] = []
            rest = number // blocks
            for size in reversed(outer):
                lead.insert(0, rest % size if size > 1 else 0)
                rest = rest // size
            start = (number % blocks) * tall
            row = T.min(start, m - tall) if m % tall else start
            for first, wide, repeats in widths(n, 4 * width, width):
                lane = width if wide >= width else 1
                vectors = wide // lane
                with T.serial(repeats) as r:
                    column = span(first, wide, r)
                    acc = registers(tall * wide, kind)
                    for place in range(0, tall * wide, lane):
                        put(acc, constant(0, kind, lane), place, lane)
                    with T.serial(k) as i:
                        values = registers(tall, kind)
                        for t in range(tall):
                            put(values, term(None, left[at(a, *lead, row + t, i)], None, 1), t, 1)
                        for v in range(vectors):
                            w = load(right, at(b, *lead, i, column + v * lane), lane)
                            for t in range(tall):
                                place = (t * vectors + v) * lane
                                put(acc, term(load(acc, place, lane), values[t], w, lane), place, lane)
                    for t in range(tall):
                        for v in range(vectors):
                            result = finish(load(acc, (t * vectors + v) * lane, lane), lane)
                            put(y, result, at(target, *lead, row + t, column + v * lane), lane)
    return Emitted(body.done)


def _matmul(op: MatMul, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    from tvm.tirx.script import builder as T

    sources, target = [placed[name] for name in op.inputs], placed[op.output]
    za, zb = (place.tensor.zero_point for place in sources)
    factors = Rescaling.of(op.requantize) if op.requantize is not None else None

    def term(acc: Any, x: Any, w: Any, width: int) -> Any:
        if acc is None:
            return T.cast(x, "int32") - za
        weights = T.cast(w, typed("int32", width)) - constant(zb, "int32", width)
        return acc + splat(x, width) * weights

    def finish(acc: Any, width: int) -> Any:
        if op.requantize is None or factors is None:
            scale = constant(float(np.float32(op.scale or 1.0)), "float32", width)
            return T.cast(acc, typed("float32", width)) * scale
        return requantized(acc, factors.numbers(width), op.requantize, factors.high, target.tensor.dtype, width)

    return product(symbol, sources, target, isa, "int32", term, finish)


KERNELS: Mapping[type[Op], Kernels] = {
    Add: _add,
    Multiply: _multiply,
    Quantize: _quantize,
    Dequantize: _dequantize,
    Softmax: _softmax,
    MatMul: _matmul,
}

emit: Emitter = table(KERNELS)
"""The kernel, if the operator is one of these."""


__all__ = ["elementwise", "emit", "product"]
