"""What operators that rearrange a tensor do to its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from compress.graph.layout import Factor, Layout, alignment, at, plain, regrouped, renamed, without
from compress.graph.trace import argument, kind, shape
from compress.graph.walk import Walk, fixed, source


def reshape(walk: Walk, node: fx.Node) -> Layout | list[Layout]:
    """Split axes give joint factors, merged ones are flattened (channels in front of space: repeated)."""
    x = source(node)
    return _reshaped(walk, node, walk.of(x), shape(x), shape(node))


def _reshaped(walk: Walk, node: fx.Node, layout: Layout, sizes: Sequence[int], wanted: Sequence[int]) -> Layout:
    blocks = alignment(sizes, wanted)
    if blocks is None:
        walk.fix(node, layout, "its sizes don't divide one another")
        return ()
    for before, _ in blocks:
        inside = [factor for factor in layout if set(factor.axes) & set(before)]
        if len(before) > 1 and len(inside) > 1:
            # Only one of them can stay a grid in the merged axis: the longest.
            inside.sort(key=lambda factor: -factor.labels.size)
            for factor in inside[1:]:
                layout = walk.hold(
                    node, layout, [a for a in factor.axes if a in before], "it is merged with other channels"
                )
    result = regrouped(layout, sizes, blocks, wanted)
    for factor in result:
        if factor.joint:
            walk.grids.append((node, factor.labels))
    return result


def permute(walk: Walk, node: fx.Node) -> Layout:
    """Axes change places."""
    x = source(node)
    rank = len(shape(x))
    order = list(range(rank))
    if kind(node) == "permute":
        order = [int(d) % rank for d in argument(node, "dims")]
    elif kind(node) in ("movedim", "moveaxis"):
        moved = [d % rank for d in _ints(node.args[1])]
        placed = [d % rank for d in _ints(node.args[2])]
        rest = iter(axis for axis in range(rank) if axis not in moved)
        order = [moved[placed.index(axis)] if axis in placed else next(rest) for axis in range(rank)]
    elif kind(node) in ("t", "numpy_T", "mT", "matrix_H", "adjoint"):
        order = order[::-1] if kind(node) in ("t", "numpy_T") else [*order[:-2], *order[:-3:-1]]
    else:
        one, two = (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]  # ints
        order[one], order[two] = order[two], order[one]
    return renamed(walk.of(x), {axis: position for position, axis in enumerate(order)})


def _ints(value: Any) -> list[int]:
    return [int(value)] if isinstance(value, int) else [int(v) for v in value]


def _parts_of(node: fx.Node) -> list[fx.Node]:
    return [part for part in node.args[0] if isinstance(part, fx.Node)]  # type: ignore[union-attr]  # a list of tensors


def concatenate(walk: Walk, node: fx.Node) -> Layout:
    """Joins one axis end to end; the other axes tie."""
    parts, axis = _parts_of(node), int(argument(node, "dim", 0)) % len(shape(node))
    pieces, rests = [], []
    for part in parts:
        labels, rest = walk.single(node, walk.of(part), axis)
        pieces.append(labels)
        rests.append((rest, set[int]()))
    layout = walk.join(node, rests, "it stands beside what isn't prunable")
    if all(piece is None for piece in pieces):
        return layout
    whole = [
        piece if piece is not None else walk.untracked(node, shape(part)[axis], "it stands beside what isn't prunable")
        for piece, part in zip(pieces, parts, strict=True)
    ]
    return (*layout, Factor((axis,), np.concatenate(whole)))


def stack(walk: Walk, node: fx.Node) -> Layout:
    """A new axis; the others tie."""
    parts, axis = _parts_of(node), int(argument(node, "dim", 0)) % len(shape(node))
    layout = walk.join(node, [(walk.of(part), set()) for part in parts], "it stands beside what isn't prunable")
    return renamed(layout, {a: a + (a >= axis) for a in range(len(shape(node)))})


def pad(walk: Walk, node: fx.Node) -> Layout:
    """A constant padding: what it adds to a tracked axis stays, as the widths are literals."""
    x = source(node)
    layout, rank, widths = walk.of(x), len(shape(x)), list(argument(node, "pad"))
    for i in range(len(widths) // 2):
        axis, low, high = rank - 1 - i, widths[2 * i], widths[2 * i + 1]
        if (low, high) == (0, 0) or at(layout, axis) is None:
            continue
        if min(low, high) < 0 or argument(node, "mode", "constant") != "constant":
            layout = walk.hold(node, layout, axis, "it crops or mirrors channels")
            continue
        labels, layout = walk.single(node, layout, axis)
        assert labels is not None
        sides = [walk.untracked(node, n, "a padding of fixed width makes it") for n in (low, high)]
        layout = (*layout, Factor((axis,), np.concatenate([sides[0], labels, sides[1]])))
    return layout


def narrow(walk: Walk, node: fx.Node) -> Layout:
    """A slice: free on an untracked axis; on channels, where the slices of a tensor divide it into parts."""
    x = source(node)
    axis = int(argument(node, "dim", 0)) % len(shape(x))
    n = shape(x)[axis]
    layout = walk.of(x)
    if at(layout, axis) is None or shape(node)[axis] == n:
        return layout
    bounds = _parts(x, axis)
    if bounds is None:
        return walk.hold(node, layout, axis, "its bounds are literals")
    return _part(walk, node, layout, axis, [b - a for a, b in bounds])[bounds.index(_bounds(node, n))]


def _bounds(node: fx.Node, n: int) -> tuple[int, int]:
    start, end = argument(node, "start", 0) or 0, argument(node, "end")
    start, end = int(start), n if end is None else int(end)
    return (max(start + n, 0) if start < 0 else min(start, n)), (end + n if end < 0 else min(end, n))


def _parts(x: fx.Node, axis: int) -> list[tuple[int, int]] | None:
    """The bounds of all slices of a tensor along an axis, if they divide it end to end."""
    rank, n = len(shape(x)), shape(x)[axis]
    slices = [u for u in x.users if kind(u) == "slice" and int(argument(u, "dim", 0)) % rank == axis]
    if any(int(argument(u, "step", 1)) != 1 for u in slices):
        return None
    bounds = sorted({_bounds(u, n) for u in slices})
    ends = [0, *(b for _, b in bounds)]
    return bounds if [a for a, _ in bounds] == ends[:-1] and ends[-1] == n else None


def _part(walk: Walk, node: fx.Node, layout: Layout, axis: int, sizes: Sequence[int]) -> list[Layout]:
    """Parts of an axis: equal ones stay equal (position i goes in every part), others are each by themselves."""
    factor = at(layout, axis)
    if factor is None:
        return [layout] * len(sizes)
    if factor.joint:
        held = walk.hold(node, layout, axis, "")
        return [held] * len(sizes)
    rest = without(layout, [axis])
    if len(set(sizes)) == 1:
        grid = factor.labels.reshape(len(sizes), -1)
        walk.labels.tie(grid[:1], grid)
        parts = [grid[0]] * len(sizes)
    else:
        parts = np.split(factor.labels, np.cumsum(sizes)[:-1])
    return [(*rest, *plain([None] * axis + [part])) for part in parts]


def chunk(walk: Walk, node: fx.Node) -> list[Layout]:
    """Parts of one axis (chunk, split, split_with_sizes, tensor_split)."""
    x = source(node)
    axis = int(argument(node, "dim", 0)) % len(shape(x))
    return _part(walk, node, walk.of(x), axis, [value.shape[axis] for value in node.meta["val"]])


def glu(walk: Walk, node: fx.Node) -> Layout:
    """One half gates the other: they stay equal."""
    x = source(node)
    axis = int(argument(node, "dim", -1)) % len(shape(x))
    return _part(walk, node, walk.of(x), axis, [shape(node)[axis]] * 2)[0]


def select(walk: Walk, node: fx.Node) -> Layout:
    """One index of an axis, which has to stay whole."""
    x = source(node)
    return _dropped(walk, node, walk.of(x), int(argument(node, "dim", 0)) % len(shape(x)))


def _dropped(walk: Walk, node: fx.Node, layout: Layout, axis: int) -> Layout:
    layout = walk.hold(node, layout, axis, "its index is a literal")
    return tuple(Factor(tuple(a - (a > axis) for a in factor.axes), factor.labels) for factor in layout)


def unbind(walk: Walk, node: fx.Node) -> list[Layout]:
    """All indices of an axis, which has to stay whole."""
    x = source(node)
    layout = _dropped(walk, node, walk.of(x), int(argument(node, "dim", 0)) % len(shape(x)))
    return [layout] * len(node.meta["val"])


def getitem(walk: Walk, node: fx.Node) -> Layout:
    """One of an operator's outputs."""
    layouts = walk.layouts.get(source(node), ())
    return layouts[int(node.args[1])] if isinstance(layouts, list) else ()  # type: ignore[arg-type]  # an int


