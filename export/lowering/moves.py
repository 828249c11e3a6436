"""Rules of operators that move values without computing: their grid, or their function, stays what it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.export.lowering import resizing
from compress.export.lowering.builder import GridSpec, Value, strides_of
from compress.export.lowering.errors import CannotLower
from compress.export.lowering.graph import Node
from compress.export.lowering.pools import dropped
from compress.integer import program as p
from compress.integer.fixed_point import small_multipliers
from compress.integer.reference import quantized

if TYPE_CHECKING:
    from compress.export.lowering.lower import Walk


def reshaped(walk: Walk, node: Node, value: Value, shape: tuple[int, ...]) -> Value:
    """The value under another shape of the file: renamed where only axes of size 1 come or go, else laid in the
    file's order first."""
    builder = walk.builder
    old = [axis for axis, size in enumerate(value.shape) if size > 1]
    new = [axis for axis, size in enumerate(shape) if size > 1]
    if [value.shape[a] for a in old] == [shape[a] for a in new]:
        sized = [axis for axis in value.axes if value.shape[axis] > 1]
        tensor = builder.view(node.name, value, tuple(value.shape[axis] for axis in sized))
        return Value(tensor, shape, tuple(new[old.index(axis)] for axis in sized), value.function)
    laid = builder.arranged(node.name, value, tuple(range(len(value.shape))))
    return Value(builder.view(node.name, laid, shape), shape, tuple(range(len(shape))), value.function)


