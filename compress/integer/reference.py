"""The definition of every operator of a program, in numpy: slow, plain, and what compiled code must equal bit for bit.

:func:`run` executes a program on one input. Integer operators are exact in any order of summation; float32 ones are
computed in the order that numpy chooses, so compiled code agrees with them to rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.integer import program as p
from compress.integer.fixed_point import rescale, wrap

Array = NDArray[Any]
Tensors = Mapping[str, p.Tensor]


def run(program: p.Program, inputs: Mapping[str, Array], *, every: bool = False) -> dict[str, Array]:
    """The outputs for one input (no batch), or with ``every`` all tensors.

    Args:
        program: what to run.
        inputs: by name, in the shapes and types of the program's tensors.
        every: keep what lies between as well.

    Raises:
        ValueError: an input has another shape or type.
    """
    values: dict[str, Array] = {}
    for name in program.inputs:
        tensor, value = program.tensors[name], np.asarray(inputs[name])
        if value.shape != tensor.shape or value.dtype != np.dtype(tensor.dtype):
            raise ValueError(
                f"input {name!r} must be {tensor.dtype} {tensor.shape}, not {value.dtype} {tuple(value.shape)}"
            )
        values[name] = value
    for op in program.ops:
        result = OPERATORS[type(op)](op, [values[name] for name in op.inputs], program.tensors)
        tensor = program.tensors[op.output]
        values[op.output] = result.astype(tensor.dtype).reshape(tensor.shape)
    return values if every else {name: values[name] for name in program.outputs}


def requantized(accumulators: Array, how: p.Requantize, multiplier: Array, shift: Array) -> Array:
    """``clamp(rescale(acc) + zero_point)``; see :class:`compress.integer.program.Requantize`."""
    return np.clip(rescale(accumulators, multiplier, shift) + how.zero_point, how.low, how.high)


def windows(image: Array, op: Any, kernel: tuple[int, int], dilations: tuple[int, int], fill: Any) -> Array:
    """(OH, OW, KH, KW, C) views of an image (H, W, C) padded with ``fill``."""
    top, left, bottom, right = op.padding
    padded = np.pad(image, ((top, bottom), (left, right), (0, 0)), constant_values=fill)
    span = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, (span[0], span[1]), axis=(0, 1))
    strided = view[:: op.strides[0], :: op.strides[1], :, :: dilations[0], :: dilations[1]]
    return np.moveaxis(strided, 2, 4)


def _convolve(image: Array, op: Any, weight: Array) -> Array:
    """(OH, OW, O) sums; the image already has its zero point taken off."""
    outputs, rows, columns, _ = weight.shape
    patches = windows(image, op, (rows, columns), op.dilations, 0)
    height, width = patches.shape[:2]
    split = patches.reshape(height * width, rows * columns, op.groups, -1)
    if op.groups > 1 and weight.shape[3] == 1:
        each = outputs // op.groups
        kernel = weight.reshape(op.groups, each, rows * columns)
        sums = np.einsum("ptg,get->pge", split[..., 0], kernel)
        return np.asarray(sums.reshape(height, width, outputs))
    kernel = weight.reshape(op.groups, outputs // op.groups, -1)
    parts = [split[:, :, g].reshape(height * width, -1) @ kernel[g].T for g in range(op.groups)]
    return np.concatenate(parts, axis=1).reshape(height, width, outputs)


def _convolution(op: p.Convolution, inputs: list[Array], tensors: Tensors) -> Array:
    z = tensors[op.inputs[0]].zero_point
    # Sums of products of 9 and 8 bits are exact in float64 up to 2^53, and BLAS is fast there.
    sums = _convolve(inputs[0].astype(np.float64) - z, op, op.weight.astype(np.float64))
    accumulators = wrap(sums.astype(np.int64) + op.bias)
    if op.requantize is None:
        assert op.scale is not None
        return np.asarray(accumulators.astype(np.float32) * op.scale)
    return requantized(accumulators, op.requantize, op.requantize.multiplier, op.requantize.shift)


def _add(op: p.Add, inputs: list[Array], tensors: Tensors) -> Array:
    terms: list[Array] = [
        (x.astype(np.int64) - tensors[name].zero_point) * m
        for name, x, m in zip(op.inputs, inputs, op.multipliers, strict=True)
    ]
    total = terms[0] if len(terms) == 1 else np.add(*terms)
    return np.clip(rescale(total, 1, op.shift) + op.zero_point, op.low, op.high)


def _multiply(op: p.Multiply, inputs: list[Array], tensors: Tensors) -> Array:
    a, b = (x.astype(np.int64) - tensors[name].zero_point for name, x in zip(op.inputs, inputs, strict=True))
    return requantized(a * b, op.requantize, op.requantize.multiplier, op.requantize.shift)


def _pool(op: p.Pool, inputs: list[Array], tensors: Tensors) -> Array:
    image = inputs[0].astype(np.int64)
    if op.kind == "max":
        lowest = p.LIMITS[tensors[op.inputs[0]].dtype][0]
        return np.asarray(windows(image, op, op.kernel, (1, 1), lowest).max(axis=(2, 3)))
    assert op.requantize is not None
    z = tensors[op.inputs[0]].zero_point
    sums = windows(image - z, op, op.kernel, (1, 1), 0).sum(axis=(2, 3))
    pixels = (*sums.shape[:2], 1) if op.requantize.multiplier.size > 1 else (1, 1, 1)
    multiplier, shift = (each.reshape(pixels) for each in (op.requantize.multiplier, op.requantize.shift))
    return requantized(sums, op.requantize, multiplier, shift)


def _concatenate(op: p.Concatenate, inputs: list[Array], tensors: Tensors) -> Array:
    return np.concatenate(inputs, axis=op.axis)


def _copy(op: p.Copy, inputs: list[Array], tensors: Tensors) -> Array:
    tensor = tensors[op.output]
    out = np.full(tensor.elements, 0 if op.fill is None else op.fill, tensor.dtype)
    grid = np.indices(op.extents).reshape(len(op.extents), -1)
    source = op.in_offset + np.asarray(op.in_strides, np.int64) @ grid
    out[op.out_offset + np.asarray(op.out_strides, np.int64) @ grid] = inputs[0].ravel()[source]
    return out


def _constant(op: p.Constant, inputs: list[Array], tensors: Tensors) -> Array:
    return np.asarray(op.value)


def _view(op: p.View, inputs: list[Array], tensors: Tensors) -> Array:
    return inputs[0]


def _lookup(op: p.Lookup, inputs: list[Array], tensors: Tensors) -> Array:
    return np.asarray(op.table[inputs[0].astype(np.int64) - p.LIMITS[tensors[op.inputs[0]].dtype][0]])


def _softmax(op: p.Softmax, inputs: list[Array], tensors: Tensors) -> Array:
    x = inputs[0].astype(np.int64)
    e = op.table.astype(np.int64)[x.max(axis=-1, keepdims=True) - x]
    total = e.sum(axis=-1, keepdims=True)
    return np.asarray(np.clip((2 * e * op.factor + total) // (2 * total) + op.zero_point, op.low, op.high))


RESIZE_BITS = 10
"""Bits of the weights of a bilinear resize along one axis."""


def _resize(op: p.Resize, inputs: list[Array], tensors: Tensors) -> Array:
    x = inputs[0].astype(np.int64) - tensors[op.inputs[0]].zero_point
    one = 1 << RESIZE_BITS
    y0, y1, fy = (op.rows[:, k, None, None].astype(np.int64) for k in range(3))
    x0, x1, fx = (op.columns[None, :, k].astype(np.int64) for k in range(3))
    fx = fx[..., None]

    def row(y: Array) -> Array:
        return np.asarray(x[y[:, :, 0], x0] * (one - fx) + x[y[:, :, 0], x1] * fx)

    sums = row(y0) * (one - fy) + row(y1) * fy
    return requantized(sums, op.requantize, op.requantize.multiplier, op.requantize.shift)


def _matmul(op: p.MatMul, inputs: list[Array], tensors: Tensors) -> Array:
    a, b = (x.astype(np.float64) - tensors[name].zero_point for name, x in zip(op.inputs, inputs, strict=True))
    accumulators = wrap((a @ b).astype(np.int64))
    if op.requantize is None:
        assert op.scale is not None
        return accumulators.astype(np.float32) * np.float32(op.scale)
    return requantized(accumulators, op.requantize, op.requantize.multiplier, op.requantize.shift)


def _quantize(op: p.Quantize, inputs: list[Array], tensors: Tensors) -> Array:
    out = tensors[op.output]
    return quantized(inputs[0], out.scale, out.zero_point, op.low, op.high)


def quantized(x: Array, scale: float, zero_point: int, low: int, high: int) -> Array:
    """float32 to integers as ONNX's QuantizeLinear rounds: halves to even, of the float32 quotient."""
    steps = np.rint(x.astype(np.float32) / np.float32(scale)).astype(np.float64)
    return np.asarray(np.clip(np.nan_to_num(steps, nan=0.0) + zero_point, low, high).astype(np.int64))


