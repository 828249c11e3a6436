"""MLPerf Tiny's int8 ResNet-8 as a program of ours, read through LiteRT's interpreter: its own weights and grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.integer.fixed_point import multipliers, small_multipliers
from compress.integer.program import Add, Convolution, Op, Pool, Program, Requantize, Softmax, Tensor, View

LEVELS: Mapping[int, tuple[int, int]] = {8: (-127, 127), 4: (-8, 7), 2: (-2, 1), 1: (-1, 1)}


def interpreter(path: Path) -> Any:
    """LiteRT's, plain kernels only."""
    from ai_edge_litert import interpreter as litert

    made = litert.Interpreter(
        str(path), experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    made.allocate_tensors()
    return made


def program(path: Path) -> Program:
    """The network of a TFLite file. An activation function is in the outputs' grids: their zero point is the lowest
    integer where it is a ReLU."""
    network = interpreter(path)
    details = {tensor["index"]: tensor for tensor in network.get_tensor_details()}
    tensors: dict[str, Tensor] = {}
    ops: list[Op] = []

    def tensor(index: int, image: bool = True) -> str:
        one = details[index]
        scale, zero = one["quantization"]
        shape = tuple(int(size) for size in one["shape"][1:])
        shape = (1,) * (3 - len(shape)) + shape if image else shape
        name = f"t{index}" if image else f"t{index}.flat"
        tensors.setdefault(name, Tensor(name, shape, "int8", float(scale), int(zero)))
        return name

    for op in network._get_ops_details():
        kind, output = op["op_name"], tensor(op["outputs"][0])
        name = f"{kind.lower()}_{output}"
        if kind in ("CONV_2D", "FULLY_CONNECTED"):
            ops.append(_convolution(name, network, details, op, tensors, tensor(op["inputs"][0]), output))
        elif kind == "ADD":
            ops.append(_add(name, tensors, (tensor(op["inputs"][0]), tensor(op["inputs"][1])), output))
        elif kind == "AVERAGE_POOL_2D":
            source = tensors[tensor(op["inputs"][0])]
            m, s = multipliers([source.scale / tensors[output].scale / (source.shape[0] * source.shape[1])])
            how = Requantize(m, s, tensors[output].zero_point, -128, 127)
            ops.append(Pool(name, (source.name,), output, "average", source.shape[:2], requantize=how))
        elif kind == "RESHAPE":
            ops.append(View(name, (tensor(op["inputs"][0]),), output))
        elif kind == "SOFTMAX":
            scale = tensors[tensor(op["inputs"][0])].scale
            table = np.round(2.0**20 * np.exp(-np.arange(256) * scale)).astype(np.int32)
            one = tensors[output]
            ops.append(
                Softmax(
                    name,
                    (tensor(op["inputs"][0]),),
                    output,
                    table,
                    round(1 / one.scale),
                    one.zero_point,
                    -128,
                    127,
                )
            )
        else:
            raise ValueError(f"no reading of {kind}")
    last = tensor(network.get_output_details()[0]["index"])
    flat = tensor(network.get_output_details()[0]["index"], image=False)
    ops.append(View("output", (last,), flat))
    first = tensor(network.get_input_details()[0]["index"])
    shapes = {first: tuple(tensors[first].shape[axis] for axis in (2, 0, 1)), flat: tensors[flat].shape}
    return Program(tensors, tuple(ops), (first,), (flat,), shapes)


def _convolution(
    name: str, network: Any, details: Mapping[int, Any], op: Any, tensors: dict[str, Tensor], source: str, output: str
) -> Convolution:
    weight, bias = (network.get_tensor(index) for index in op["inputs"][1:3])
    if weight.ndim == 2:
        weight = weight[:, None, None, :]
    scales = details[op["inputs"][1]]["quantization_parameters"]["scales"].astype(np.float64)
    factors = np.broadcast_to(scales, len(weight)) * tensors[source].scale / tensors[output].scale
    m, s = multipliers(factors)
    (height, width), (out_h, out_w) = tensors[source].shape[:2], tensors[output].shape[:2]
    strides = (height // out_h, width // out_w)
    extra = [max((out - 1) * stride + size - full, 0) for out, stride, size, full in zip(
        (out_h, out_w), strides, weight.shape[1:3], (height, width), strict=True)]  # fmt: skip
    padding = (extra[0] // 2, extra[1] // 2, extra[0] - extra[0] // 2, extra[1] - extra[1] // 2)
    how = Requantize(m, s, tensors[output].zero_point, -128, 127)
    return Convolution(
        name, (source,), output, weight, 8, bias.astype(np.int32), strides, padding, requantize=how
    )  # fmt: skip


def _add(name: str, tensors: Mapping[str, Tensor], inputs: tuple[str, str], output: str) -> Add:
    factors, shift = small_multipliers([tensors[each].scale / tensors[output].scale for each in inputs])
    return Add(name, inputs, output, factors, shift, tensors[output].zero_point, -128, 127)


def with_bits(network: Program, bits: int) -> Program:
    """The network with all weights rounded to ``bits`` bits, one scale a channel: for sizes and counts. Nothing is
    done for its accuracy, which such rounding ruins."""
    return replace(network, ops=tuple(_rounded(op, bits) if isinstance(op, Convolution) else op for op in network.ops))


def _rounded(op: Convolution, bits: int) -> Convolution:
    if bits == 8:
        return op
    assert op.requantize is not None
    low, high = LEVELS[bits]
    weight = op.weight.astype(np.float64).reshape(len(op.weight), -1)
    if bits == 1:
        step: NDArray[np.float64] = np.maximum(np.abs(weight).mean(axis=1), 1e-9)
        integers = np.where(weight < 0, -1, 1)
    else:
        step = np.maximum(np.abs(weight).max(axis=1), 1e-9) / -low
        integers = np.clip(np.round(weight / step[:, None]), low, high)
    factors = op.requantize.multiplier * 2.0 ** -op.requantize.shift.astype(np.float64) * step
    m, s = multipliers(factors)
    return replace(
        op,
        weight=integers.astype(np.int8).reshape(op.weight.shape),
        weight_bits=bits,
        bias=np.round(op.bias / step).astype(np.int32),
        requantize=replace(op.requantize, multiplier=m, shift=s),
    )


__all__ = ["interpreter", "program", "with_bits"]
