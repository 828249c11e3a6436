"""Rules of additions, products and other operators on two values, of normalization and softmax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.export.lowering import affine, functions
from compress.export.lowering.builder import Value
from compress.export.lowering.errors import CannotLower
from compress.export.lowering.functions import Reals
from compress.export.lowering.graph import Node
from compress.export.lowering.moves import reshaped
from compress.export.lowering.products import requantize
from compress.integer import program as p
from compress.integer.fixed_point import small_multipliers
from compress.integer.reference import BINARY as NUMPY

if TYPE_CHECKING:
    from compress.export.lowering.lower import Walk

BINARY: Mapping[str, str] = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "Max": "max",
    "Min": "min",
    "Pow": "pow",
}
SOFTMAX_ONE = 1 << 20
"""What e^0 is in the table of an integer softmax."""


def _binary(walk: Walk, node: Node) -> None:
    if len(node.inputs) == 1:
        walk.set(node.outputs[0], walk.value(node.inputs[0], node))
        return
    if len(node.inputs) > 2:
        raise CannotLower(f"{len(node.inputs)} inputs; two are supported", node.name, node.op)
    constants = [walk.graph.constant(name) for name in node.inputs]
    if constants[0] is not None or constants[1] is not None:
        swapped = constants[0] is not None
        _with_constant(walk, node, node.inputs[1 if swapped else 0], constants[0 if swapped else 1], swapped)
        return
    a, b = (walk.value(name, node) for name in node.inputs)
    if a.tensor == b.tensor and a.axes == b.axes and a.shape == b.shape:
        domain_a, domain_b = (walk.builder.lookup_domain(each) for each in (a, b))
        if domain_a is not None and domain_b is not None and not (a.function is None and b.function is None):
            with np.errstate(all="ignore"):
                joint = np.asarray(NUMPY[BINARY[node.op]](domain_a, domain_b), np.float32)
            walk.set(node.outputs[0], Value(a.tensor, a.shape, a.axes, joint))
            return
    _two(walk, node, a, b)


def _with_constant(walk: Walk, node: Node, name: str, constant: Any, swapped: bool) -> None:
    value, constant = walk.value(name, node), np.asarray(constant, np.float32)
    domain = walk.builder.lookup_domain(value)
    kind = BINARY[node.op]
    if constant.size == 1 and domain is not None and np.ndim(constant) <= len(value.shape):
        pair = (constant.ravel(), domain) if swapped else (domain, constant.ravel())
        with np.errstate(all="ignore"):
            walk.set(
                node.outputs[0],
                Value(value.tensor, value.shape, value.axes, np.asarray(NUMPY[kind](*pair), np.float32)),
            )
        return
    if affine.lowered(walk, node, name):
        return
    shape = np.broadcast_shapes(value.shape, constant.shape)
    to = walk.destination(node)
    if walk.builder.tensors[value.tensor].dtype != "float32":
        walk.builder.island(
            node.name, node.op, "its input or its result isn't 8-bit, or its constant differs along several axes"
        )
    real = walk.builder.real(node.name, _ranked(value, len(shape)))
    if real.shape != shape:
        # The constant is the larger one: all axes of the result in the file's order.
        real = walk.builder.arranged(node.name, real, tuple(range(len(shape))))
    full = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    laid = full.transpose([*real.axes, *(a for a in range(len(shape)) if a not in real.axes)])
    laid = laid.reshape(laid.shape[: len(real.axes)])
    reals = Reals(walk, node, tuple(shape[axis] for axis in real.axes))
    made = reals.apply(kind, real.tensor, constant=laid.reshape(()) if laid.size == 1 else laid, swapped=swapped)
    walk.finish_real(node, to, made, shape, real.axes)


def _ranked(value: Value, rank: int) -> Value:
    """The value with axes of size 1 in front, up to ``rank``."""
    more = rank - len(value.shape)
    if not more:
        return value
    return Value(value.tensor, (1,) * more + value.shape, tuple(axis + more for axis in value.axes), value.function)


def _two(walk: Walk, node: Node, a: Value, b: Value) -> None:
    builder = walk.builder
    shape = np.broadcast_shapes(a.shape, b.shape)
    a, b = _ranked(a, len(shape)), _ranked(b, len(shape))
    main = next((each for each in (a, b) if each.shape == shape), None)
    axes = main.axes if main is not None else tuple(range(len(shape)))
    to = walk.destination(node)
    whole = [builder.integer(node.name, each) for each in (a, b)]
    laid_shape = tuple(shape[axis] for axis in axes)
    if to.grid is not None and None not in whole and node.op in ("Add", "Sub", "Mul"):
        inputs = [builder.arranged(node.name, each, axes).tensor for each in whole if each is not None]
        scales = [builder.tensors[name].scale for name in inputs]
        made = walk.output(to, laid_shape)
        if node.op == "Mul":
            how = requantize(np.array([scales[0] * scales[1]]), to)
            builder.add(p.Multiply, node.name, inputs, made.name, how)
        else:
            signs = (1, -1 if node.op == "Sub" else 1)
            ms, shift = small_multipliers([s * sign / to.grid.scale for s, sign in zip(scales, signs, strict=True)])
            ends = (to.grid.zero_point, to.grid.low, to.grid.high)
            builder.add(p.Add, node.name, inputs, made.name, ms, shift, *ends)
        walk.set(to, Value(made.name, shape, axes))
        return
    reals = [builder.arranged(node.name, builder.real(node.name, each), axes).tensor for each in (a, b)]
    if any(builder.tensors[each.tensor].dtype != "float32" for each in (a, b)):
        builder.island(node.name, node.op, "its result or an input isn't 8-bit")
    made_real = Reals(walk, node, laid_shape).apply(BINARY[node.op], *reals)
    walk.finish_real(node, to, made_real, shape, axes)


def _softmax(walk: Walk, node: Node) -> None:
    value = walk.value(node.inputs[0], node)
    old = walk.graph.opset < 13
    axis = int(node.attributes.get("axis", 1 if old else -1)) % len(value.shape)
    if old and prod(value.shape[axis + 1 :]) > 1:
        said = f"before opset 13 it goes over all axes from {axis} on; export the network with opset 13 or later"
        raise CannotLower(said, node.name, node.op)
    order = (*(a for a in value.axes if a != axis), axis)
    value = walk.builder.arranged(node.name, value, order)
    to = walk.destination(node)
    tensor = walk.builder.tensors[value.tensor]
    if node.op == "Softmax" and to.grid is not None and walk.builder.is_integer(value):
        distances = np.arange(256, dtype=np.float64)
        table = np.rint(SOFTMAX_ONE * np.exp(-distances * tensor.scale)).astype(np.int32)
        made = walk.output(to, tensor.shape)
        ends = (to.grid.zero_point, to.grid.low, to.grid.high)
        walk.builder.add(p.Softmax, node.name, [value.tensor], made.name, table, round(1 / to.grid.scale), *ends)
        walk.set(to, Value(made.name, value.shape, order))
        return
    if tensor.dtype != "float32":
        walk.builder.island(node.name, node.op, "its result isn't 8-bit")
    real = walk.builder.real(node.name, value)
    made_real = walk.builder.tensor(f"{node.outputs[0]}_softmax", tensor.shape, "float32")
    walk.builder.add(p.FloatSoftmax, node.name, [real.tensor], made_real.name)
    name = made_real.name
    if node.op == "LogSoftmax":
        name = Reals(walk, node, tensor.shape).apply("log", name)
    walk.finish_real(node, to, name, value.shape, order)


def _normalized(walk: Walk, node: Node, axes_of: Any) -> None:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift over some of the axes, in float32."""
    value = walk.value(node.inputs[0], node)
    to = walk.destination(node)
    if walk.builder.tensors[value.tensor].dtype != "float32":
        walk.builder.island(node.name, node.op, "normalization by the input's own mean is done in float")
    real = walk.builder.real(node.name, value)
    shape = walk.builder.tensors[real.tensor].shape
    over = axes_of(value)
    axes = tuple(index for index, axis in enumerate(real.axes) if axis in over)
    reals = Reals(walk, node, shape)
    result = _centred(walk, node, real.tensor, axes)
    for kind, name in (("mul", node.input(1)), ("add", node.input(2))):
        if name:
            constant = walk.graph.constant(name)
            if constant is None:
                raise CannotLower("its parameters are computed", node.name, node.op)
            result = reals.apply(kind, result, constant=_along(value, real, constant, node.op))
    walk.finish_real(node, to, result, value.shape, real.axes)


