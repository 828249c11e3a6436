"""What each operator ties: one function an operator, and the table that names them.

A rule gets the labels of its operands, an axis each: an array for an axis that is tracked, None for
one that nothing prunes (batch, space). It returns its output's labels in the same form. An operator
that isn't in the table fixes all that comes in, so a network with unknown operators is pruned around them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from compress.graph.labels import Fix, Indices, Labels
from compress.graph.trace import argument, kind, module_path, shape

Axes = tuple[Indices | None, ...]


class Walk:
    """The labels of every tensor seen so far, and the small steps that rules are made of."""

    def __init__(self) -> None:
        self.labels = Labels()
        self.axes: dict[fx.Node, Axes] = {}

    def of(self, node: Any) -> Axes:
        """The axes of a node's tensor; none for what isn't a tensor."""
        return self.axes.get(node, ()) if isinstance(node, fx.Node) else ()

    def fix(self, node: fx.Node, axes: Axes, reason: str) -> None:
        """Everything in ``axes`` has to stay, because of ``node``."""
        for labels in axes:
            if labels is not None:
                self.labels.fix(labels, Fix(kind(node), module_path(node), reason))

    def join(self, node: fx.Node, a: Indices | None, b: Indices | None, reason: str = "") -> Indices | None:
        """Tie two axes; where only one is tracked, it has to stay."""
        if a is not None and b is not None:
            if a.size == b.size or 1 in (a.size, b.size):
                self.labels.tie(a, b)
                return a if a.size >= b.size else b
            self.fix(node, (a, b), f"its operands have {a.size} and {b.size} channels")
            return a
        self.fix(node, (a, b), reason or "its other operand isn't prunable")
        return None


Rule = Callable[[Walk, fx.Node], Axes]


def convolution(walk: Walk, node: fx.Node) -> Axes:
    """Weight (out, in / groups, ...): inputs tie to axis 1, the output takes axis 0.

    With groups, a channel goes together with the channels at its position in every other group, so
    that groups stay equal; in a depthwise convolution each channel goes by itself.
    """
    x, weight, bias = walk.of(node.args[0]), walk.of(node.args[1]), walk.of(argument(node, "bias"))
    groups = int(argument(node, "groups", 1))
    out, inner, source = weight[0], weight[1], x[1]
    assert out is not None
    assert inner is not None
    if bias:
        walk.join(node, out, bias[0])
    if groups == 1:
        walk.join(node, source, inner, "it reads the network's input")
    elif inner.size == 1:
        multiplier = out.size // groups
        if source is None:
            walk.fix(node, (out,), "it reads the network's input")
        else:
            walk.labels.tie(np.repeat(source, multiplier), out)
    else:
        per_group = out.reshape(groups, -1)
        walk.labels.tie(per_group[:1], per_group)
        if source is None:
            walk.fix(node, (inner,), "it reads the network's input")
        else:
            walk.labels.tie(source.reshape(groups, -1), inner[None, :])
    return (None, out, *[None] * (len(x) - 2))


def transposed_convolution(walk: Walk, node: fx.Node) -> Axes:
    """Weight (in, out / groups, ...); with groups its channels stay."""
    x, weight, bias = walk.of(node.args[0]), walk.of(node.args[1]), walk.of(argument(node, "bias"))
    if int(argument(node, "groups", 1)) != 1:
        walk.fix(node, (x[1], *weight[:2], *bias), "grouped transposed convolutions keep their channels")
        return (None,) * len(x)
    walk.join(node, x[1], weight[0], "it reads the network's input")
    if bias:
        walk.join(node, weight[1], bias[0])
    return (None, weight[1], *[None] * (len(x) - 2))


def linear(walk: Walk, node: fx.Node) -> Axes:
    """Weight (out, in): the input's last axis ties to axis 1, the output's last axis is axis 0."""
    x, weight, bias = walk.of(node.args[0]), walk.of(node.args[1]), walk.of(argument(node, "bias"))
    walk.join(node, x[-1], weight[1], "it reads the network's input")
    if bias:
        walk.join(node, weight[0], bias[0])
    return (*x[:-1], weight[0])


def batch_norm(walk: Walk, node: fx.Node) -> Axes:
    """Each of the four vectors ties to the channel axis."""
    x = walk.of(node.args[0])
    for vector in node.args[1:5]:
        if walk.of(vector):
            walk.join(node, x[1], walk.of(vector)[0], "it normalizes the network's input")
    return x


def elementwise(walk: Walk, node: fx.Node) -> Axes:
    """Operands are aligned at the last axis and tied; a size of 1 broadcasts."""
    operands = [arg for arg in node.args if isinstance(arg, fx.Node) and (walk.of(arg) or shape(arg))]
    operands += [arg for arg in node.kwargs.values() if isinstance(arg, fx.Node) and walk.of(arg)]
    out_shape = shape(node)
    result: list[Indices | None] = []
    for axis in range(-len(out_shape), 0):
        tracked: Indices | None = None
        plain = False
        for operand in operands:
            axes, sizes = walk.of(operand), shape(operand)
            if len(sizes) < -axis or (sizes[axis] == 1 and out_shape[axis] != 1):
                # A broadcast axis of size 1 holds no index that could be removed.
                if len(axes) >= -axis and axes[axis] is not None:
                    walk.fix(node, (axes[axis],), "it is broadcast")
                continue
            labels = axes[axis] if len(axes) >= -axis else None
            if labels is None:
                plain = True
            else:
                tracked = labels if tracked is None else walk.join(node, tracked, labels)
        if plain and tracked is not None:
            walk.fix(node, (tracked,), "its other operand isn't prunable")
            tracked = None
        result.append(tracked)
    return tuple(result)


def same(walk: Walk, node: fx.Node) -> Axes:
    """Acts on each element, or on space only: the axes go through."""
    x = walk.of(node.args[0])
    return (*x[: len(shape(node))],) if len(x) == len(shape(node)) else spread(walk, node)


def spread(walk: Walk, node: fx.Node) -> Axes:
    """Anything else: what comes in has to stay."""
    for operand in node.all_input_nodes:
        walk.fix(node, walk.of(operand), "this operator has no pruning rule")
    return (None,) * len(shape(node))


def flatten(walk: Walk, node: fx.Node) -> Axes:
    """A reshape that keeps each tracked axis, or merges it with untracked ones behind it."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    axes, sizes, wanted = walk.of(source), shape(source), shape(node)
    result: list[Indices | None] = []
    position = 0
    for size in wanted:
        if position < len(sizes) and sizes[position] == size:
            result.append(axes[position])
            position += 1
            continue
        if size == 1:
            result.append(None)
            continue
        product, merged = 1, []
        while position < len(sizes) and product < size:
            product *= sizes[position]
            merged.append(position)
            position += 1
        if product != size:
            walk.fix(node, axes, "it splits an axis")
            return (None,) * len(wanted)
        result.append(_merge(walk, node, [axes[i] for i in merged], [sizes[i] for i in merged]))
    if any(axis is not None and sizes[i] != 1 for i, axis in enumerate(axes) if i >= position):
        walk.fix(node, axes[position:], "it drops an axis")
    return tuple(result)


