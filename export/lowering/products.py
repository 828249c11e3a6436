"""Rules of convolutions, linear layers and matrix products."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.export.lowering import affine
from compress.export.lowering.builder import Value
from compress.export.lowering.errors import CannotLower
from compress.export.lowering.graph import Node
from compress.export.lowering.weights import OnGrid, narrowest, one_scale, symmetric, two_products
from compress.export.lowering.windows import window
from compress.integer import program as p
from compress.integer.fixed_point import multipliers

if TYPE_CHECKING:
    from compress.export.lowering.lower import Destination, Walk

Array = NDArray[Any]


def _bias(walk: Walk, node: Node, name: str, step: NDArray[np.float64]) -> p.Ints:
    """A bias on the accumulators' grid, ``step`` = input scale x weight scale: as the file holds it, or rounded."""
    if not name:
        return np.zeros(step.size, np.int32)
    held = walk.graph.quantized.get(name)
    if held is not None and held.integers.dtype == np.int32 and not held.zero_point.any():
        scales = np.broadcast_to(held.scale.astype(np.float64), step.shape)
        if np.allclose(scales, step, rtol=1e-5, atol=0):
            return held.integers.astype(np.int32).reshape(step.size)
    values = walk.graph.constant(name)
    if values is None:
        raise CannotLower("its bias is computed; give it a constant one", node.name, node.op)
    rounded = np.rint(np.broadcast_to(np.asarray(values, np.float64).ravel(), step.shape) / step)
    return np.clip(rounded, -(2**31) + 1, 2**31 - 1).astype(np.int32)


def _real_bias(walk: Walk, node: Node, name: str, outputs: int) -> p.Floats:
    values = walk.graph.constant(name) if name else np.zeros(outputs)
    if values is None:
        raise CannotLower("its bias is computed; give it a constant one", node.name, node.op)
    return np.asarray(np.broadcast_to(np.asarray(values, np.float32).ravel(), (outputs,)), np.float32)


def requantize(factors: NDArray[np.float64], to: Destination) -> p.Requantize:
    """Accumulators on grids of ``factors`` to the destination's grid."""
    assert to.grid is not None
    m, s = multipliers(factors / to.grid.scale)
    return p.Requantize(m, s, to.grid.zero_point, to.grid.low, to.grid.high)


def convolve(
    walk: Walk,
    node: Node,
    value: Value,
    image: tuple[int, int, int],
    weight_name: str,
    weight: Array,
    quantized_weight: OnGrid | None,
    bias_name: str,
    fields: tuple[Any, ...],
    size: tuple[int, int],
) -> tuple[Destination, str]:
    """One convolution, in integers where both of its operands are; its destination and its tensor (OH, OW, O).

    Args:
        walk, node: where the walk is.
        value: the input; its tensor holds ``image`` (H, W, C) or a view of it does.
        image: see ``value``.
        weight_name: for the note.
        weight: float32 (O, KH, KW, C / groups).
        quantized_weight: the same as integers and scales, if it is on a grid.
        bias_name: of a constant, or "".
        fields: strides, padding, dilations, groups.
        size: (OH, OW).
    """
    builder = walk.builder
    integer = builder.integer(node.name, value) if quantized_weight is not None else None
    if integer is None:
        why = _why_float(walk, node, weight_name, quantized_weight is None)
        builder.island(node.name, node.op, why)
        return _in_float(walk, node, value, image, weight, bias_name, fields, size)
    assert quantized_weight is not None
    integers, scales = quantized_weight
    step = builder.tensors[integer.tensor].scale * scales
    source = builder.view(node.name, integer, image)
    bias = _bias(walk, node, bias_name, step)
    source, narrow = two_products(walk, node, source, integers, fields[-1])
    channels = 1 if node.op in ("Conv", "ConvTranspose") else -1
    last, weights, step, bias = affine.absorbed(walk, node, channels, narrow, step, bias)
    to = walk.destination(last)
    made = walk.output(to, (*size, weight.shape[0]))
    how = None if to.grid is None else requantize(step, to)
    scale = step.astype(np.float32) if to.grid is None else None
    weights = np.ascontiguousarray(weights)
    builder.add(p.Convolution, node.name, [source], made.name, weights, narrowest(weights), bias, *fields, how, scale)
    return to, walk.clipped(node.name, to, made)