def _centred(walk: Walk, node: Node, tensor: str, axes: tuple[int, ...]) -> str:
    """(x - mean) / sqrt(variance + epsilon) over ``axes`` of a float32 tensor."""
    reals = Reals(walk, node, walk.builder.tensors[tensor].shape)
    centred = reals.apply("sub", tensor, reals.reduce("mean", tensor, axes))
    variance = reals.reduce("mean", reals.apply("mul", centred, centred), axes)
    small = Reals(walk, node, walk.builder.tensors[variance].shape)
    spread = small.apply("sqrt", small.apply("add", variance, constant=node.attributes.get("epsilon", 1e-5)))
    return reals.apply("div", centred, spread)


def _along(value: Value, real: Value, constant: NDArray[Any], op: str) -> NDArray[Any]:
    """Parameters in the arrangement of the tensor: of channels (axis 1), or of the last axes for layer norm."""
    rank = len(value.shape)
    if op == "LayerNormalization":
        full = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
    else:
        full = constant.reshape((1, -1) + (1,) * (rank - 2))
    laid = full.transpose([*real.axes, *(a for a in range(rank) if a not in real.axes)])
    return np.asarray(laid.reshape(laid.shape[: len(real.axes)]))


def _layer_norm(walk: Walk, node: Node) -> None:
    first = int(node.attributes.get("axis", -1))
    _normalized(walk, node, lambda value: range(first % len(value.shape), len(value.shape)))