def _dequantize(op: p.Dequantize, inputs: list[Array], tensors: Tensors) -> Array:
    source = tensors[op.inputs[0]]
    return np.asarray((inputs[0].astype(np.int64) - source.zero_point).astype(np.float32) * np.float32(source.scale))


def _float_convolution(op: p.FloatConvolution, inputs: list[Array], tensors: Tensors) -> Array:
    x, weight = (rounded(inputs[0]), rounded(op.weight)) if op.half else (inputs[0], op.weight)
    return np.clip(_convolve(x, op, weight) + op.bias, np.float32(op.low), np.float32(op.high))


def _erf(x: Array) -> Array:
    from scipy.special import erf

    return np.asarray(erf(x))


def rounded(x: Array) -> Array:
    """float32 as float16 has it, no farther than its largest number; float32 again."""
    return np.asarray(np.clip(x, -p.LARGEST_HALF, p.LARGEST_HALF).astype(np.float16).astype(np.float32))


UNARY: Mapping[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x.astype(np.float64))),
    "tanh": np.tanh,
    "exp": np.exp,
    "erf": _erf,
    "sqrt": np.sqrt,
    "log": np.log,
    "neg": np.negative,
    "abs": np.abs,
    "reciprocal": np.reciprocal,
    "half": rounded,
}
"""float32 functions of one tensor."""
BINARY: Mapping[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
}
"""float32 functions of two tensors."""


