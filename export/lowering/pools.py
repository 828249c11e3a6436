"""Rules of pooling and of means over space."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compress.export.lowering.builder import Value
from compress.export.lowering.errors import CannotLower
from compress.export.lowering.functions import Reals
from compress.export.lowering.graph import Node
from compress.export.lowering.products import image_value, requantize
from compress.export.lowering.windows import Window, window
from compress.integer import program as p

if TYPE_CHECKING:
    from compress.export.lowering.lower import Destination, Walk


def _image(walk: Walk, node: Node) -> tuple[Value, bool]:
    value = walk.value(node.inputs[0], node)
    rank = len(value.shape)
    if rank not in (3, 4) or value.shape[0] != 1:
        raise CannotLower(f"its input has the shape {value.shape}; (1, C, H, W) and (1, C, L) work", node.name, node.op)
    return walk.builder.arranged(node.name, value, (0, 2, 1) if rank == 3 else (2, 3, 1)), rank == 3


def counts(found: Window, size: tuple[int, int], result: tuple[int, int], include: bool) -> NDArray[np.int64]:
    """How many pixels each average divides by, (OH * OW,): of the window inside the image, or, with ``include``,
    inside the image and its padding."""
    along = []
    for axis in (0, 1):
        start = np.arange(result[axis]) * found.strides[axis] - found.padding[axis]
        end = start + found.kernel[axis]
        first, last = (-found.padding[axis], size[axis] + found.padding[axis + 2]) if include else (0, size[axis])
        along.append(np.minimum(end, last) - np.maximum(start, first))
    return np.asarray(np.outer(*along).ravel())


def _windowed(walk: Walk, node: Node) -> None:
    value, line = _image(walk, node)
    size = walk.builder.tensors[value.tensor].shape[:2]
    found = window(node, tuple(node.attributes["kernel_shape"]), (size[0], size[1]))
    if found.dilations != (1, 1):
        raise CannotLower("dilations aren't supported", node.name, node.op)
    result = found.output((size[0], size[1]), ceil=bool(node.attributes.get("ceil_mode", 0)))
    if node.op == "MaxPool":
        _largest(walk, node, value, found, result, line)
    else:
        include = bool(node.attributes.get("count_include_pad", 0))
        _average(walk, node, value, found, result, counts(found, (size[0], size[1]), result, include), line)


def _fitted(found: Window, size: tuple[int, int], result: tuple[int, int]) -> tuple[int, int, int, int]:
    """The padding with which the windows of ``result`` just fit: what ceil_mode adds behind, what is unused taken."""
    after = [(result[a] - 1) * found.strides[a] + found.kernel[a] - size[a] - found.padding[a] for a in (0, 1)]
    return found.padding[0], found.padding[1], max(0, after[0]), max(0, after[1])


def _largest(walk: Walk, node: Node, value: Value, found: Window, result: tuple[int, int], line: bool) -> None:
    """The maximum commutes with every grid, so that the result stays on its input's."""
    builder = walk.builder
    held = builder.integer(node.name, value)
    value = held if held is not None else builder.real(node.name, value)
    tensor = builder.tensors[value.tensor]
    shape = (*result, tensor.shape[2])
    padding = _fitted(found, (tensor.shape[0], tensor.shape[1]), result)
    made = builder.like(node.outputs[0], value.tensor, shape)
    if held is not None:
        builder.add(p.Pool, node.name, [value.tensor], made.name, "max", found.kernel, found.strides, padding, None)
    else:
        builder.add(
            p.FloatPool, node.name, [value.tensor], made.name, "max", found.kernel, found.strides, padding, None
        )
    walk.set(node.outputs[0], image_value(walk, node.outputs[0], made.name, line))


def _average(
    walk: Walk,
    node: Node,
    value: Value,
    found: Window,
    result: tuple[int, int],
    divisors: NDArray[np.int64],
    line: bool,
) -> None:
    builder = walk.builder
    to = walk.destination(node)
    tensor = builder.tensors[value.tensor]
    shape = (*result, tensor.shape[2])
    padding = _fitted(found, (tensor.shape[0], tensor.shape[1]), result)
    whole = builder.integer(node.name, value)
    if whole is not None and to.grid is not None:
        steps = builder.tensors[whole.tensor].scale / divisors
        steps = steps[:1] if np.ptp(divisors) == 0 else steps
        made = walk.output(to, shape)
        fields = ("average", found.kernel, found.strides, padding, requantize(steps, to))
        builder.add(p.Pool, node.name, [whole.tensor], made.name, *fields)
        walk.set(to, image_value(walk, to.value, made.name, line))
        return
    if tensor.dtype != "float32":
        builder.island(node.name, node.op, "its result isn't 8-bit")
    real = builder.real(node.name, value)
    raw = builder.tensor(f"{node.outputs[0]}_average", shape, "float32")
    fields_real = ("average", found.kernel, found.strides, padding, divisors.astype(np.float32))
    builder.add(p.FloatPool, node.name, [real.tensor], raw.name, *fields_real)
    image = image_value(walk, to.value, raw.name, line)
    walk.finish_real(node, to, raw.name, image.shape, image.axes)


