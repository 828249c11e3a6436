"""Every operator of a program once more, from its docstring: loops over Python's integers, or torch in float64.

Shares no code with :mod:`compress.integer.reference`. Rounding is done on exact fractions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from compress.integer import program as p

Array = Any
HALF = Fraction(1, 2)


def nearest(value: Fraction) -> int:
    """The nearest integer, halves up."""
    return math.floor(value + HALF)


def signed32(value: int) -> int:
    """What a 32-bit accumulator holds."""
    return (value + 2**31) % 2**32 - 2**31


def clamp(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def requantized(acc: int, how: p.Requantize, index: int = 0) -> int:
    at = index if how.multiplier.size > 1 else 0
    real = Fraction(int(acc) * int(how.multiplier[at]), 2 ** int(how.shift[at]))
    return clamp(nearest(real) + how.zero_point, how.low, how.high)


def indices(shape: tuple[int, ...]):
    return itertools.product(*(range(size) for size in shape))


def broadcast_index(index: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Where numpy's broadcasting reads an operand of ``shape`` for a result's ``index``."""
    last = index[len(index) - len(shape) :]
    return tuple(0 if size == 1 else i for i, size in zip(last, shape, strict=True))


def image_sums(op: Any, x: Array) -> Array:
    """(OH, OW, O) sums of a convolution in float64, exact for integers below 2^53; ``x`` has its zero taken off."""
    top, left, bottom, right = op.padding
    image = F.pad(torch.tensor(x, dtype=torch.float64).permute(2, 0, 1)[None], (left, right, top, bottom))
    weight = torch.tensor(op.weight, dtype=torch.float64).permute(0, 3, 1, 2)
    result = F.conv2d(image, weight, None, op.strides, 0, op.dilations, op.groups)
    return result[0].permute(1, 2, 0).numpy()