def _float_elementwise(op: p.FloatElementwise, inputs: list[Array], tensors: Tensors) -> Array:
    with np.errstate(all="ignore"):
        if op.kind == "clip":
            assert op.constant is not None
            return np.clip(inputs[0], op.constant[0], op.constant[1])
        if op.kind in UNARY:
            return UNARY[op.kind](inputs[0])
        operands = [*inputs, op.constant] if op.constant is not None else inputs
        first, second = reversed(operands) if op.swapped else operands
        return BINARY[op.kind](first, second)


def _float_reduce(op: p.FloatReduce, inputs: list[Array], tensors: Tensors) -> Array:
    functions: dict[str, Any] = {"mean": np.mean, "sum": np.sum, "max": np.max}
    return np.asarray(functions[op.kind](inputs[0], axis=op.axes, keepdims=True))


def _float_pool(op: p.FloatPool, inputs: list[Array], tensors: Tensors) -> Array:
    if op.kind == "max":
        return np.asarray(windows(inputs[0], op, op.kernel, (1, 1), -np.inf).max(axis=(2, 3)))
    assert op.counts is not None
    sums = windows(inputs[0], op, op.kernel, (1, 1), 0).sum(axis=(2, 3))
    return np.asarray(sums / op.counts.reshape(*sums.shape[:2], 1))


def _float_softmax(op: p.FloatSoftmax, inputs: list[Array], tensors: Tensors) -> Array:
    e = np.exp(inputs[0] - inputs[0].max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def _float_matmul(op: p.FloatMatMul, inputs: list[Array], tensors: Tensors) -> Array:
    return np.asarray(inputs[0] @ inputs[1])


OPERATORS: Mapping[type[p.Op], Callable[[Any, list[Array], Tensors], Array]] = {
    p.Convolution: _convolution,
    p.Add: _add,
    p.Multiply: _multiply,
    p.Pool: _pool,
    p.Concatenate: _concatenate,
    p.Copy: _copy,
    p.Constant: _constant,
    p.View: _view,
    p.Lookup: _lookup,
    p.Softmax: _softmax,
    p.Resize: _resize,
    p.MatMul: _matmul,
    p.Quantize: _quantize,
    p.Dequantize: _dequantize,
    p.FloatConvolution: _float_convolution,
    p.FloatElementwise: _float_elementwise,
    p.FloatReduce: _float_reduce,
    p.FloatPool: _float_pool,
    p.FloatSoftmax: _float_softmax,
    p.FloatMatMul: _float_matmul,
}
"""What each operator computes: ``(op, inputs, tensors) -> output`` before it is put into the output's type."""