def expand(walk: Walk, node: fx.Node) -> Layout:
    """Axes of size 1 grow; channels go through."""
    x = source(node)
    shift = len(shape(node)) - len(shape(x))
    return renamed(walk.of(x), {axis: axis + shift for axis in range(len(shape(x)))})


def repeat(walk: Walk, node: fx.Node) -> Layout:
    """Channels repeat end to end."""
    x = source(node)
    times = [int(t) if isinstance(t, int) else 1 for t in argument(node, "repeats")]
    shift = len(times) - len(shape(x))
    result = []
    for factor in walk.of(x):
        axes = tuple(axis + shift for axis in factor.axes)
        result.append(Factor(axes, np.tile(factor.labels, [times[axis] for axis in axes])))
    return tuple(result)


def repeat_interleave(walk: Walk, node: fx.Node) -> Layout | list[Layout]:
    """Each channel repeats."""
    x, times, dim = source(node), argument(node, "repeats"), argument(node, "dim")
    if not isinstance(times, int) or dim is None:
        return fixed(walk, node, "its repeats aren't one number")
    axis = int(dim) % len(shape(x))
    return tuple(
        Factor(factor.axes, np.repeat(factor.labels, times, factor.axes.index(axis))) if axis in factor.axes else factor
        for factor in walk.of(x)
    )