def _whole(walk: Walk, node: Node) -> None:
    """Pooling over all of the image."""
    value, line = _image(walk, node)
    height, width, _ = walk.builder.tensors[value.tensor].shape
    found = Window((height, width), (1, 1), (0, 0, 0, 0), (1, 1))
    if node.op == "GlobalMaxPool":
        _largest(walk, node, value, found, (1, 1), line)
    else:
        _average(walk, node, value, found, (1, 1), np.array([height * width]), line)


def _reduce(walk: Walk, node: Node) -> None:
    """Mean, sum or maximum over axes; a mean over space is a pool in integers."""
    value = walk.value(node.inputs[0], node)
    rank = len(value.shape)
    given = walk.graph.constants.get(node.input(1)) if node.input(1) else node.attributes.get("axes")
    over = sorted(int(a) % rank for a in np.ravel(given)) if given is not None else list(range(rank))
    keeps = bool(node.attributes.get("keepdims", 1))
    shape = tuple(1 if axis in over else size for axis, size in enumerate(value.shape))
    if node.op == "ReduceMean" and _pooled(walk, node, value, over, shape, keeps):
        return
    to = walk.destination(node)
    if walk.builder.tensors[value.tensor].dtype != "float32":
        walk.builder.island(node.name, node.op, "a reduction over these axes is done in float")
    real = walk.builder.real(node.name, value)
    axes = tuple(index for index, axis in enumerate(real.axes) if axis in over)
    held = walk.builder.tensors[real.tensor].shape
    kind = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "max"}[node.op]
    made = Reals(walk, node, held).reduce(kind, real.tensor, axes)
    _finish(walk, node, to, Value(made, shape, real.axes), over, keeps, True)


def _finish(walk: Walk, node: Node, to: Destination, value: Value, over: list[int], keeps: bool, real: bool) -> None:
    """Set the result, without the axes that are reduced where they aren't kept."""
    if not keeps:
        value = dropped(walk, node, value, over)
    if real:
        walk.finish_real(node, to, value.tensor, value.shape, value.axes)
    else:
        walk.set(to, value)


def dropped(walk: Walk, node: Node, value: Value, over: list[int]) -> Value:
    """The value without file axes of size 1."""
    kept = [axis for axis in range(len(value.shape)) if axis not in over]
    axes = [axis for axis in value.axes if axis not in over]
    tensor = walk.builder.view(node.name, value, tuple(value.shape[axis] for axis in axes))
    return Value(tensor, tuple(value.shape[a] for a in kept), tuple(kept.index(a) for a in axes), value.function)


def _pooled(walk: Walk, node: Node, value: Value, over: list[int], shape: tuple[int, ...], keeps: bool) -> bool:
    """A mean over neighbouring axes of an 8-bit tensor as one over the rows of an image (rows, 1, channels)."""
    builder = walk.builder
    if builder.lookup_domain(value) is None or value.shape[:1] != (1,) or 0 in over:
        return False
    rest = [axis for axis in range(1, len(value.shape)) if axis not in over]
    to = walk.destination(node)
    whole = builder.integer(node.name, value)
    if to.grid is None or whole is None:
        builder.island(node.name, node.op, "its result isn't 8-bit")
        real = builder.real(node.name, value)
        axes = tuple(index for index, axis in enumerate(real.axes) if axis in over)
        held = builder.tensors[real.tensor].shape
        made = Reals(walk, node, held).reduce("mean", real.tensor, axes)
        _finish(walk, node, to, Value(made, shape, real.axes), over, keeps, True)
        return True
    laid = builder.arranged(node.name, whole, (*over, *rest))
    rows, channels = prod(value.shape[a] for a in over), prod(value.shape[a] for a in rest)
    image = builder.view(node.name, laid, (rows, 1, channels))
    out = walk.output(to, (1, 1, channels))
    steps = np.array([builder.tensors[image].scale / rows])
    fields = ("average", (rows, 1), (1, 1), (0, 0, 0, 0), requantize(steps, to))
    builder.add(p.Pool, node.name, [image], out.name, *fields)
    inner = Value(out.name, (1, 1, channels), (0, 1, 2))
    sized = tuple(shape[axis] for axis in rest)
    _finish(walk, node, to, Value(builder.view(node.name, inner, sized), shape, tuple(rest)), over, keeps, False)
    return True


RULES = {
    "MaxPool": _windowed,
    "AveragePool": _windowed,
    "GlobalAveragePool": _whole,
    "GlobalMaxPool": _whole,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "ReduceMax": _reduce,
}