def _reshape(walk: Walk, node: Node) -> None:
    value = walk.value(node.inputs[0], node)
    asked = walk.graph.constants.get(node.inputs[1])
    if asked is None:
        raise CannotLower(
            "its shape is computed from the input; export the network with fixed sizes", node.name, node.op
        )
    sizes = [int(s) for s in np.ravel(asked)]
    if not node.attributes.get("allowzero", 0):
        sizes = [value.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    if -1 in sizes:
        sizes[sizes.index(-1)] = prod(value.shape) // -prod(sizes)
    if prod(sizes) != prod(value.shape):
        raise CannotLower(f"{value.shape} can't become {tuple(sizes)}", node.name, node.op)
    walk.set(node.outputs[0], reshaped(walk, node, value, tuple(sizes)))


def _flatten(walk: Walk, node: Node) -> None:
    value = walk.value(node.inputs[0], node)
    axis = int(node.attributes.get("axis", 1))
    axis = axis + len(value.shape) if axis < 0 else axis
    shape = (prod(value.shape[:axis]), prod(value.shape[axis:]))
    walk.set(node.outputs[0], reshaped(walk, node, value, shape))


def _axes(walk: Walk, node: Node) -> list[int] | None:
    given = walk.graph.constants.get(node.input(1)) if node.input(1) else node.attributes.get("axes")
    return None if given is None else [int(a) for a in np.ravel(given)]


def _squeeze(walk: Walk, node: Node) -> None:
    value = walk.value(node.inputs[0], node)
    axes = _axes(walk, node)
    rank = len(value.shape)
    gone = [a for a, s in enumerate(value.shape) if s == 1] if axes is None else [a % rank for a in axes]
    if any(value.shape[axis] != 1 for axis in gone):
        raise CannotLower("an axis that is larger than 1 can't go", node.name, node.op)
    walk.set(node.outputs[0], reshaped(walk, node, value, tuple(s for a, s in enumerate(value.shape) if a not in gone)))


def _unsqueeze(walk: Walk, node: Node) -> None:
    value = walk.value(node.inputs[0], node)
    axes = _axes(walk, node) or []
    rank = len(value.shape) + len(axes)
    sizes = iter(value.shape)
    new = {axis % rank for axis in axes}
    shape = tuple(1 if axis in new else next(sizes) for axis in range(rank))
    walk.set(node.outputs[0], reshaped(walk, node, value, shape))


def _transpose(walk: Walk, node: Node) -> None:
    """Nothing moves: the tensor's axes only stand for others."""
    value = walk.value(node.inputs[0], node)
    order = [int(a) for a in node.attributes.get("perm", range(len(value.shape))[::-1])]
    shape = tuple(value.shape[axis] for axis in order)
    walk.set(node.outputs[0], Value(value.tensor, shape, tuple(order.index(a) for a in value.axes), value.function))


def sliced(
    walk: Walk, name: str, node: Node, value: Value, starts: Sequence[int], counts: Sequence[int], steps: Sequence[int]
) -> Value:
    """Some indices of each file axis."""
    shape = tuple(counts)
    if shape == value.shape and all(step == 1 for step in steps):
        return value
    whole = tuple(axis for axis in range(len(value.shape)) if axis not in value.axes)
    builder = walk.builder
    old = builder.tensors[value.tensor]
    held = strides_of(old.shape)
    laid = tuple(shape[axis] for axis in value.axes)
    made = builder.like(name, value.tensor, laid)
    offset = sum(starts[axis] * stride for axis, stride in zip(value.axes, held, strict=True))
    strides = tuple(steps[axis] * stride for axis, stride in zip(value.axes, held, strict=True))
    assert all(starts[axis] == 0 and shape[axis] == 1 for axis in whole)
    builder.add(p.Copy, node.name, [value.tensor], made.name, laid, strides, strides_of(laid), offset, 0, None)
    return Value(made.name, shape, value.axes, value.function)


def _slice(walk: Walk, node: Node) -> None:
    value = walk.value(node.inputs[0], node)
    rank = len(value.shape)

    def given(index: int, key: str) -> list[int] | None:
        name = node.input(index)
        found = walk.graph.constants.get(name) if name else node.attributes.get(key)
        if name and found is None:
            raise CannotLower("its ends are computed; export the network with fixed sizes", node.name, node.op)
        return None if found is None else [int(v) for v in np.ravel(found)]

    begins, ends = given(1, "starts") or [], given(2, "ends") or []
    axes = given(3, "axes") or list(range(len(begins)))
    every = given(4, "steps") or [1] * len(begins)
    starts, counts, steps = [0] * rank, list(value.shape), [1] * rank
    for begin, end, axis, step in zip(begins, ends, axes, every, strict=True):
        indices = range(*slice(begin, end, step).indices(value.shape[axis]))
        if len(indices) == 0:
            raise CannotLower("nothing is left of the tensor", node.name, node.op)
        starts[axis], counts[axis], steps[axis] = indices[0], len(indices), step
    walk.set(node.outputs[0], sliced(walk, node.outputs[0], node, value, starts, counts, steps))


def _split(walk: Walk, node: Node) -> None:
    value = walk.value(node.inputs[0], node)
    axis = int(node.attributes.get("axis", 0)) % len(value.shape)
    given = walk.graph.constants.get(node.input(1)) if node.input(1) else node.attributes.get("split")
    size = value.shape[axis]
    if given is None:
        each = -(-size // len(node.outputs))
        parts = [min(each, size - each * index) for index in range(len(node.outputs))]
    else:
        parts = [int(v) for v in np.ravel(given)]
    begin = 0
    for name, count in zip(node.outputs, parts, strict=True):
        starts, counts = [0] * len(value.shape), list(value.shape)
        starts[axis], counts[axis] = begin, count
        walk.set(name, sliced(walk, name, node, value, starts, counts, [1] * len(value.shape)))
        begin += count


def _gather(walk: Walk, node: Node) -> None:
    """Constant indices that are one, or evenly spaced."""
    if walk.graph.constant(node.inputs[0]) is not None:
        said = "a table is looked up by computed indices; compute the embedding outside of the network"
        raise CannotLower(said, node.name, node.op)
    value = walk.value(node.inputs[0], node)
    found = walk.graph.constants.get(node.inputs[1])
    if found is None or found.ndim > 1:
        raise CannotLower("its indices are computed, or a table of them", node.name, node.op)
    axis = int(node.attributes.get("axis", 0)) % len(value.shape)
    indices = np.ravel(found).astype(np.int64) % value.shape[axis]
    gaps = np.diff(indices)
    if gaps.size and np.ptp(gaps):
        raise CannotLower("its indices aren't evenly spaced", node.name, node.op)
    rank = len(value.shape)
    starts, counts, steps = [0] * rank, list(value.shape), [1] * rank
    starts[axis], counts[axis], steps[axis] = int(indices[0]), indices.size, int(gaps[0]) if gaps.size else 1
    part = sliced(walk, node.outputs[0], node, value, starts, counts, steps)
    walk.set(node.outputs[0], dropped(walk, node, part, [axis]) if found.ndim == 0 else part)


def _pad(walk: Walk, node: Node) -> None:
    value = walk.value(node.inputs[0], node)
    mode = node.attributes.get("mode", b"constant")
    if mode not in (b"constant", "constant"):
        raise CannotLower(f"the mode {mode!r} isn't supported; constant is", node.name, node.op)
    rank = len(value.shape)
    given = walk.graph.constants.get(node.input(1)) if node.input(1) else node.attributes.get("pads")
    if given is None:
        raise CannotLower("its pads are computed", node.name, node.op)
    pads = [int(v) for v in np.ravel(given)]
    axes = walk.graph.constants.get(node.input(3)) if node.input(3) else None
    on = [int(a) % rank for a in np.ravel(axes)] if axes is not None else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for index, axis in enumerate(on):
        before[axis], after[axis] = pads[index], pads[len(on) + index]
    if min(*before, *after) < 0:
        raise CannotLower("pads below 0 aren't supported; use a slice", node.name, node.op)
    name = node.input(2)
    filled = walk.graph.constant(name) if name else np.float32(node.attributes.get("value", 0.0))
    real = float(np.ravel(filled)[0]) if filled is not None and np.size(filled) else 0.0
    builder = walk.builder
    whole = builder.integer(node.name, value)
    value = whole if whole is not None else builder.real(node.name, value)
    missing = [axis for axis in range(rank) if axis not in value.axes and (before[axis] or after[axis])]
    if missing:
        value = builder.arranged(node.name, value, (*missing, *value.axes))
    tensor = builder.tensors[value.tensor]
    fill: float = real
    if whole is not None:
        low, high = p.LIMITS[tensor.dtype]
        fill = int(quantized(np.array([real], np.float32), tensor.scale, tensor.zero_point, low, high)[0])
        if abs((fill - tensor.zero_point) * tensor.scale - real) > 1e-6 * max(1.0, abs(real)):
            raise CannotLower(f"{real:g} isn't on the grid of its input", node.name, node.op)
    shape = tuple(b + s + a for b, s, a in zip(before, value.shape, after, strict=True))
    laid = tuple(shape[axis] for axis in value.axes)
    out = strides_of(laid)
    offset = sum(before[axis] * stride for axis, stride in zip(value.axes, out, strict=True))
    made = builder.like(node.outputs[0], value.tensor, laid)
    builder.add(
        p.Copy, node.name, [value.tensor], made.name, tensor.shape, strides_of(tensor.shape), out, 0, offset, fill
    )
    walk.set(node.outputs[0], replace(value, tensor=made.name, shape=shape))


def _concat(walk: Walk, node: Node) -> None:
    builder = walk.builder
    to = walk.destination(node)
    values = [_known(walk, node, name, to.grid) for name in node.inputs]
    rank = len(values[0].shape)
    axis = int(node.attributes.get("axis", 0)) % rank
    main = max(values, key=lambda value: prod(value.shape))
    order = main.axes if axis in main.axes else (axis, *main.axes)
    missing = [a for a in range(rank) if a not in order and any(v.shape[a] > 1 for v in values)]
    order = (*missing, *order)
    shape = tuple(sum(v.shape[a] for v in values) if a == axis else s for a, s in enumerate(main.shape))
    laid = tuple(shape[a] for a in order)
    at = order.index(axis)
    if to.grid is not None and all(builder.lookup_domain(value) is not None for value in values):
        inputs = [builder.arranged(node.name, regridded(walk, node, v, to.grid), order).tensor for v in values]
        made = walk.output(to, laid)
        builder.add(p.Concatenate, node.name, inputs, made.name, at)
        walk.set(to, Value(made.name, shape, order))
        return
    whole = [builder.integer(node.name, value) for value in values]
    if None not in whole:
        tensors = [builder.tensors[value.tensor] for value in whole if value is not None]
        grids = {(t.dtype, t.scale, t.zero_point) for t in tensors}
        if to.grid is None and len(grids) == 1 and (to.low, to.high) == (-np.inf, np.inf):
            inputs = [builder.arranged(node.name, value, order).tensor for value in whole if value is not None]
            made = builder.like(to.value, tensors[0].name, laid)
            builder.add(p.Concatenate, node.name, inputs, made.name, at)
            walk.set(to, Value(made.name, shape, order))
            return
    if any(builder.lookup_domain(value) is not None for value in values):
        builder.island(node.name, node.op, "its inputs lie on different grids and its result on none")
    reals = [builder.arranged(node.name, builder.real(node.name, value), order).tensor for value in values]
    made = builder.tensor(f"{node.outputs[0]}_joined", laid, "float32")
    builder.add(p.Concatenate, node.name, reals, made.name, at)
    walk.finish_real(node, to, made.name, shape, order)


def _known(walk: Walk, node: Node, name: str, grid: GridSpec | None) -> Value:
    """A value, or a constant as a tensor: on ``grid`` where the result lies on one, else of float32."""
    constant = walk.graph.constant(name)
    if constant is None:
        return walk.value(name, node)
    shape = tuple(int(s) for s in np.shape(constant))
    held: np.ndarray[Any, Any] = np.asarray(constant, np.float32)
    if grid is None:
        made = walk.builder.tensor(name, shape, "float32")
    else:
        made = walk.builder.tensor(name, shape, grid.dtype, grid.scale, grid.zero_point)
        held = quantized(held, grid.scale, grid.zero_point, grid.low, grid.high).astype(grid.dtype)
    walk.builder.add(p.Constant, f"{node.name}_constant", [], made.name, held)
    return Value(made.name, shape, tuple(range(len(shape))))


def regridded(walk: Walk, node: Node, value: Value, grid: GridSpec) -> Value:
    """An 8-bit value, or a function of one, on another grid; the same where it is on it already."""
    tensor = walk.builder.tensors[value.tensor]
    same = (tensor.dtype, tensor.scale, tensor.zero_point) == (grid.dtype, grid.scale, grid.zero_point)
    if value.function is None and same and (grid.low, grid.high) == p.LIMITS[grid.dtype]:
        return value
    made = walk.builder.tensor(f"{tensor.name}_regridded", tensor.shape, grid.dtype, grid.scale, grid.zero_point)
    if value.function is not None:
        table = quantized(value.function, grid.scale, grid.zero_point, grid.low, grid.high).astype(grid.dtype)
        walk.builder.add(p.Lookup, f"{node.name}_function", [value.tensor], made.name, table)
    else:
        ms, shift = small_multipliers([tensor.scale / grid.scale])
        ends = (grid.zero_point, grid.low, grid.high)
        walk.builder.add(p.Add, f"{node.name}_regrid", [tensor.name], made.name, ms, shift, *ends)
    return replace(value, tensor=made.name, function=None)


def _blocks(walk: Walk, node: Node) -> None:
    """DepthToSpace and SpaceToDepth, as the reshape, transposition and reshape that define them."""
    value = walk.value(node.inputs[0], node)
    block = int(node.attributes["blocksize"])
    _, channels, height, width = value.shape
    if node.op == "DepthToSpace":
        inner = channels // block**2
        columns_first = node.attributes.get("mode", b"DCR") in (b"CRD", "CRD")
        split = (1, inner, block, block, height, width) if columns_first else (1, block, block, inner, height, width)
        order = (0, 1, 4, 2, 5, 3) if columns_first else (0, 3, 4, 1, 5, 2)
        shape = (1, inner, height * block, width * block)
    else:
        split = (1, channels, height // block, block, width // block, block)
        order = (0, 3, 5, 1, 2, 4)
        shape = (1, channels * block**2, height // block, width // block)
    middle = reshaped(walk, node, value, split)
    turned = Value(
        middle.tensor, tuple(split[a] for a in order), tuple(order.index(a) for a in middle.axes), middle.function
    )
    walk.set(node.outputs[0], reshaped(walk, node, turned, shape))


RULES = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Pad": _pad,
    "Concat": _concat,
    "DepthToSpace": _blocks,
    "SpaceToDepth": _blocks,
    **resizing.RULES,
}