def _merge(walk: Walk, node: fx.Node, axes: list[Indices | None], sizes: list[int]) -> Indices | None:
    tracked = [i for i, axis in enumerate(axes) if axis is not None]
    if not tracked:
        return None
    if len(tracked) > 1:
        walk.fix(node, tuple(axes), "it merges two prunable axes")
        return None
    labels = axes[tracked[0]]
    assert labels is not None
    before = int(np.prod(sizes[: tracked[0]]))
    behind = int(np.prod(sizes[tracked[0] + 1 :]))
    return np.tile(np.repeat(labels, behind), before)


def concatenate(walk: Walk, node: fx.Node) -> Axes:
    """Joins one axis end to end; the other axes tie."""
    parts = list(node.args[0])  # type: ignore[arg-type]  # the schema has a list of tensors here
    axis = int(argument(node, "dim", 0)) % len(shape(node))
    result: list[Indices | None] = []
    for i in range(len(shape(node))):
        pieces = [walk.of(part)[i] if walk.of(part) else None for part in parts]
        if i == axis:
            if all(piece is None for piece in pieces):
                result.append(None)
                continue
            whole = [
                piece
                if piece is not None
                else _constant(walk, node, shape(part)[i], "it stands beside what isn't prunable")
                for piece, part in zip(pieces, parts, strict=True)
            ]
            result.append(np.concatenate(whole))
            continue
        tracked = pieces[0]
        for piece in pieces[1:]:
            tracked = walk.join(node, tracked, piece) if not (tracked is None and piece is None) else None
        result.append(tracked)
    return tuple(result)


def _constant(walk: Walk, node: fx.Node, n: int, reason: str) -> Indices:
    labels = walk.labels.fresh(n)
    walk.fix(node, (labels,), reason)
    return labels


