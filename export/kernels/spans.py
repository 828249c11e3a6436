"""Loops over tensors: broadcast strides, axes merged where they can be, widths that cover a row of channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from compress.export.kernels.code import Placed

Strides = tuple[int, ...]


def broadcast(place: Placed, shape: tuple[int, ...]) -> Strides:
    """Strides of the tensor where it stands for one of ``shape`` by numpy's rules: 0 along repeated axes."""
    missing = len(shape) - len(place.tensor.shape)
    own = [0 if size == 1 else stride for size, stride in zip(place.tensor.shape, place.strides, strict=True)]
    return (0,) * missing + tuple(own)


def merged(shape: Sequence[int], strides: Sequence[Strides]) -> tuple[tuple[int, ...], list[Strides]]:
    """Fewer, longer axes with the same offsets in the same order, for all operands at once."""
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        here = [operand[axis] for operand in strides]
        if size == 1:
            continue
        if sizes and all(s[-1] == size * stride for s, stride in zip(steps, here, strict=True)):
            sizes[-1] *= size
            for s, stride in zip(steps, here, strict=True):
                s[-1] = stride
            continue
        sizes.append(size)
        for s, stride in zip(steps, here, strict=True):
            s.append(stride)
    return tuple(sizes), [tuple(s) for s in steps]


def rows_of(shape: tuple[int, ...]) -> int:
    """How many rows of work an elementwise kernel has: the first axis, if there are more."""
    return shape[0] if len(shape) > 1 else 1


def widths(count: int, *wanted: int) -> Iterator[tuple[int, int, int]]:
    """(start, width, repeats) that cover ``count`` elements: as many of each wanted width as fit, then single ones."""
    start = 0
    for width in (*wanted, 1):
        repeats = (count - start) // width
        if repeats:
            yield start, width, repeats
            start += repeats * width


def span(start: int, width: int, index: Any) -> Any:
    """The first element of a repeat of :func:`widths`."""
    return start + index * width if start else index * width


__all__ = ["Strides", "broadcast", "merged", "rows_of", "span", "widths"]