def convolution(op: p.Convolution, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    z = tensors[op.inputs[0]].zero_point
    sums = image_sums(op, inputs[0].astype(np.int64) - z)
    out = np.empty(sums.shape, object)
    for at in indices(sums.shape):
        acc = signed32(int(sums[at]) + int(op.bias[at[2]]))
        if op.requantize is not None:
            out[at] = requantized(acc, op.requantize, at[2])
        else:
            out[at] = np.float32(acc) * op.scale[at[2]]
    return out


def convolution_by_loops(op: p.Convolution, x: Array, z: int, size: tuple[int, int]) -> Array:
    """The accumulators (OH, OW, O), as the docstring of Convolution has the sum."""
    outputs, kh, kw, per_group = op.weight.shape
    each = outputs // op.groups
    height, width, _ = x.shape
    acc = np.zeros((*size, outputs), np.int64)
    for y, x_, o in indices((*size, outputs)):
        total = int(op.bias[o])
        for i, j, c in indices((kh, kw, per_group)):
            row = y * op.strides[0] + i * op.dilations[0] - op.padding[0]
            column = x_ * op.strides[1] + j * op.dilations[1] - op.padding[1]
            if 0 <= row < height and 0 <= column < width:
                total += int(op.weight[o, i, j, c]) * (int(x[row, column, c + per_group * (o // each)]) - z)
        acc[y, x_, o] = signed32(total)
    return acc


def add(op: p.Add, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    shape = tensors[op.output].shape
    out = np.empty(shape, object)
    for at in indices(shape):
        total = 0
        for name, x, m in zip(op.inputs, inputs, op.multipliers, strict=True):
            total += (int(x[broadcast_index(at, x.shape)]) - tensors[name].zero_point) * m
        # All of it fits into 32 bits, the rounding term included.
        assert abs(total) + 2 ** (op.shift - 1) < 2**31
        out[at] = clamp(nearest(Fraction(total, 2**op.shift)) + op.zero_point, op.low, op.high)
    return out


def multiply(op: p.Multiply, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    shape = tensors[op.output].shape
    out = np.empty(shape, object)
    for at in indices(shape):
        a, b = (
            int(x[broadcast_index(at, x.shape)]) - tensors[name].zero_point
            for name, x in zip(op.inputs, inputs, strict=True)
        )
        out[at] = requantized(a * b, op.requantize)
    return out


def pool(op: p.Pool | p.FloatPool, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    x, shape = inputs[0], tensors[op.output].shape
    z = tensors[op.inputs[0]].zero_point
    out = np.empty(shape, object)
    for y, x_, c in indices(shape):
        rows = range(max(0, y * op.strides[0] - op.padding[0]), y * op.strides[0] - op.padding[0] + op.kernel[0])
        columns = range(max(0, x_ * op.strides[1] - op.padding[1]), x_ * op.strides[1] - op.padding[1] + op.kernel[1])
        inside = [x[i, j, c] for i in rows for j in columns if i < x.shape[0] and j < x.shape[1]]
        if op.kind == "max":
            out[y, x_, c] = max(inside)
        elif isinstance(op, p.FloatPool):
            out[y, x_, c] = math.fsum(map(float, inside)) / float(op.counts[y * shape[1] + x_])
        else:
            total = sum(int(v) - z for v in inside)
            out[y, x_, c] = requantized(total, op.requantize, y * shape[1] + x_)
    return out


def concatenate(op: p.Concatenate, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    return torch.cat([torch.tensor(x) for x in inputs], op.axis).numpy()


def copy(op: p.Copy, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    shape = tensors[op.output].shape
    out = [op.fill if op.fill is not None else 0] * math.prod(shape)
    flat = inputs[0].ravel()
    for at in indices(op.extents):
        source = op.in_offset + sum(i * s for i, s in zip(at, op.in_strides, strict=True))
        out[op.out_offset + sum(i * s for i, s in zip(at, op.out_strides, strict=True))] = flat[source]
    return np.array(out, object).reshape(shape)


def view(op: p.View, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    return inputs[0].reshape(tensors[op.output].shape)


def constant(op: p.Constant, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    return op.value


def lookup(op: p.Lookup, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    x = inputs[0]
    lowest = 0 if x.dtype == np.uint8 else -128
    out = np.empty(x.shape, object)
    for at in indices(x.shape):
        out[at] = op.table[int(x[at]) - lowest]
    return out


def softmax(op: p.Softmax, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    x = inputs[0]
    out = np.empty(x.shape, object)
    for at in indices(x.shape):
        row = [int(v) for v in x[at[:-1]]]
        e = [int(op.table[max(row) - v]) for v in row]
        assert sum(e) * 2 < 2**63
        share = nearest(Fraction(e[at[-1]] * op.factor, sum(e)))
        out[at] = clamp(share + op.zero_point, op.low, op.high)
    return out


def resize(op: p.Resize, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    x, z = inputs[0], tensors[op.inputs[0]].zero_point
    shape = tensors[op.output].shape
    out = np.empty(shape, object)
    for y, x_, c in indices(shape):
        (y0, y1, fy), (x0, x1, fx) = map(int, op.rows[y]), map(int, op.columns[x_])
        acc = 0
        for row, wy in ((y0, 1024 - fy), (y1, fy)):
            for column, wx in ((x0, 1024 - fx), (x1, fx)):
                acc += wy * wx * (int(x[row, column, c]) - z)
        assert -(2**31) <= acc < 2**31
        out[y, x_, c] = requantized(acc, op.requantize)
    return out


def matmul(op: p.MatMul, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    a, b = (x.astype(object) - tensors[name].zero_point for name, x in zip(op.inputs, inputs, strict=True))
    shape = tensors[op.output].shape
    out = np.empty(shape, object)
    for at in indices(shape):
        *lead, m, n = at
        acc = signed32(sum(int(u) * int(v) for u, v in zip(a[(*lead, m)], b[(*lead, slice(None), n)], strict=True)))
        out[at] = (
            requantized(acc, op.requantize) if op.requantize is not None else np.float32(acc) * np.float32(op.scale)
        )
    return out


def quantize(op: p.Quantize, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    target = tensors[op.output]
    out = np.empty(target.shape, object)
    for at in indices(target.shape):
        quotient = float(np.float32(inputs[0][at]) / np.float32(target.scale))
        # Python rounds halves to even.
        steps = 0 if math.isnan(quotient) else round(max(-1e6, min(1e6, quotient)))
        out[at] = clamp(steps + target.zero_point, op.low, op.high)
    return out


def dequantize(op: p.Dequantize, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    source = tensors[op.inputs[0]]
    out = np.empty(source.shape, np.float32)
    for at in indices(source.shape):
        out[at] = np.float32(int(inputs[0][at]) - source.zero_point) * np.float32(source.scale)
    return out


def float_convolution(op: p.FloatConvolution, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    x = inputs[0]
    if op.half:
        x, op = TORCH["half"](double(x)).numpy(), replace(op, weight=TORCH["half"](double(op.weight)).numpy())
    return np.clip(image_sums(op, x) + op.bias.astype(np.float64), op.low, op.high)


TORCH: Mapping[str, Callable[..., torch.Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
    "pow": torch.pow,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "erf": torch.erf,
    "sqrt": torch.sqrt,
    "log": torch.log,
    "neg": torch.neg,
    "abs": torch.abs,
    "reciprocal": torch.reciprocal,
    "half": lambda x: x.clamp(-65504, 65504).half().double(),
}


def double(x: Array) -> torch.Tensor:
    return torch.tensor(np.asarray(x), dtype=torch.float64)


def elementwise(op: p.FloatElementwise, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    given = [double(x) for x in inputs]
    if op.kind == "clip":
        return given[0].clamp(*map(float, op.constant)).numpy()
    if op.constant is not None:
        given = [double(op.constant), *given] if op.swapped else [*given, double(op.constant)]
    return TORCH[op.kind](*given).numpy()


def reduce(op: p.FloatReduce, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    functions = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax}
    return functions[op.kind](double(inputs[0]), op.axes, keepdim=True).numpy()


def float_softmax(op: p.FloatSoftmax, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    return torch.softmax(double(inputs[0]), -1).numpy()


def float_matmul(op: p.FloatMatMul, inputs: list[Array], tensors: Mapping[str, p.Tensor]) -> Array:
    return torch.matmul(*(double(x) for x in inputs)).numpy()


OPERATORS: Mapping[type[p.Op], Callable[[Any, list[Array], Mapping[str, p.Tensor]], Array]] = {
    p.Convolution: convolution,
    p.Add: add,
    p.Multiply: multiply,
    p.Pool: pool,
    p.Concatenate: concatenate,
    p.Copy: copy,
    p.Constant: constant,
    p.View: view,
    p.Lookup: lookup,
    p.Softmax: softmax,
    p.Resize: resize,
    p.MatMul: matmul,
    p.Quantize: quantize,
    p.Dequantize: dequantize,
    p.FloatConvolution: float_convolution,
    p.FloatElementwise: elementwise,
    p.FloatReduce: reduce,
    p.FloatPool: pool,
    p.FloatSoftmax: float_softmax,
    p.FloatMatMul: float_matmul,
}


def run(program: p.Program, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """All tensors of a program; float32 ones as float64 where the slow version computes so."""
    values = {name: np.asarray(value) for name, value in inputs.items()}
    for op in program.ops:
        target = program.tensors[op.output]
        made = OPERATORS[type(op)](op, [values[name] for name in op.inputs], program.tensors)
        kind = np.float64 if target.dtype == "float32" else target.dtype
        values[op.output] = np.asarray(made).reshape(target.shape).astype(kind)
    return values
