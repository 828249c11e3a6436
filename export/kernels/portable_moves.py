"""Kernels that only move numbers: copies, concatenation, tables, halos, changes of layout."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from compress.export.kernels.building import at, constant, dot, each, function, loops, pointer, store, unravelled
from compress.export.kernels.code import Placed
from compress.export.kernels.emitted import Emitted, Emitter, Kernels, flat, table
from compress.export.kernels.isa import Isa
from compress.integer.program import Concatenate, Constant, Copy, Lookup, Op, View


def fill_halo(place: Placed, symbol: str) -> Emitted:
    """Writes the zero point into an image's halo, the gaps between channels included.

    Raises:
        ValueError: the tensor has no layout.
    """
    from tvm.tirx.script import builder as T

    if place.layout is None:
        raise ValueError("a tensor without a layout has no halo")
    top, left, bottom, right = place.layout.halo
    pitch, channels, _ = place.strides
    rows, columns, _ = place.tensor.shape
    with function(symbol, [pointer("y", place)]) as body:
        (y,) = body.buffers
        value = constant(place.tensor.zero_point, place.tensor.dtype)

        def fill(start: Any, count: int) -> None:
            with T.serial(count) as i:
                store(y, value, start + i)

        if top * pitch + left * channels:
            fill(0, top * pitch + left * channels)
        if (left + right) and rows > 1:
            with T.serial(rows - 1) as row:
                fill((row + top) * pitch + (left + columns) * channels, (left + right) * channels)
        if right * channels + bottom * pitch:
            fill((top + rows - 1) * pitch + (left + columns) * channels, right * channels + bottom * pitch)
    return Emitted(body.done, fills_halo=True)


def move(source: Placed, target: Placed, symbol: str) -> Emitted:
    """Copies a tensor into another layout, or, flattened, into another shape.

    Raises:
        ValueError: the sizes or types differ.
    """
    if source.tensor.elements != target.tensor.elements or source.tensor.dtype != target.tensor.dtype:
        raise ValueError(f"{source.tensor.shape} doesn't fill {target.tensor.shape}")
    by_source = not flat(source) or source.tensor.shape == target.tensor.shape
    shape = source.tensor.shape if by_source else target.tensor.shape
    parameters = [pointer("x", source), pointer("y", target)]
    if flat(source) and flat(target):
        with each(symbol, parameters, (source.tensor.elements,)) as (body, (i,)):
            x, y = body.buffers
            store(y, x[i + source.origin], i + target.origin)
        return Emitted(body.done)
    with each(symbol, parameters, shape) as (body, index):
        x, y = body.buffers
        there, here = (source, target) if by_source else (target, source)
        steps = Placed(there.tensor).strides
        own, other = at(there, *index), flat_offset(here, dot(steps, index), index, shape)
        store(y, x[own if by_source else other], other if by_source else own)
    return Emitted(body.done)


def flat_offset(place: Placed, position: Any, index: list[Any], shape: tuple[int, ...]) -> Any:
    """Where the element at a position of the flattened tensor lies; ``index`` is used where the shapes agree."""
    if place.tensor.shape == shape:
        return at(place, *index)
    if flat(place):
        return position + place.origin
    return at(place, *unravelled(position, place.tensor.shape))


def _view(op: View, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    """A view whose memory can't be shared."""
    return move(placed[op.inputs[0]], placed[op.output], symbol)


def _copy(op: Copy, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    """A copy by strides; tensors in a layout of their own are read by their dense position."""
    from tvm.tirx.script import builder as T

    source, target = placed[op.inputs[0]], placed[op.output]
    parameters = [pointer("x", source), pointer("y", target)]

    def move_one(x: Any, y: Any, index: list[Any]) -> None:
        there = flat_offset(source, dot(op.in_strides, index, op.in_offset), [], ())
        here = flat_offset(target, dot(op.out_strides, index, op.out_offset), [], ())
        store(y, x[T.cast(there, "int32")] if isinstance(there, int) else x[there], here)

    if op.fill is None:
        with each(symbol, parameters, op.extents) as (body, index):
            x, y = body.buffers
            move_one(x, y, index)
        return Emitted(body.done)
    with function(symbol, parameters) as body:
        x, y = body.buffers
        value = constant(op.fill, target.tensor.dtype)
        with loops(target.tensor.shape) as index:
            store(y, value, at(target, *index))
        with loops(op.extents) as index:
            move_one(x, y, index)
    return Emitted(body.done)


def _concatenate(op: Concatenate, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    """One input behind the other."""
    sources, target = [placed[name] for name in op.inputs], placed[op.output]
    parameters = [pointer(f"x{i}", source) for i, source in enumerate(sources)]
    with function(symbol, [*parameters, pointer("y", target)]) as body:
        *inputs, y = body.buffers
        axis = op.axis % len(target.tensor.shape)
        start = 0
        for x, source in zip(inputs, sources, strict=True):
            with loops(source.tensor.shape) as index:
                moved = [i + start if k == axis else i for k, i in enumerate(index)]
                store(y, x[at(source, *index)], at(target, *moved))
            start += source.tensor.shape[axis]
    return Emitted(body.done)


def _lookup(op: Lookup, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    """A table of 256 values."""
    from tvm.tirx.script import builder as T

    source, target = placed[op.inputs[0]], placed[op.output]
    lowest = -128 if source.tensor.dtype == "int8" else 0
    numbers = ("table", target.tensor.dtype, 256)
    parameters = [pointer("x", source), pointer("y", target), numbers]
    with each(symbol, parameters, source.tensor.shape) as (body, index):
        x, y, values = body.buffers
        place = T.cast(x[at(source, *index)], "int32") - lowest
        store(y, values[place], at(target, *index))
    return Emitted(body.done, (np.ascontiguousarray(op.table, target.tensor.dtype),), in_place=(0,))


def _constant(op: Constant, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted:
    """The network's own numbers, written where a tensor is."""
    target = placed[op.output]
    held = np.ascontiguousarray(op.value, target.tensor.dtype).reshape(-1)
    shape = target.tensor.shape
    dense = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    with each(symbol, [pointer("y", target), ("values", target.tensor.dtype, held.size)], shape) as (body, index):
        y, values = body.buffers
        store(y, values[dot(dense, index, 0)], at(target, *index))
    return Emitted(body.done, (held,))


KERNELS: Mapping[type[Op], Kernels] = {
    View: _view,
    Copy: _copy,
    Concatenate: _concatenate,
    Lookup: _lookup,
    Constant: _constant,
}

emit: Emitter = table(KERNELS)
"""The kernel, if the operator only moves numbers."""


__all__ = ["emit", "fill_halo", "flat_offset", "move"]