def roll(walk: Walk, node: fx.Node) -> Layout:
    """Elements move along an axis: channels that move stay."""
    x = source(node)
    rank = len(shape(x))
    dims = argument(node, "dims") or range(rank)
    return walk.hold(node, walk.of(x), [int(d) % rank for d in dims], "it moves elements along this axis")


def index(walk: Walk, node: fx.Node) -> Layout | list[Layout]:
    """A gather by index tensors: the axes that they point into stay, the others go through."""
    x, indices = source(node), list(node.args[1])  # type: ignore[arg-type]  # a list of tensors
    used = [axis for axis, each in enumerate(indices) if each is not None]
    if used != list(range(used[0], used[-1] + 1)):
        return fixed(walk, node, "its index tensors are apart")
    layout = walk.hold(node, walk.of(x), used, "indices point into it")
    grown = len(shape(node)) - len(shape(x))
    return renamed(layout, {axis: axis + (grown if axis > used[-1] else 0) for axis in range(len(shape(x)))})


def index_select(walk: Walk, node: fx.Node) -> Layout:
    """A gather along one axis, which stays."""
    x = source(node)
    return walk.hold(node, walk.of(x), int(argument(node, "dim")) % len(shape(x)), "indices point into it")


def pixel_shuffle(walk: Walk, node: fx.Node) -> Layout:
    """Channels (C r^2) become (C, r, r): the r^2 of one output channel go together."""
    x = source(node)
    channel = len(shape(x)) - 3
    layout = walk.hold(node, walk.of(x), [channel + 1, channel + 2], "it mixes the positions along this axis")
    labels, rest = walk.single(node, layout, channel)
    if labels is None:
        return rest
    grid = labels.reshape(shape(node)[channel], -1)
    walk.labels.tie(grid[:, :1], grid)
    return (*rest, *plain([None] * channel + [grid[:, 0]]))


def pixel_unshuffle(walk: Walk, node: fx.Node) -> Layout:
    """Channels C become C r^2: each repeats."""
    x = source(node)
    channel = len(shape(x)) - 3
    layout = walk.hold(node, walk.of(x), [channel + 1, channel + 2], "it mixes the positions along this axis")
    labels, rest = walk.single(node, layout, channel)
    if labels is None:
        return rest
    return (*rest, *plain([None] * channel + [np.repeat(labels, shape(node)[channel] // labels.size)]))


def channel_shuffle(walk: Walk, node: fx.Node) -> Layout:
    """Channels (g, c / g) become (c / g, g): a column goes from every group."""
    x, groups = source(node), int(argument(node, "groups"))
    labels, rest = walk.single(node, walk.of(x), 1)
    if labels is None:
        return rest
    grid = labels.reshape(groups, -1)
    walk.labels.tie(grid[:1], grid)
    return (*rest, *plain([None, grid.T.reshape(-1)]))
