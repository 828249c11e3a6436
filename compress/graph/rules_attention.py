"""What products of two tensors tie, and attention, which keeps heads whole."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
from torch import fx

from compress.graph.layout import Factor, Layout, at, covered, renamed
from compress.graph.trace import argument, shape
from compress.graph.walk import Walk, aligned, is_tensor, source


def contract(walk: Walk, node: fx.Node, operands: Sequence[fx.Node], letters: Sequence[str], out: str) -> Layout:
    """A product summed over the axes that the output doesn't have, in einsum's letters.

    Over an axis of a weight, the weight reads the channels (as a linear layer does). Over an axis of two
    activations, the sum runs over all of it and it stays: in attention this keeps the head dimension, from
    which the scale derives.
    """
    every = sorted(set("".join(letters)) - set(out))
    space = out + "".join(every)
    layouts, weights = [], []
    for operand, names in zip(operands, letters, strict=True):
        layout = walk.of(operand)
        weight = operand in walk.constants
        if not weight and not all(other in walk.constants for other in operands if other is not operand):
            summed = [i for i, name in enumerate(names) if name in every]
            layout = walk.hold(node, layout, summed, "it is summed over, and a scale may derive from its size")
        cast = {i for i, name in enumerate(space) if name not in names}
        cast |= {space.index(name) for name, size in zip(names, shape(operand), strict=True) if size == 1}
        layouts.append((renamed(layout, {i: space.index(name) for i, name in enumerate(names)}), cast))
        weights.append(weight)
    joined = walk.join(node, layouts, "it reads the network's input")
    resolved: Layout = ()
    for factor in joined:
        if factor.joint and any(space[axis] in every for axis in factor.axes):
            # Summed channels of several axes: they go along the last of those.
            keep = max(axis for axis in factor.axes if space[axis] in every)
            held = walk.hold(node, (factor,), [axis for axis in factor.axes if axis != keep], "")
            resolved = (*resolved, *held)
        else:
            resolved = (*resolved, factor)
    if sum(weights) < len(weights):
        _roles(walk, layouts, weights, resolved, len(out))
    return tuple(factor for factor in resolved if factor.axes[0] < len(out))


def _roles(
    walk: Walk, layouts: Sequence[tuple[Layout, set[int]]], weights: Sequence[bool], joined: Layout, outputs: int
) -> None:
    """A weight's summed axes read channels; those that only it has make them."""
    for (layout, _), weight in zip(layouts, weights, strict=True):
        if not weight:
            continue
        others = [each for (each, _), is_weight in zip(layouts, weights, strict=True) if not is_weight]
        for factor in layout:
            axis = factor.axes[-1]
            if axis >= outputs:
                walk.read.append(factor.labels)
            elif not any(axis in covered(other) for other in others):
                walk.made.append(factor.labels)


def matmul(walk: Walk, node: fx.Node) -> Layout:
    """Matrix products, with leading axes broadcast (matmul, bmm, mm, mv)."""
    return _product(walk, node, source(node), source(node, 1))


def _product(walk: Walk, node: fx.Node, a: fx.Node, b: fx.Node) -> Layout:
    batch = max(len(shape(a)), len(shape(b)), 2) - 2
    names = string.ascii_uppercase[:batch]
    left = "k" if len(shape(a)) == 1 else names[batch - (len(shape(a)) - 2) :] + "mk"
    right = "k" if len(shape(b)) == 1 else names[batch - (len(shape(b)) - 2) :] + "kn"
    out = names + ("m" if len(shape(a)) > 1 else "") + ("n" if len(shape(b)) > 1 else "")
    return contract(walk, node, [a, b], [left, right], out)


def added_product(walk: Walk, node: fx.Node) -> Layout:
    """``input + a @ b`` (addmm, baddbmm)."""
    product = _product(walk, node, source(node, 1), source(node, 2))
    return walk.join(
        node, [(product, set()), aligned(walk, source(node), shape(node))], "its other operand isn't prunable"
    )


def einsum(walk: Walk, node: fx.Node) -> Layout:
    """Named axes; an ellipsis stands for as many as are left."""
    equation, operands = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[arg-type]  # tensors
    inputs, _, out = equation.partition("->")
    terms = inputs.split(",")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    width = max(len(shape(o)) - len(t.replace("...", "")) for o, t in zip(operands, terms, strict=True))
    dots = "".join(free[:width])
    if "->" not in equation:
        seen = "".join(terms)
        out = ("..." if "..." in seen else "") + "".join(sorted(c for c in set(seen) - {"."} if seen.count(c) == 1))
    letters = []
    for operand, term in zip(operands, terms, strict=True):
        n = len(shape(operand)) - len(term.replace("...", ""))
        letters.append(term.replace("...", dots[width - n :]))
    if any(len(set(names)) != len(names) for names in letters):
        raise ValueError("a diagonal")
    return contract(walk, node, operands, letters, out.replace("...", dots))


def softmax(walk: Walk, node: fx.Node) -> Layout:
    """Its axis stays: each value depends on all others."""
    x = source(node)
    return walk.hold(node, walk.of(x), int(argument(node, "dim", -1)) % len(shape(x)), "it normalizes over this axis")


def attention(walk: Walk, node: fx.Node) -> Layout:
    """Query (..., heads, L, E), key (..., heads, S, E), value (..., heads, S, V): whole heads go.

    E stays, since the scale derives from it; V may go where it is not part of a split into heads.
    """
    out = shape(node)
    rank = len(out)
    layouts = []
    for operand in node.args[:3]:
        assert isinstance(operand, fx.Node)
        layout = walk.of(operand)
        value = operand is node.args[2]
        layout = walk.hold(node, layout, rank - 2, "it attends over this axis")
        if not value or (factor := at(layout, rank - 1)) is None or factor.joint:
            layout = walk.hold(node, layout, rank - 1, "the scale derives from the head dimension")
        if argument(node, "enable_gqa", False) and len(out) > 2 and shape(operand)[-3] != out[-3]:
            times = out[-3] // shape(operand)[-3]
            layout = tuple(
                Factor(f.axes, np.repeat(f.labels, times, f.axes.index(rank - 3))) if rank - 3 in f.axes else f
                for f in layout
            )
        cast = {axis for axis in range(rank - 2) if shape(operand)[axis] == 1}
        layouts.append((layout, cast | ({rank - 1} if not value else set())))
    mask = argument(node, "attn_mask")
    if is_tensor(mask):
        layout, cast = aligned(walk, mask, (*out[:-1], shape(source(node, 1))[-2]))
        layout = walk.hold(node, layout, [rank - 2, rank - 1], "it masks positions")
        layouts.append((layout, cast | {rank - 1, rank - 2}))
    return walk.join(node, layouts, "its other operand isn't prunable")