def _in_float(
    walk: Walk,
    node: Node,
    value: Value,
    image: tuple[int, int, int],
    weight: Array,
    bias_name: str,
    fields: tuple[Any, ...],
    size: tuple[int, int],
) -> tuple[Destination, str]:
    """:func:`convolve` in float32."""
    builder = walk.builder
    to = walk.destination(node)
    source = builder.view(node.name, builder.real(node.name, value), image)
    bias = _real_bias(walk, node, bias_name, weight.shape[0])
    ends = (to.low, to.high) if to.grid is None else (-np.inf, np.inf)
    raw = builder.tensor(f"{to.value}_float" if to.grid else to.value, (*size, weight.shape[0]), "float32")
    weights = np.ascontiguousarray(weight, np.float32)
    builder.add(p.FloatConvolution, node.name, [source], raw.name, weights, bias, *fields, *ends)
    if to.grid is None:
        return to, raw.name
    made = walk.output(to, raw.shape)
    builder.add(p.Quantize, f"{node.name}_quantize", [raw.name], made.name, to.grid.low, to.grid.high)
    return to, made.name


def _why_float(walk: Walk, node: Node, weight_name: str, no_weight: bool) -> str:
    if not no_weight:
        return "its input isn't 8-bit"
    if weight_name not in walk.graph.quantized:
        return "the file holds its weight in float"
    return "the grid of its weight has scales along another axis than its output channels, or lies above 0"


def _image(walk: Walk, node: Node) -> tuple[Value, tuple[int, int, int], bool]:
    """The input as an image: the value laid channels last, (H, W, C), and whether it has one spatial axis."""
    value = walk.value(node.inputs[0], node)
    rank = len(value.shape)
    if rank not in (3, 4) or value.shape[0] != 1:
        raise CannotLower(
            f"its input has the shape {value.shape}; (1, C, H, W) and (1, C, L) are supported", node.name, node.op
        )
    line = rank == 3
    value = walk.builder.arranged(node.name, value, (0, 2, 1) if line else (2, 3, 1))
    height, width, channels = walk.builder.tensors[value.tensor].shape
    return value, (height, width, channels), line


def image_value(walk: Walk, name: str, tensor: str, line: bool) -> Value:
    """The file's value of an image tensor (H, W, C)."""
    height, width, channels = walk.builder.tensors[tensor].shape
    return (
        Value(tensor, (1, channels, width), (0, 2, 1))
        if line
        else Value(tensor, (1, channels, height, width), (2, 3, 1))
    )


def _convolution(walk: Walk, node: Node) -> None:
    weight, held = walk.graph.constant(node.inputs[1]), walk.graph.quantized.get(node.inputs[1])
    if weight is None:
        raise CannotLower("its weight is computed, not a constant", node.name, node.op)
    value, image, line = _image(walk, node)
    found = window(node, weight.shape[2:], image[:2])
    spread = (slice(None), slice(None), None) if line else (slice(None), slice(None))
    on_grid = symmetric(held, 0)
    last = np.moveaxis(weight[spread], 1, -1)
    if on_grid is not None:
        on_grid = (np.moveaxis(on_grid[0][spread], 1, -1), on_grid[1])
    groups = int(node.attributes.get("group", 1))
    fields = (found.strides, found.padding, found.dilations, groups)
    to, tensor = convolve(
        walk, node, value, image, node.inputs[1], last, on_grid, node.input(2), fields, found.output(image[:2])
    )
    walk.set(to, image_value(walk, to.value, tensor, line))