def pad(walk: Walk, node: fx.Node) -> Axes:
    """A constant padding: what it adds to a tracked axis stays, as the widths are literals."""
    x, widths = walk.of(node.args[0]), list(node.args[1])  # type: ignore[arg-type]  # a list of ints
    result = list(x)
    for i in range(len(widths) // 2):
        axis = len(x) - 1 - i
        low, high = int(widths[2 * i]), int(widths[2 * i + 1])
        labels = x[axis]
        if labels is None or (low, high) == (0, 0):
            continue
        if min(low, high) < 0 or argument(node, "mode", "constant") != "constant":
            walk.fix(node, (labels,), "it crops or mirrors channels")
            result[axis] = None
            continue
        sides = [_constant(walk, node, n, "a padding of fixed width makes it") for n in (low, high)]
        result[axis] = np.concatenate([sides[0], labels, sides[1]])
    return tuple(result)


def narrow(walk: Walk, node: fx.Node) -> Axes:
    """A slice: free on an untracked axis, all or nothing on a tracked one."""
    x = walk.of(node.args[0])
    axis = int(argument(node, "dim", 0)) % len(x)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if x[axis] is not None and shape(node)[axis] != shape(source)[axis]:
        walk.fix(node, (x[axis],), "its bounds are literals")
        return (*x[:axis], None, *x[axis + 1 :])
    return x


def reduce(walk: Walk, node: fx.Node) -> Axes:
    """A mean, sum or maximum: free over untracked axes; a tracked axis that it reduces stays."""
    x = walk.of(node.args[0])
    given = argument(node, "dim")
    dims = range(len(x)) if given in (None, []) else ([given] if isinstance(given, int) else list(given))
    reduced = {int(d) % len(x) for d in dims}
    keep = bool(argument(node, "keepdim", False))
    for axis in sorted(reduced):
        walk.fix(node, (x[axis],), "it reduces this axis")
    return tuple(None if i in reduced else axis for i, axis in enumerate(x) if keep or i not in reduced)


def permute(walk: Walk, node: fx.Node) -> Axes:
    """Axes change places."""
    x = walk.of(node.args[0])
    if kind(node) == "permute":
        return tuple(x[int(d)] for d in node.args[1])  # type: ignore[union-attr,arg-type]  # a list of ints
    first, second = (int(d) % len(x) for d in node.args[1:3])  # type: ignore[arg-type]  # ints
    result = list(x)
    result[first], result[second] = result[second], result[first]
    return tuple(result)


def squeeze(walk: Walk, node: fx.Node) -> Axes:
    """Axes of size 1 come or go."""
    return flatten(walk, node)


def pool(walk: Walk, node: fx.Node) -> Axes:
    """Acts on space: batch and channels go through."""
    x = walk.of(node.args[0])
    return (*x[:2], *[None] * (len(shape(node)) - 2))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed_convolution),
    "linear": linear,
    "batch_norm": batch_norm,
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum", "prelu", "rsub", "pow"), elementwise),
    **dict.fromkeys(
        [
            "relu",
            "relu6",
            "hardtanh",
            "leaky_relu",
            "elu",
            "selu",
            "celu",
            "gelu",
            "silu",
            "mish",
            "sigmoid",
            "hardsigmoid",
            "hardswish",
            "tanh",
            "softplus",
            "clamp",
            "clamp_min",
            "clamp_max",
            "abs",
            "neg",
            "exp",
            "sqrt",
            "rsqrt",
            "square",
            "dropout",
            "feature_dropout",
            "alpha_dropout",
            "clone",
            "contiguous",
            "detach",
            "alias",
            "to",
            "_to_copy",
            "type_as",
            "identity",
        ],
        same,
    ),
    **dict.fromkeys(
        [
            "max_pool1d",
            "max_pool2d",
            "max_pool3d",
            "avg_pool1d",
            "avg_pool2d",
            "avg_pool3d",
            "adaptive_avg_pool1d",
            "adaptive_avg_pool2d",
            "adaptive_max_pool2d",
            "upsample_nearest2d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "interpolate",
        ],
        pool,
    ),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "_unsafe_view"), flatten),
    **dict.fromkeys(("squeeze", "unsqueeze"), squeeze),
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenate),
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    "slice": narrow,
    **dict.fromkeys(("mean", "sum", "amax", "amin"), reduce),
    **dict.fromkeys(("permute", "transpose"), permute),
}
"""Operator's plain name -> its rule."""