def _instance_norm(walk: Walk, node: Node) -> None:
    _normalized(walk, node, lambda value: range(2, len(value.shape)))


def _group_norm(walk: Walk, node: Node) -> None:
    """As a normalization of (1, groups, C / groups, H, W) over its last three axes."""
    value = walk.value(node.inputs[0], node)
    groups = int(node.attributes["num_groups"])
    scale, shift = (walk.graph.constant(name) for name in node.inputs[1:3])
    channels = value.shape[1]
    if scale is None or shift is None:
        raise CannotLower("its parameters are computed", node.name, node.op)
    to = walk.destination(node)
    if walk.builder.tensors[value.tensor].dtype != "float32":
        walk.builder.island(node.name, node.op, "normalization by the input's own mean is done in float")
    real = walk.builder.real(node.name, value)
    split = reshaped(walk, node, real, (1, groups, prod(value.shape[1:]) // groups))
    laid = walk.builder.arranged(node.name, split, (1, 2))
    centred = _centred(walk, node, laid.tensor, (1,))
    back = reshaped(walk, node, replace(laid, tensor=centred), value.shape)
    reals = Reals(walk, node, walk.builder.tensors[back.tensor].shape)
    each = [np.repeat(c, channels // c.size) for c in (scale, shift)]  # one a group before opset 21
    result = reals.apply("mul", back.tensor, constant=_along(value, back, each[0], node.op))
    result = reals.apply("add", result, constant=_along(value, back, each[1], node.op))
    walk.finish_real(node, to, result, value.shape, back.axes)


def _batch_norm(walk: Walk, node: Node) -> None:
    if affine.lowered(walk, node, node.inputs[0], 1):
        return
    value = walk.value(node.inputs[0], node)
    held = [walk.graph.constant(name) for name in node.inputs[1:5]]
    if any(each is None for each in held):
        raise CannotLower("its parameters are computed", node.name, node.op)
    scale, shift, mean, variance = (np.asarray(each, np.float64) for each in held)
    factor = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    to = walk.destination(node)
    if walk.builder.tensors[value.tensor].dtype != "float32":
        walk.builder.island(node.name, node.op, "its input or its result isn't 8-bit")
    real = walk.builder.real(node.name, value)
    reals = Reals(walk, node, walk.builder.tensors[real.tensor].shape)
    scaled = reals.apply("mul", real.tensor, constant=_along(value, real, factor, node.op))
    result = reals.apply("add", scaled, constant=_along(value, real, shift - mean * factor, node.op))
    walk.finish_real(node, to, result, value.shape, real.axes)


def _slopes(walk: Walk, node: Node) -> None:
    """PRelu: max(x, 0) + slope * min(x, 0)."""
    slope = walk.graph.constant(node.inputs[1])
    value = walk.value(node.inputs[0], node)
    domain = walk.builder.lookup_domain(value)
    if slope is None:
        raise CannotLower("its slope is computed", node.name, node.op)
    if domain is not None and slope.size == 1:
        bent = np.where(domain < 0, domain * np.float32(slope.ravel()[0]), domain).astype(np.float32)
        walk.set(node.outputs[0], Value(value.tensor, value.shape, value.axes, bent))
        return
    to = walk.destination(node)
    if domain is not None:
        walk.builder.island(node.name, node.op, "it has a slope a channel")
    real = walk.builder.real(node.name, value)
    reals = Reals(walk, node, walk.builder.tensors[real.tensor].shape)
    channels = slope.reshape(-1)
    laid = channels.reshape(()) if channels.size == 1 else _along(value, real, channels, "channels")
    below = reals.apply("mul", reals.apply("min", real.tensor, constant=0.0), constant=laid)
    made = reals.apply("add", reals.apply("relu", real.tensor), below)
    walk.finish_real(node, to, made, value.shape, real.axes)


RULES = {
    **functions.RULES,
    **dict.fromkeys(BINARY, _binary),
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "BatchNormalization": _batch_norm,
    "PRelu": _slopes,
}
