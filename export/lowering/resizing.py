"""Rules of enlarging and shrinking images: nearest neighbour by whole factors, and bilinear."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compress.export.lowering.builder import Value, strides_of
from compress.export.lowering.errors import CannotLower
from compress.export.lowering.graph import Node
from compress.integer import program as p
from compress.integer.fixed_point import multipliers
from compress.integer.reference import RESIZE_BITS

if TYPE_CHECKING:
    from compress.export.lowering.lower import Walk


def _text(node: Node, key: str, default: str) -> str:
    value = node.attributes.get(key, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def positions(size: int, result: int, scale: float, way: str) -> NDArray[np.float64]:
    """Where each result index lies in the input: ONNX's coordinate transformations. float64 (result,)."""
    x = np.arange(result, dtype=np.float64)
    if way == "asymmetric":
        return np.asarray(x / scale)
    if way == "align_corners":
        return np.asarray(x * (size - 1) / (result - 1) if result > 1 else x * 0)
    if way == "half_pixel" or (way == "pytorch_half_pixel" and result > 1):
        return np.asarray((x + 0.5) / scale - 0.5)
    if way == "pytorch_half_pixel":
        return x * 0
    raise ValueError(f"the coordinate transformation {way!r} isn't supported")


def bilinear(size: int, result: int, scale: float, way: str) -> p.Ints:
    """(first index, second index, weight of the second in 1/1024) for each result index."""
    where = np.clip(positions(size, result, scale, way), 0, size - 1)
    first = np.floor(where).astype(np.int64)
    share = np.rint((where - first) * (1 << RESIZE_BITS)).astype(np.int64)
    return np.stack([first, np.minimum(first + 1, size - 1), share], axis=1).astype(np.int32)


def _resize(walk: Walk, node: Node) -> None:
    value = walk.value(node.inputs[0], node)
    if len(value.shape) != 4 or value.shape[0] != 1:
        raise CannotLower(f"its input has the shape {value.shape}; (1, C, H, W) is supported", node.name, node.op)
    value = walk.builder.arranged(node.name, value, (2, 3, 1))
    size, result, scales = _sizes(walk, node, value)
    mode = _text(node, "mode", "nearest")
    if mode == "nearest":
        _nearest(walk, node, value, size, result)
    elif mode in ("linear", "bilinear"):
        way = "asymmetric" if node.op == "Upsample" else _text(node, "coordinate_transformation_mode", "half_pixel")
        _bilinear(walk, node, value, [bilinear(s, r, k, way) for s, r, k in zip(size, result, scales, strict=True)])
    else:
        raise CannotLower(f"the mode {mode!r} isn't supported; nearest and linear are", node.name, node.op)


def _sizes(walk: Walk, node: Node, value: Value) -> tuple[list[int], list[int], list[float]]:
    constants = walk.graph.constants
    scales, sizes = (node.input(1), "") if node.op == "Upsample" else (node.input(2), node.input(3))
    held = list(value.shape[2:])
    if sizes and sizes in constants:
        result = [int(v) for v in np.ravel(constants[sizes])[-2:]]
        return held, result, [r / s for r, s in zip(result, held, strict=True)]
    if scales and scales in constants:
        factors = [float(v) for v in np.ravel(constants[scales])[-2:]]
        return held, [int(np.floor(s * f)) for s, f in zip(held, factors, strict=True)], factors
    raise CannotLower("its sizes are computed; export the network with fixed sizes", node.name, node.op)


def _nearest(walk: Walk, node: Node, value: Value, size: list[int], result: list[int]) -> None:
    if any(r % s for r, s in zip(result, size, strict=True)):
        raise CannotLower("nearest neighbour by a factor that isn't whole isn't supported", node.name, node.op)
    up = [r // s for r, s in zip(result, size, strict=True)]
    channels = value.shape[1]
    made = walk.builder.like(node.outputs[0], value.tensor, (*result, channels))
    held, out = strides_of((*size, channels)), strides_of((*result, channels))
    extents = (size[0], up[0], size[1], up[1], channels)
    sources = (held[0], 0, held[1], 0, 1)
    goals = (up[0] * out[0], out[0], up[1] * out[1], out[1], 1)
    walk.builder.add(p.Copy, node.name, [value.tensor], made.name, extents, sources, goals, 0, 0, None)
    walk.set(node.outputs[0], Value(made.name, (1, channels, *result), (2, 3, 1), value.function))


def _matrices(walk: Walk, node: Node, value: Value, tables: list[p.Ints]) -> str:
    """Bilinear in float32: a product with a matrix of weights along the rows, then one along the columns.

    The tensor (OW, OH, C) that it gives lies columns first.
    """
    builder = walk.builder
    if builder.tensors[value.tensor].dtype != "float32":
        builder.island(node.name, node.op, "its result isn't 8-bit")
    real = builder.real(node.name, value)
    for table, order in zip(tables, ((2, 3, 1), (3, 2, 1)), strict=True):
        real = builder.arranged(node.name, real, order)
        size, others, channels = builder.tensors[real.tensor].shape
        weights = np.zeros((len(table), size), np.float32)
        rows = np.arange(len(table))
        share = table[:, 2].astype(np.float32) / np.float32(1 << RESIZE_BITS)
        np.add.at(weights, (rows, table[:, 0]), 1 - share)
        np.add.at(weights, (rows, table[:, 1]), share)
        matrix = builder.tensor(f"{node.outputs[0]}_weights", weights.shape, "float32")
        builder.add(p.Constant, f"{node.name}_weights", [], matrix.name, weights)
        flat = builder.view(node.name, real, (size, others * channels))
        made = builder.tensor(f"{node.outputs[0]}_product", (len(table), others * channels), "float32")
        builder.add(p.FloatMatMul, f"{node.name}_product", [matrix.name, flat], made.name)
        shape = list(real.shape)
        shape[order[0]] = len(table)
        held = Value(made.name, (len(table), others * channels), (0, 1))
        real = Value(builder.view(node.name, held, (len(table), others, channels)), tuple(shape), order)
    return real.tensor


def _bilinear(walk: Walk, node: Node, value: Value, tables: list[p.Ints]) -> None:
    to = walk.destination(node)
    whole = walk.builder.integer(node.name, value)
    channels = value.shape[1]
    if to.grid is None or whole is None:
        axes = (3, 2, 1)
        walk.finish_real(
            node, to, _matrices(walk, node, value, tables), (1, channels, len(tables[0]), len(tables[1])), axes
        )
        return
    result = (len(tables[0]), len(tables[1]))
    step = walk.builder.tensors[whole.tensor].scale / (1 << 2 * RESIZE_BITS)
    m, s = multipliers([step / to.grid.scale])
    how = p.Requantize(m, s, to.grid.zero_point, to.grid.low, to.grid.high)
    made = walk.output(to, (*result, channels))
    walk.builder.add(p.Resize, node.name, [whole.tensor], made.name, *tables, how)
    walk.set(to, Value(made.name, (1, channels, *result), (2, 3, 1)))


RULES = {"Resize": _resize, "Upsample": _resize}
