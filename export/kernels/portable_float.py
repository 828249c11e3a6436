"""float32 operators that aren't convolutions or pools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compress.export.kernels import functions as f
from compress.export.kernels.building import at, constant, each, fused, pointer, registers, store
from compress.export.kernels.code import Placed
from compress.export.kernels.emitted import Emitted, Emitter, Kernels, table
from compress.export.kernels.isa import Isa
from compress.export.kernels.portable_integer import elementwise, product
from compress.export.kernels.vectors import splat
from compress.integer.program import FloatElementwise, FloatMatMul, FloatSoftmax, Op


def _maximum(a: Any, b: Any) -> Any:
    """The larger one, or a NaN if there is one, as numpy has it."""
    return f.select((a > b) | f.is_nan(a), a, b)


def _minimum(a: Any, b: Any) -> Any:
    return f.select((a < b) | f.is_nan(a), a, b)


UNARY: Mapping[str, Callable[[Any], Any]] = {
    "relu": lambda x: _maximum(x, f.f32(0)),
    "sigmoid": f.sigmoid,
    "tanh": f.tanh,
    "exp": f.exp,
    "erf": f.erf,
    "log": f.log,
    "neg": lambda x: f.f32(-1) * x,
    "abs": f.absolute,
    "reciprocal": lambda x: f.f32(1) / x,
    "half": f.half,
}
BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": _maximum,
    "min": _minimum,
    "pow": f.power,
}
POWERS: Mapping[float, Callable[[Any], Any]] = {
    1.0: lambda x: x,
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
    -1.0: lambda x: f.f32(1) / x,
}
"""Exponents that need no logarithm."""


def _elementwise(op: FloatElementwise, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    sources, target = [placed[name] for name in op.inputs], placed[op.output]
    extra: list[tuple[str, str, tuple[int, ...]]] = []
    constants: tuple[Any, ...] = ()
    if op.constant is not None and op.kind != "clip" and op.constant.size > 1:
        extra = [("constant", "float32", op.constant.shape)]
        constants = (np.ascontiguousarray(op.constant, np.float32),)

    def value(operands: list[Any]) -> Any:
        first = operands[0]
        if op.kind == "clip":
            low, high = np.asarray(op.constant, np.float32).ravel()
            return _minimum(_maximum(first, f.f32(float(low))), f.f32(float(high)))
        if op.kind == "sqrt":
            return f.sqrt(first, isa)
        if op.kind in UNARY:
            return UNARY[op.kind](first)
        if op.constant is not None and op.constant.size == 1:
            number = float(op.constant.ravel()[0])
            if op.kind == "pow" and not op.swapped and number in POWERS:
                return POWERS[number](first)
            operands = [*operands, f.f32(number)]
        a, b = reversed(operands) if op.swapped else operands
        return BINARY[op.kind](a, b)

    body, alike = elementwise(symbol, sources, target, value, extra)
    return Emitted(body.done, constants, in_place=alike)


def _softmax(op: FloatSoftmax, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    from tvm.tirx.script import builder as T

    source, target = placed[op.inputs[0]], placed[op.output]
    *outer, count = source.tensor.shape
    with each(symbol, [pointer("x", source), pointer("y", target)], outer) as (body, index):
        x, y = body.buffers
        top, total = registers(1, "float32"), registers(1, "float32")
        store(top, constant(-np.inf, "float32"), 0)
        with T.serial(count) as k:
            store(top, T.max(top[0], x[at(source, *index, k)]), 0)
        store(total, constant(0, "float32"), 0)
        with T.serial(count) as k:
            store(y, f.exp(x[at(source, *index, k)] - top[0]), at(target, *index, k))
        with T.serial(count) as k:
            store(total, total[0] + y[at(target, *index, k)], 0)
        with T.serial(count) as k:
            store(y, y[at(target, *index, k)] / total[0], at(target, *index, k))
    return Emitted(body.done)


def _matmul(op: FloatMatMul, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    from tvm.tirx.script import builder as T

    sources, target = [placed[name] for name in op.inputs], placed[op.output]

    def term(acc: Any, x: Any, w: Any, width: int) -> Any:
        if acc is None:
            return x
        return T.fma(splat(x, width), w, acc) if fused(isa) else acc + splat(x, width) * w

    return product(symbol, sources, target, isa, "float32", term, lambda acc, width: acc)


KERNELS: Mapping[type[Op], Kernels] = {
    FloatElementwise: _elementwise,
    FloatSoftmax: _softmax,
    FloatMatMul: _matmul,
}

emit: Emitter = table(KERNELS)
"""The kernel, if the operator is one of these."""


__all__ = ["emit"]