def _transposed(walk: Walk, node: Node) -> None:
    """As a convolution of the image with zeros between its pixels, weights turned around."""
    weight, held = walk.graph.constant(node.inputs[1]), walk.graph.quantized.get(node.inputs[1])
    if weight is None:
        raise CannotLower("its weight is computed, not a constant", node.name, node.op)
    value, image, line = _image(walk, node)
    groups = int(node.attributes.get("group", 1))
    found = window(node, weight.shape[2:], image[:2])
    if node.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET") or "output_shape" in node.attributes:
        raise CannotLower("auto_pad and output_shape aren't supported; give pads", node.name, node.op)
    extra = [int(v) for v in node.attributes.get("output_padding", [0] * (1 if line else 2))]
    extra = [0, extra[0]] if line else extra

    def turned(array: Array, to: Any) -> Array:
        array = array[:, :, None] if line else array
        inputs, per_group = array.shape[:2]
        parts = array.reshape(groups, inputs // groups, per_group, *array.shape[2:])
        flipped = parts[:, :, :, ::-1, ::-1].transpose(0, 2, 3, 4, 1)
        return np.ascontiguousarray(flipped.reshape(groups * per_group, *flipped.shape[2:])).astype(to)

    on_grid = symmetric(held, 1) if groups == 1 else one_scale(held, groups * weight.shape[1])
    integers = None if on_grid is None else (turned(on_grid[0], np.int16), on_grid[1])
    integer = walk.builder.integer(node.name, value)
    value = walk.builder.real(node.name, value) if integer is None or integers is None else integer
    spread, size = _spread(walk, node, value, image, found.strides)
    reach = [(found.kernel[axis] - 1) * found.dilations[axis] for axis in (0, 1)]
    padding = (
        reach[0] - found.padding[0],
        reach[1] - found.padding[1],
        reach[0] - found.padding[2] + extra[0],
        reach[1] - found.padding[3] + extra[1],
    )
    if min(padding) < 0:
        raise CannotLower("its padding is larger than its kernel", node.name, node.op)
    result = (
        size[0] + padding[0] + padding[2] - reach[0],
        size[1] + padding[1] + padding[3] - reach[1],
    )
    fields = ((1, 1), padding, found.dilations, groups)
    to, tensor = convolve(
        walk,
        node,
        replace(value, tensor=spread),
        (*size, image[2]),
        node.inputs[1],
        turned(weight, np.float32),
        integers,
        node.input(2),
        fields,
        result,
    )
    walk.set(to, image_value(walk, to.value, tensor, line))


def _spread(
    walk: Walk, node: Node, value: Value, image: tuple[int, int, int], strides: tuple[int, int]
) -> tuple[str, tuple[int, int]]:
    """The image with ``strides - 1`` zeros between its pixels."""
    height, width, channels = image
    size = ((height - 1) * strides[0] + 1, (width - 1) * strides[1] + 1)
    source = walk.builder.view(node.name, value, image)
    if strides == (1, 1):
        return source, size
    made = walk.builder.like(f"{value.tensor}_spread", value.tensor, (*size, channels))
    out = (strides[0] * size[1] * channels, strides[1] * channels, 1)
    walk.builder.add(
        p.Copy,
        f"{node.name}_spread",
        [source],
        made.name,
        image,
        (width * channels, channels, 1),
        out,
        0,
        0,
        made.zero_point,
    )
    return made.name, size


def _linear(walk: Walk, node: Node, x: str, weight: Array, on_grid: Any, weight_name: str, bias_name: str) -> None:
    """``x @ weight.T + bias`` over the last axis; ``weight`` (O, C)."""
    value = walk.value(x, node)
    shape = value.shape
    value = walk.builder.arranged(node.name, value, tuple(range(len(shape))))
    rows, outputs = prod(shape[:-1]), weight.shape[0]
    quantized = None if on_grid is None else (on_grid[0].reshape(outputs, 1, 1, -1), on_grid[1])
    fields = ((1, 1), (0, 0, 0, 0), (1, 1), 1)
    kernel = weight.reshape(outputs, 1, 1, -1)
    to, tensor = convolve(
        walk, node, value, (rows, 1, shape[-1]), weight_name, kernel, quantized, bias_name, fields, (rows, 1)
    )
    # As an image of rows x 1 pixels; the file's axes come back by a view.
    whole = (*shape[:-1], outputs)
    inner = Value(tensor, (rows, 1, outputs), (0, 1, 2))
    walk.set(to, Value(walk.builder.view(node.name, inner, whole), whole, tuple(range(len(whole)))))


def _gemm(walk: Walk, node: Node) -> None:
    weight, held = walk.graph.constant(node.inputs[1]), walk.graph.quantized.get(node.inputs[1])
    if weight is None:
        if node.input(2) or node.attributes.get("alpha", 1.0) != 1.0:
            raise CannotLower("its weight is computed; use MatMul and Add", node.name, node.op)
        _both_computed(walk, node, bool(node.attributes.get("transA", 0)), bool(node.attributes.get("transB", 0)))
        return
    if node.attributes.get("transA", 0) or node.attributes.get("alpha", 1.0) != 1.0:
        raise CannotLower("transA and alpha aren't supported", node.name, node.op)
    if node.input(2) and node.attributes.get("beta", 1.0) != 1.0:
        raise CannotLower("beta isn't supported", node.name, node.op)
    across = bool(node.attributes.get("transB", 0))
    on_grid = symmetric(held, 0 if across else 1)
    if not across:
        weight = weight.T
        on_grid = None if on_grid is None else (np.ascontiguousarray(on_grid[0].T), on_grid[1])
    _linear(walk, node, node.inputs[0], weight, on_grid, node.inputs[1], node.input(2))


def _matmul(walk: Walk, node: Node) -> None:
    weight, held = walk.graph.constant(node.inputs[1]), walk.graph.quantized.get(node.inputs[1])
    if weight is None or weight.ndim != 2:
        _both_computed(walk, node, False, False)
        return
    on_grid = symmetric(held, 1)
    turned = None if on_grid is None else (np.ascontiguousarray(on_grid[0].T), on_grid[1])
    _linear(walk, node, node.inputs[0], weight.T, turned, node.inputs[1], "")


def _operand(walk: Walk, node: Node, name: str) -> Value:
    """A computed value, or a constant as a tensor: of the file's integers where one scale stands for all of them."""
    if walk.graph.constant(name) is None:
        return walk.value(name, node)
    held = walk.graph.quantized.get(name)
    fitting = [] if held is None or held.scale.size > 1 else [k for k in ("int8", "uint8") if _within(held.integers, k)]
    if held is not None and fitting:
        dtype: p.DType = "int8" if fitting[0] == "int8" else "uint8"
        shape = held.integers.shape
        made = walk.builder.tensor(name, shape, dtype, float(held.scale[0]), int(held.zero_point[0]))
        numbers: Array = held.integers.astype(dtype)
    else:
        numbers = np.asarray(walk.graph.constant(name), np.float32)
        shape = numbers.shape
        made = walk.builder.tensor(name, shape, "float32")
    walk.builder.add(p.Constant, f"{node.name}_constant", [], made.name, numbers)
    return Value(made.name, shape, tuple(range(len(shape))))


def _within(integers: Array, dtype: str) -> bool:
    low, high = p.LIMITS[dtype]
    return bool(low <= integers.min() and integers.max() <= high)


def _both_computed(walk: Walk, node: Node, turn_a: bool, turn_b: bool) -> None:
    """A product of two computed tensors, as attention has it; leading axes must be equal."""
    builder = walk.builder
    sides = []
    for name, turn in ((node.inputs[0], turn_a), (node.inputs[1], turn_b)):
        value = _operand(walk, node, name)
        order = list(range(len(value.shape)))
        if turn:
            order[-2:] = order[:-3:-1]
        sides.append((value, tuple(order), tuple(value.shape[axis] for axis in order)))
    (a, order_a, shape_a), (b, order_b, shape_b) = sides
    if len(shape_a) < 2 or shape_a[:-2] != shape_b[:-2]:
        raise CannotLower(f"a product of the shapes {shape_a} and {shape_b} isn't supported", node.name, node.op)
    to = walk.destination(node)
    shape = (*shape_a[:-1], shape_b[-1])
    whole_a, whole_b = builder.integer(node.name, a), builder.integer(node.name, b)
    if whole_a is None or whole_b is None:
        builder.island(node.name, node.op, "its inputs aren't 8-bit")
        inputs = [
            builder.arranged(node.name, builder.real(node.name, each), order).tensor
            for each, order in ((a, order_a), (b, order_b))
        ]
        raw = builder.tensor(f"{to.value}_float" if to.grid else to.value, shape, "float32")
        builder.add(p.FloatMatMul, node.name, inputs, raw.name)
        tensor = raw.name
        if to.grid is not None:
            made = walk.output(to, shape)
            tensor = builder.add(p.Quantize, f"{node.name}_quantize", [raw.name], made.name, to.grid.low, to.grid.high)
        else:
            tensor = walk.clipped(node.name, to, raw)
    else:
        inputs = [
            builder.arranged(node.name, each, order).tensor for each, order in ((whole_a, order_a), (whole_b, order_b))
        ]
        step = float(np.prod([builder.tensors[name].scale for name in inputs]))
        how = None if to.grid is None else requantize(np.array([step]), to)
        made = walk.output(to, shape)
        builder.add(p.MatMul, node.name, inputs, made.name, how, step if to.grid is None else None)
        tensor = walk.clipped(node.name, to, made)
    walk.set(to, Value(tensor, shape, tuple(range(len(shape)))))


RULES = {"Conv": _convolution, "ConvTranspose": _transposed, "Gemm": _gemm, "MatMul": _matmul}
