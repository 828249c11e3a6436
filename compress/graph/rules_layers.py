"""What layers with weights, normalizations and elementwise operators tie."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from compress.graph.labels import Indices
from compress.graph.layout import Factor, Layout, at, covered, plain, without
from compress.graph.trace import argument, kind, shape
from compress.graph.walk import Statistic, Walk, aligned, fixed, is_tensor, source

_INPUT = "it reads the network's input"
AVERAGES = frozenset(["mean", "var", "std", "var_mean", "sum", "linalg_vector_norm"])
"""Reductions over channels that the reference can take over those that stay (:mod:`compress.graph.reference`)."""

_SPACE = "it mixes the positions along this axis"


def _axis(walk: Walk, node: fx.Node, operand: Any, axis: int) -> Indices | None:
    """The labels of a weight's axis, alone."""
    return walk.single(node, walk.of(operand), axis)[0] if is_tensor(operand) else None


def _bias(walk: Walk, node: fx.Node, out: Indices | None, name: str = "bias") -> None:
    bias = argument(node, name)
    if is_tensor(bias):
        walk.tie(node, out, _axis(walk, node, bias, 0), "its bias isn't a parameter")


def convolution(walk: Walk, node: fx.Node) -> Layout:
    """Weight (out, in / groups, ...): inputs tie to axis 1, the output takes axis 0.

    With groups, a channel goes together with the channels at its position in every other group, so
    that groups stay equal; in a depthwise convolution each channel goes by itself.
    """
    x, weight = source(node), source(node, 1)
    groups, space = int(argument(node, "groups", 1)), len(shape(weight)) - 2
    channel = len(shape(x)) - space - 1
    held = walk.hold(node, walk.of(x), range(channel + 1, len(shape(x))), _SPACE)
    incoming, rest = walk.single(node, held, channel)
    out, inner = _axis(walk, node, weight, 0), _axis(walk, node, weight, 1)
    _bias(walk, node, out)
    per_group, outputs = shape(weight)[1], shape(weight)[0]
    if groups == 1:
        walk.tie(node, incoming, inner, _INPUT)
    elif per_group == 1:
        if incoming is not None and out is not None:
            walk.labels.tie(np.repeat(incoming, outputs // groups), out)
        else:
            out = walk.tie(node, incoming, out, _INPUT)
    else:
        if out is not None:
            grid = out.reshape(groups, -1)
            walk.labels.tie(grid[:1], grid)
        if incoming is not None and inner is not None:
            walk.labels.tie(incoming.reshape(groups, -1), inner[None, :])
        else:
            walk.tie(node, incoming, inner, _INPUT)
    _roles(walk, out, inner)
    return (*rest, *plain([None] * channel + [out]))


def transposed_convolution(walk: Walk, node: fx.Node) -> Layout | list[Layout]:
    """Weight (in, out / groups, ...); with groups its channels stay, unless each is a group by itself."""
    x, weight = source(node), source(node, 1)
    groups, space = int(argument(node, "groups", 1)), len(shape(weight)) - 2
    if groups != 1 and (groups != shape(weight)[0] or shape(weight)[1] != 1):
        return fixed(walk, node, "grouped transposed convolutions keep their channels")
    channel = len(shape(x)) - space - 1
    held = walk.hold(node, walk.of(x), range(channel + 1, len(shape(x))), _SPACE)
    incoming, rest = walk.single(node, held, channel)
    inner = _axis(walk, node, weight, 0)
    tied = walk.tie(node, incoming, inner, _INPUT)
    depthwise = inner if tied is not None else None
    out = depthwise if groups != 1 else _axis(walk, node, weight, 1)
    _bias(walk, node, out)
    _roles(walk, out, inner if groups == 1 else None)
    return (*rest, *plain([None] * channel + [out]))


def linear(walk: Walk, node: fx.Node) -> Layout:
    """Weight (out, in): the input's last axis ties to axis 1, the output's last axis is axis 0."""
    x, weight = source(node), source(node, 1)
    last = len(shape(x)) - 1
    incoming, rest = walk.single(node, walk.of(x), last)
    out, inner = _axis(walk, node, weight, 0), _axis(walk, node, weight, 1)
    walk.tie(node, incoming, inner, _INPUT)
    _bias(walk, node, out)
    _roles(walk, out, inner)
    return (*rest, *plain([None] * last + [out]))


def _roles(walk: Walk, out: Indices | None, inner: Indices | None) -> None:
    if out is not None:
        walk.made.append(out)
    if inner is not None:
        walk.read.append(inner)


def embedding(walk: Walk, node: fx.Node) -> Layout:
    """Weight (vocabulary, width): the output's last axis is the width; the vocabulary stays."""
    weight = walk.hold(node, walk.of(source(node)), 0, "indices point into it")
    out = walk.single(node, weight, 1)[0]
    if out is not None:
        walk.made.append(out)
    return plain([None] * (len(shape(node)) - 1) + [out])


def batch_norm(walk: Walk, node: fx.Node) -> Layout:
    """Each of the vectors (two of instance norm, four of batch norm) ties to the channel axis."""
    x = source(node)
    if len(shape(x)) < 2:
        raise ValueError
    channels, rest = walk.single(node, walk.of(x), 1)
    rest = walk.hold(node, rest, range(2, len(shape(x))), _SPACE)
    for vector in node.args[1:5]:
        if is_tensor(vector):
            walk.tie(node, channels, _axis(walk, node, vector, 0), "it normalizes the network's input")
    return (*rest, *plain([None, channels]))


def layer_norm(walk: Walk, node: fx.Node) -> Layout:
    """Channels can go, which changes the mean and variance of those that stay."""
    x = source(node)
    normalized = len(list(argument(node, "normalized_shape")))
    layout, rank = walk.of(x), len(shape(x))
    axes = range(rank - normalized, rank)
    # A split axis (channels of a head) stays whole: the statistics then are those of each head.
    for axis in axes:
        factor = at(layout, axis)
        if factor is not None and (factor.joint or (normalized > 1 and covered(layout) & set(axes) != {axis})):
            layout = walk.hold(node, layout, axis, "it normalizes several axes")
    for name in ("weight", "bias"):
        vector = argument(node, name)
        if is_tensor(vector):
            layout = _affine(walk, node, layout, vector, rank)
    for axis in axes:
        factor = at(layout, axis)
        if factor is not None:
            walk.statistics.append(Statistic(node.name, axis, factor.labels))
    return layout


def _affine(walk: Walk, node: fx.Node, layout: Layout, vector: fx.Node, rank: int) -> Layout:
    shift = rank - len(shape(vector))
    cast = set(range(shift))
    moved = tuple(Factor(tuple(a + shift for a in factor.axes), factor.labels) for factor in walk.of(vector))
    return walk.join(node, [(layout, set()), (moved, cast)], "it normalizes what isn't prunable")


def group_norm(walk: Walk, node: fx.Node) -> Layout:
    """Whole groups go; with a single group, channels do, which changes the statistics."""
    x, groups = source(node), int(argument(node, "num_groups"))
    channels, rest = walk.single(node, walk.of(x), 1)
    rest = walk.hold(node, rest, range(2, len(shape(x))), _SPACE)
    for name in ("weight", "bias"):
        vector = argument(node, name)
        if is_tensor(vector):
            walk.tie(node, channels, _axis(walk, node, vector, 0), "it normalizes the network's input")
    if channels is None:
        return rest
    if groups == 1:
        walk.statistics.append(Statistic(node.name, 1, channels))
    else:
        grid = channels.reshape(groups, -1)
        walk.labels.tie(grid[:, :1], grid)
    return (*rest, *plain([None, channels]))


def weight_norm(walk: Walk, node: fx.Node) -> Layout | list[Layout]:
    """``g v / |v|``, the norm over all axes but one: along that one v and g go together, the others stay."""
    direction, gain, axis = source(node), source(node, 1), int(argument(node, "dim", 0))
    others = [a for a in range(len(shape(direction))) if a != axis]
    layout = walk.hold(node, walk.of(direction), others, "it normalizes over this axis")
    joined = walk.join(node, [(layout, set()), (walk.of(gain), set(others))], "its other operand isn't prunable")
    return [joined, ()] if isinstance(node.meta.get("val"), (list, tuple)) else joined


def prelu(walk: Walk, node: fx.Node) -> Layout:
    """One slope a channel (axis 1), or one for all."""
    x, slope = source(node), source(node, 1)
    if shape(slope) in ((), (1,)):
        return walk.of(x)
    channels, rest = walk.single(node, walk.of(x), 1)
    walk.tie(node, channels, _axis(walk, node, slope, 0), "it reads the network's input")
    return (*rest, *plain([None, channels]))


def elementwise(walk: Walk, node: fx.Node) -> Layout:
    """Operands are aligned at the last axis and tied; a size of 1 broadcasts."""
    out = shape(node)
    operands = [aligned(walk, operand, out) for operand in node.all_input_nodes if is_tensor(operand)]
    return walk.join(node, operands, "its other operand isn't prunable")


def same(walk: Walk, node: fx.Node) -> Layout:
    """Acts on each element: the axes go through."""
    x = source(node)
    return walk.of(x) if shape(x) == shape(node) else walk.hold(node, walk.of(x), range(len(shape(x))), "")


def pool(walk: Walk, node: fx.Node) -> Layout:
    """Acts on space: batch and channels go through."""
    x = source(node)
    return walk.hold(node, walk.of(x), range(2, len(shape(x))), _SPACE)


def recurrent(walk: Walk, node: fx.Node) -> Layout | list[Layout]:
    """Left alone: gates and states hang together over time."""
    return fixed(walk, node, "recurrent layers keep their sizes")


def reduce(walk: Walk, node: fx.Node) -> Layout | list[Layout]:
    """A mean, sum or maximum.

    Over untracked axes it is free; over one axis of a split it keeps that axis. Over plain channels, it is
    a statistic where the axis stays with size 1 (a normalization written by hand); otherwise they stay.
    """
    x = source(node)
    if len(node.args) > 1 and is_tensor(node.args[1]):
        return elementwise(walk, node)  # the larger of two tensors
    rank, layout = len(shape(x)), walk.of(x)
    given = argument(node, "dim")
    dims = range(rank) if given in (None, []) else ([given] if isinstance(given, int) else list(given))
    reduced = sorted({int(d) % rank for d in dims}) if rank else []
    keep = bool(argument(node, "keepdim", False))
    for axis in reduced:
        factor = at(layout, axis)
        alone = keep and kind(node) in AVERAGES and len(covered(layout) & set(reduced)) == 1
        if factor is not None and not factor.joint and alone:
            walk.statistics.append(Statistic(node.name, axis, factor.labels))
            layout = without(layout, [axis])
        else:
            layout = walk.hold(node, layout, axis, "it reduces this axis")
    if not keep:
        new = {axis: axis - sum(r < axis for r in reduced) for axis in range(rank)}
        layout = tuple(Factor(tuple(new[a] for a in factor.axes), factor.labels) for factor in layout)
    value = node.meta.get("val")
    return [layout for _ in value] if isinstance(value, (list, tuple)) else layout
