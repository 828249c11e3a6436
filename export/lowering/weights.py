"""Integer weights as a file holds them, and as a program takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.export.lowering.graph import Node, QuantizedConstant
from compress.integer import program as p
from compress.types import Note

if TYPE_CHECKING:
    from compress.export.lowering.lower import Walk

Array = NDArray[Any]
WIDTHS: Mapping[int, tuple[int, int]] = {2: (-2, 1), 3: (-4, 3), 4: (-8, 7), 8: (-128, 127)}


def narrowest(weight: Array) -> int:
    """Bits of the narrowest width that holds all of ``weight``; one bit is -1 and 1."""
    if np.all(np.abs(weight) == 1):
        return 1
    return next(bits for bits, (low, high) in WIDTHS.items() if low <= weight.min() and weight.max() <= high)


OnGrid = tuple[NDArray[np.int16], NDArray[np.float64]]
"""Integers less their zero point, within [-255, 254], which two bytes add up to, and one scale an output channel."""


def symmetric(held: QuantizedConstant | None, axis: int) -> OnGrid | None:
    """Integers less their zero point, and one scale an index of ``axis``; None where a constant has no such grid.

    uint8 weights around 128 are int8 weights around 0; other zero points give up to nine bits (:func:`two_products`).
    """
    if held is None or held.integers.dtype == np.int32:
        return None
    along = [1] * held.integers.ndim
    if held.zero_point.size > 1:
        along[held.axis] = -1
    steps = held.integers - held.zero_point.reshape(along)
    if steps.min() < -255 or steps.max() > 254 or (held.scale.size > 1 and held.axis != axis):
        return None
    scales = np.broadcast_to(held.scale.astype(np.float64), (held.integers.shape[axis],))
    return steps.astype(np.int16), np.asarray(scales)


def two_products(
    walk: Walk, node: Node, source: str, weight: NDArray[np.int16], groups: int
) -> tuple[str, NDArray[np.int8]]:
    """A convolution with weights of nine bits as one with twice as many input channels of eight: each group's
    channels twice, with ``w = clip(w) + rest``. The image (H, W, 2 C) and the weights (O, KH, KW, 2 C / groups).

    Weights within int8 stay as they are.
    """
    first = np.clip(weight, -128, 127)
    if np.array_equal(first, weight):
        return source, weight.astype(np.int8)
    builder = walk.builder
    height, width, channels = builder.tensors[source].shape
    each = channels // groups
    made = builder.like(f"{source}_twice", source, (height, width, 2 * channels))
    extents = (height * width, groups, 2, each)
    strides = (channels, each, 0, 1), (2 * channels, 2 * each, each, 1)
    builder.add(p.Copy, f"{node.name}_twice", [source], made.name, extents, *strides, 0, 0, None)
    why = "done as two products, since its weights lie off the middle of their grid; quantize them symmetrically"
    builder.notes.append(Note(node.name, node.op, why))
    return made.name, np.concatenate([first, weight - first], axis=3).astype(np.int8)


def one_scale(held: QuantizedConstant | None, outputs: int) -> OnGrid | None:
    """:func:`symmetric` where one scale holds for all, whatever axis they are along."""
    if held is None or np.unique(held.scale).size > 1:
        return None
    found = symmetric(QuantizedConstant(held.integers, held.scale[:1], held.zero_point[:1], 0), 0)
    return None if found is None else (found[0], np.repeat(found[1][:1], outputs))


__all__ = ["OnGrid", "narrowest", "one_scale", "symmetric", "two_products"]
