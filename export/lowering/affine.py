"""Multiplications and additions by constants of each channel: ``factor * x + offset``, in integers.

Behind a convolution they go into its weights' signs, its bias and its rescaling; on an 8-bit value of their own they
are a depthwise convolution of one pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.export.lowering.builder import Value
from compress.export.lowering.graph import Graph, Node
from compress.integer import program as p
from compress.integer.fixed_point import multipliers

if TYPE_CHECKING:
    from compress.export.lowering.lower import Walk

Reals = NDArray[np.float64]
LARGEST_BIAS = 2.0**30
WEIGHT = 127
"""Of a depthwise convolution that only scales; the bias is rounded to so small a share of the input's step."""


@dataclass(frozen=True, eq=False, slots=True)
class Affine:
    """``factor * x + offset`` of each channel: float64 (C,)."""

    factor: Reals
    offset: Reals

    def then(self, other: Affine) -> Affine:
        """``other`` of this."""
        return Affine(other.factor * self.factor, other.factor * self.offset + other.offset)


def _along(constant: NDArray[Any], shape: Sequence[int], axis: int) -> Reals | None:
    """A constant as one number an index of ``axis``; None where it differs along another axis, or adds axes."""
    if constant.ndim > len(shape):
        return None
    full = (1,) * (len(shape) - constant.ndim) + constant.shape
    if any(size != 1 for a, size in enumerate(full) if a != axis) or full[axis] not in (1, shape[axis]):
        return None
    return np.asarray(np.broadcast_to(constant.astype(np.float64).ravel(), (shape[axis],)))


def affine(graph: Graph, node: Node, name: str, shape: Sequence[int], axis: int) -> Affine | None:
    """What a node makes of its input ``name`` of ``shape``, if that is affine along ``axis``; else None."""
    if node.op == "BatchNormalization":
        held = [graph.constant(each) for each in node.inputs[1:5]]
        if node.inputs[0] != name or axis != 1 or any(each is None for each in held):
            return None
        scale, shift, mean, variance = (np.asarray(each, np.float64) for each in held)
        factor = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
        return Affine(factor, shift - mean * factor)
    if node.op not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2 or node.inputs.count(name) != 1:
        return None
    first = node.inputs[0] == name
    constant = graph.constant(node.inputs[1 if first else 0])
    along = None if constant is None else _along(np.asarray(constant), shape, axis)
    if along is None:
        return None
    zeros, ones = np.zeros(shape[axis]), np.ones(shape[axis])
    if node.op == "Add":
        return Affine(ones, along)
    if node.op == "Sub":
        return Affine(ones, -along) if first else Affine(-ones, along)
    if node.op == "Mul":
        return Affine(along, zeros)
    return Affine(1 / along, zeros) if first and along.all() else None


def followed(graph: Graph, node: Node, shape: Sequence[int], axis: int) -> tuple[list[Node], Affine]:
    """The affine nodes that alone use a node's result, one behind another, and what they come to."""
    passed: list[Node] = []
    total = Affine(np.ones(shape[axis]), np.zeros(shape[axis]))
    name = node.outputs[0]
    while name not in graph.outputs:
        users = graph.users.get(name, [])
        found = affine(graph, users[0], name, shape, axis) if len(users) == 1 else None
        if found is None:
            break
        passed.append(users[0])
        total = total.then(found)
        name = users[0].outputs[0]
    return passed, total


def absorbed(
    walk: Walk, node: Node, axis: int, weight: NDArray[np.int8], step: Reals, bias: p.Ints
) -> tuple[Node, NDArray[np.int8], Reals, p.Ints]:
    """An integer convolution with the affine nodes behind it: the last of them, and the weights (O, KH, KW, C),
    accumulator steps (O,) and bias (O,) with which it gives their result. The node itself where there are none, or
    where 32 bits or 8-bit weights can't hold the result."""
    shape = walk.graph.shapes.get(node.outputs[0])
    if shape is None or shape[axis] != step.size:
        return node, weight, step, bias
    passed, total = followed(walk.graph, node, shape, axis % len(shape))
    if not passed or not total.factor.all():
        return node, weight, step, bias
    steps = step * np.abs(total.factor)
    signs = np.sign(total.factor)
    turned = weight.astype(np.int16) * signs.astype(np.int16)[:, None, None, None]
    moved = np.rint(signs * bias + total.offset / steps)
    if turned.max() > 127 or not np.all(np.abs(moved) < LARGEST_BIAS):
        return node, weight, step, bias
    walk.passed(passed)
    return passed[-1], turned.astype(np.int8), steps, moved.astype(np.int32)


def lowered(walk: Walk, node: Node, name: str, axis: int | None = None) -> bool:
    """Lower an affine node on an 8-bit value, with those behind it, where the result is 8-bit too.

    Args:
        walk, node: where the walk is.
        name: the input that isn't constant.
        axis: of the channels; None: the one along which the constant differs.

    Returns:
        False, and nothing is done, where it can't be.
    """
    value, builder = walk.value(name, node), walk.builder
    if not builder.is_integer(value):
        return False
    candidates = [axis] if axis is not None else list(range(len(value.shape)))
    for each in candidates:
        first = affine(walk.graph, node, name, value.shape, each)
        if first is None or each not in value.axes:
            continue
        passed, rest = followed(walk.graph, node, value.shape, each)
        to = walk.destination(passed[-1] if passed else node)
        if to.grid is None:
            return False
        total = first.then(rest)
        steps = builder.tensors[value.tensor].scale * np.abs(total.factor) / WEIGHT
        steps = np.where(steps > 0, steps, to.grid.scale / 256)  # a factor of 0: the offset alone
        bias = np.rint(total.offset / steps)
        if not np.all(np.abs(bias) < LARGEST_BIAS):
            return False
        others = [a for a in value.axes if a != each]
        laid = builder.arranged(node.name, value, (*others, each))
        sizes, channels = [value.shape[a] for a in others], value.shape[each]
        image = (*sizes, channels) if len(sizes) == 2 else (prod(sizes), 1, channels)
        source = builder.view(node.name, laid, image)
        made = walk.output(to, image)
        weight = (np.sign(total.factor) * WEIGHT).astype(np.int8).reshape(-1, 1, 1, 1)
        how = p.Requantize(*multipliers(steps / to.grid.scale), to.grid.zero_point, to.grid.low, to.grid.high)
        fields = ((1, 1), (0, 0, 0, 0), (1, 1), channels, how)
        builder.add(p.Convolution, node.name, [source], made.name, weight, 8, bias.astype(np.int32), *fields)
        walk.passed(passed)
        inner = Value(made.name, image, (0, 1, 2))
        walk.set(to, Value(builder.view(node.name, inner, (*sizes, channels)), value.shape, laid.axes))
        return True
    return False


__all__ = ["Affine", "absorbed", "affine", "followed", "lowered"]
