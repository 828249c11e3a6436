"""How the labels of a tensor lie over its axes.

A tensor's labels are a set of *factors*. A factor covers some of the axes with an array of labels of
those axes' sizes: one axis for plain channels, several after a reshape that splits channels (an array
(heads, head dimension) where a linear layer's output is seen as heads). Axes that no factor covers are
untracked: nothing prunes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compress.graph.labels import Indices


@dataclass(frozen=True, slots=True)
class Factor:
    """Labels over some axes of a tensor.

    Attributes:
        axes: positions in the tensor, ascending.
        labels: an array with the sizes of ``axes``.
    """

    axes: tuple[int, ...]
    labels: Indices

    @property
    def joint(self) -> bool:
        """True if it covers several axes."""
        return len(self.axes) > 1


Layout = tuple[Factor, ...]
"""A tensor's factors. No axis is in two of them."""


def plain(labels: Sequence[Indices | None]) -> Layout:
    """A layout of one factor for each axis that has labels; an axis of size 1 has none, as it can't shrink."""
    return tuple(Factor((axis,), each) for axis, each in enumerate(labels) if each is not None and each.size > 1)


def at(layout: Layout, axis: int) -> Factor | None:
    """The factor that covers an axis."""
    return next((factor for factor in layout if axis in factor.axes), None)


def covered(layout: Layout) -> set[int]:
    """The axes that are tracked."""
    return {axis for factor in layout for axis in factor.axes}


def renamed(layout: Layout, new: Mapping[int, int]) -> Layout:
    """The layout of a tensor whose axis ``a`` became ``new[a]``."""
    return tuple(ordered([new[axis] for axis in factor.axes], factor.labels) for factor in layout)


def ordered(axes: Sequence[int], labels: Indices) -> Factor:
    """A factor from axes in any order."""
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    return Factor(tuple(axes[i] for i in order), labels.transpose(order))


def first(factor: Factor, axis: int) -> Factor | None:
    """The factor at index 0 of one of its axes; None if it covers no other."""
    position = factor.axes.index(axis)
    left = tuple(a for a in factor.axes if a != axis)
    return Factor(left, np.asarray(np.take(factor.labels, 0, position))) if left else None


def without(layout: Layout, axes: Iterable[int]) -> Layout:
    """The factors that cover none of ``axes``."""
    gone = set(axes)
    return tuple(factor for factor in layout if not gone & set(factor.axes))


def simplified(factor: Factor) -> Factor:
    """Without the axes along which its labels repeat (their indices all live and die together)."""
    axes, labels = list(factor.axes), factor.labels
    for axis in factor.axes:
        position = axes.index(axis)
        if len(axes) > 1 and bool(np.all(labels == labels.take([0], position))):
            labels = np.asarray(np.take(labels, 0, position))
            del axes[position]
    return Factor(tuple(axes), labels)


def regrouped(
    layout: Layout, sizes: Sequence[int], blocks: Sequence[tuple[Sequence[int], Sequence[int]]], wanted: Sequence[int]
) -> Layout:
    """The layout after a reshape.

    Args:
        layout: of the tensor before; in each block at most one factor.
        sizes: of the tensor before.
        blocks: pairs (axes before, axes behind) with equal products of sizes; axes of size 1 are in none.
        wanted: sizes of the tensor behind.
    """
    result = []
    for factor in layout:
        axes, labels = list(factor.axes), factor.labels
        for before, behind in blocks:
            if not set(before) & set(axes):
                continue
            for axis in before:
                if axis not in axes:
                    labels = np.broadcast_to(labels[..., None], (*labels.shape, sizes[axis]))
                    axes.append(axis)
            rest = [axis for axis in axes if axis not in before]
            labels = labels.transpose([axes.index(axis) for axis in (*rest, *before)])
            labels = labels.reshape(*labels.shape[: len(rest)], *(wanted[axis] for axis in behind))
            # Axes before the reshape are kept apart from those behind it by their sign.
            axes = [*rest, *(-1 - axis for axis in behind)]
        result.append(simplified(ordered([-1 - axis for axis in axes], labels)))
    return tuple(result)


def alignment(sizes: Sequence[int], wanted: Sequence[int]) -> list[tuple[list[int], list[int]]] | None:
    """The smallest blocks of axes with equal products that a reshape maps to each other, None if there are none."""
    before = [axis for axis, size in enumerate(sizes) if size != 1]
    behind = [axis for axis, size in enumerate(wanted) if size != 1]
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(behind):
        left, right = [before[i]], [behind[j]]
        a, b = sizes[before[i]], wanted[behind[j]]
        i, j = i + 1, j + 1
        while a != b:
            if a < b and i < len(before):
                a, i = a * sizes[before[i]], i + 1
                left.append(before[i - 1])
            elif a > b and j < len(behind):
                b, j = b * wanted[behind[j]], j + 1
                right.append(behind[j - 1])
            else:
                return None
        blocks.append((left, right))
    return blocks if i == len(before) and j == len(behind) else None
