"""The forms of operators that runtimes have integer kernels for: each changes how a graph says something, not what.

Runtimes fuse an operator with the quantize/dequantize pairs around it into a kernel for integers, by its form. What
they don't find stays in float, with the pairs computed at every run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from compress.export.onnx_view import Readers, attribute, readers_of, shapes_of


def global_pooling(graph: Any, initializers: Mapping[str, Any]) -> None:
    """Means over space as GlobalAveragePool, for which runtimes have integer kernels."""
    from onnx import numpy_helper

    shapes = shapes_of(graph)
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in initializers:
            continue
        axes = sorted(int(a) % 4 for a in numpy_helper.to_array(initializers[node.input[1]]).ravel())
        if axes == [2, 3] and attribute(node, "keepdims", 1) == 1 and len(shapes.get(node.input[0], ())) == 4:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


MOVES = frozenset({"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"})
"""Behind these ONNX Runtime puts a quantize/dequantize pair like the one in front."""


def plain_moves(graph: Any, initializers: Mapping[str, Any]) -> None:
    """Signed values that only move before a float operator reads them are dequantized without naming a zero point of 0.

    ONNX Runtime (1.32 and before) repeats such a pair behind the move, and where the zero point is named it gives the
    repeated one the type of unsigned integers, and then refuses the file.
    """
    import onnx
    from onnx import numpy_helper

    readers = readers_of(graph)
    zeros = {
        name
        for name, tensor in initializers.items()
        if tensor.data_type == onnx.TensorProto.INT8 and not numpy_helper.to_array(tensor).any()
    }
    for position, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[2] not in zeros:
            continue
        moves = [
            reader
            for reader, _ in readers.get(node.output[0], [])
            if reader.op_type in MOVES
            and any(after.op_type != "QuantizeLinear" for name in reader.output for after, _ in readers.get(name, []))
        ]
        if moves:
            plain = onnx.helper.make_node(
                "DequantizeLinear", node.input[:2], [f"{node.output[0]}_moved"], name=f"{node.name}_moved"
            )
            for move in moves:
                move.input[0] = plain.output[0]
            graph.node.insert(position + 1, plain)
            if len(moves) == len(readers[node.output[0]]):
                graph.node.remove(node)


def padded_convolutions(graph: Any, initializers: Mapping[str, Any]) -> None:
    """Zeros that are put around an image for convolutions alone become padding of those convolutions.

    No runtime pads integers: an image between two integer convolutions is dequantized, copied and quantized again.
    A convolution's own padding, uneven too, is 0 behind its quantization, as the zeros are behind theirs.
    """
    ends = {value.name for value in graph.output}
    # The last first: zeros around zeros are in front of convolutions once those behind are gone.
    for pad in [node for node in reversed(graph.node) if node.op_type == "Pad"]:
        readers = readers_of(graph)
        added = _zeros_around(pad, initializers)
        convolutions, between = _behind(pad, readers, ends, initializers)
        if added is None or not convolutions or any(not _takes_pads(node, len(added) // 2) for node in convolutions):
            continue
        for node in convolutions:
            _add_pads(node, added)
        for node, index in readers[pad.output[0]]:
            node.input[index] = pad.input[0]
        graph.node.remove(pad)
        for value in [value for value in graph.value_info if value.name in between]:
            graph.value_info.remove(value)  # they are smaller now


MOST_COPYING = 1 << 24
"""Multiply-accumulates of a convolution that only copies: beyond, moving an image in float costs less."""
TO_THE_END = (1 << 31) - 1
"""A slice's end from which on it means the last element."""


def padded_channels(graph: Any, initializers: Mapping[str, Any]) -> None:
    """Channels of zeros put in front of or behind an image, every so many pixels of it, as a convolution with ones.

    Residual networks make their shortcuts wider so (option A of He et al. 2016). ONNX Runtime doesn't pad integers: it
    dequantizes, copies and quantizes again. The convolution, whose weights are 0 and 1 and whose input and output share
    their grid, gives the very same integers.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    ends = {value.name for value in graph.output}
    shapes = shapes_of(graph)
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        readers = readers_of(graph)
        makers = {name: node for node in graph.node for name in node.output}
        added = _channels_around(pad, initializers)
        after = [node for node, _ in readers.get(pad.output[0], [])]
        if added is None or pad.output[0] in ends or not after:
            continue
        grid = tuple(after[0].input[1:])
        if any(node.op_type != "QuantizeLinear" or tuple(node.input[1:]) != grid for node in after):
            continue
        if not _pairs(makers.get(pad.input[0]), "DequantizeLinear", grid):
            continue
        chain, source, steps = _strided(pad.input[0], makers, readers, initializers, grid)
        shape, moved = shapes.get(source), shapes.get(pad.input[0])
        if shape is None or moved is None or len(shape) < 3 or None in shape[1:] or None in moved[1:]:
            continue
        channels = int(shape[1] or 0)
        weight = np.zeros((sum(added) + channels, channels, *[1] * (len(shape) - 2)), np.int8)
        weight[added[0] + np.arange(channels), np.arange(channels)] = 1
        if weight.size * math.prod(int(each or 0) for each in moved[2:]) > MOST_COPYING:
            continue
        names = [f"{pad.name}_{what}" for what in ("ones", "one", "weight")]
        graph.initializer.append(numpy_helper.from_array(weight, names[0]))
        graph.initializer.append(numpy_helper.from_array(np.ones((), np.float32), names[1]))
        strides = [steps.get(axis, 1) for axis in range(2, len(shape))]
        position = list(graph.node).index(pad)
        graph.node.insert(position, onnx.helper.make_node("DequantizeLinear", names[:2], [names[2]], name=names[2]))
        copying = onnx.helper.make_node("Conv", [source, names[2]], [pad.output[0]], name=pad.name, strides=strides)
        graph.node.insert(position + 1, copying)
        gone = {name for node in chain for name in node.output}
        for node in (pad, *chain):
            graph.node.remove(node)
        for value in [value for value in graph.value_info if value.name in gone]:
            graph.value_info.remove(value)


def _channels_around(pad: Any, initializers: Mapping[str, Any]) -> tuple[int, int] | None:
    """How many channels of zeros a node puts in front of and behind the others, where it does nothing else."""
    found = _zeros(pad, initializers)
    if found is None or len(found[0]) < 3:
        return None
    before, after = (each.pop(1) for each in found)
    return None if any(found[0] + found[1]) or min(before, after) < 0 or before + after == 0 else (before, after)


def _strided(
    name: str, makers: Mapping[str, Any], readers: Readers, initializers: Mapping[str, Any], grid: tuple[str, ...]
) -> tuple[list[Any], str, dict[int, int]]:
    """The slices with a step, each between pairs of ``grid``, that nothing else reads on the way to ``name``.

    And the tensor in front of them, and the step by axis.
    """
    chain: list[Any] = []
    steps: dict[int, int] = {}
    while len(readers[name]) == 1 and _pairs(makers.get(name), "DequantizeLinear", grid):
        quantize = makers.get(makers[name].input[0])
        if quantize is None or not _pairs(quantize, "QuantizeLinear", grid) or len(readers[quantize.output[0]]) > 1:
            break
        cut = makers.get(quantize.input[0])
        if cut is None or len(readers[cut.output[0]]) > 1:
            break
        step = _step(cut, initializers)
        if step is None or step[0] in steps or not _pairs(makers.get(cut.input[0]), "DequantizeLinear", grid):
            break
        chain += [makers[name], quantize, cut]
        steps.update([step])
        name = cut.input[0]
    return chain, name, steps


def _pairs(node: Any, kind: str, grid: tuple[str, ...]) -> bool:
    """Whether a node is that half of a quantize/dequantize pair of ``grid``."""
    return node is not None and node.op_type == kind and tuple(node.input[1:]) == grid


def _step(node: Any, initializers: Mapping[str, Any]) -> tuple[int, int] | None:
    """A spatial axis, and the step in which a slice takes all of it from its beginning; None where it does else."""
    from onnx import numpy_helper

    if node.op_type != "Slice" or len(node.input) != 5 or any(name not in initializers for name in node.input[1:]):
        return None
    start, end, axis, step = (numpy_helper.to_array(initializers[name]).ravel() for name in node.input[1:])
    if len(axis) != 1 or start[0] != 0 or end[0] < TO_THE_END or axis[0] < 2 or step[0] < 1:
        return None
    return int(axis[0]), int(step[0])


def _zeros_around(pad: Any, initializers: Mapping[str, Any]) -> list[int] | None:
    """The padding of a node's spatial axes as convolutions give it (all beginnings, then all ends); None where it pads
    by anything but zeros, elsewhere, or by less than nothing."""
    found = _zeros(pad, initializers)
    if found is None:
        return None
    before, after = found
    return None if any(before[:2] + after[:2]) or min(before + after) < 0 else [*before[2:], *after[2:]]


def _zeros(pad: Any, initializers: Mapping[str, Any]) -> tuple[list[int], list[int]] | None:
    """How many zeros a node puts before and after each axis; None where that isn't known, or they are no zeros."""
    from onnx import numpy_helper

    amounts = initializers.get(pad.input[1])
    value = pad.input[2] if len(pad.input) > 2 else ""
    if attribute(pad, "mode", b"constant") != b"constant" or amounts is None or len(pad.input) > 3:
        return None
    if value and (value not in initializers or numpy_helper.to_array(initializers[value]).any()):
        return None
    found = [int(each) for each in numpy_helper.to_array(amounts)]
    return found[: len(found) // 2], found[len(found) // 2 :]


def _behind(pad: Any, readers: Readers, ends: set[str], initializers: Mapping[str, Any]) -> tuple[list[Any], set[str]]:
    """The convolutions that read a node's output through nothing but what leaves zeros zeros, and the tensors between;
    none where something else reads it too."""
    convolutions, between, names = [], set[str](), [pad.output[0]]
    while names:
        name = names.pop()
        between.add(name)
        if name in ends or not readers.get(name):
            return [], between
        for node, index in readers[name]:
            if index == 0 and _keeps_zeros(node, initializers):
                names.append(node.output[0])
            elif index == 0 and node.op_type == "Conv":
                convolutions.append(node)
            else:
                return [], between
    return convolutions, between


def _keeps_zeros(node: Any, initializers: Mapping[str, Any]) -> bool:
    """Whether 0 stays 0 and all else is computed element by element: grids hold 0, the range of a clip may."""
    from onnx import numpy_helper

    if node.op_type != "Clip":
        return node.op_type in ("QuantizeLinear", "DequantizeLinear")
    names = [*node.input[1:], "", ""][:2]
    if any(name and name not in initializers for name in names):
        return False
    low, high = (float(numpy_helper.to_array(initializers[name])) if name else 0.0 for name in names)
    return low <= 0 <= high


def _takes_pads(convolution: Any, axes: int) -> bool:
    explicit = attribute(convolution, "auto_pad", b"NOTSET") == b"NOTSET"
    return explicit and len(attribute(convolution, "pads", [0] * (2 * axes))) == 2 * axes


def _add_pads(convolution: Any, added: list[int]) -> None:
    import onnx

    pads = [old + new for old, new in zip(attribute(convolution, "pads", [0] * len(added)), added, strict=True)]
    others = [each for each in convolution.attribute if each.name != "pads"]
    del convolution.attribute[:]
    convolution.attribute.extend([*others, onnx.helper.make_attribute("pads", pads)])


def unsigned_weights(graph: Any) -> None:
    """8-bit weights beyond -64 to 64 as unsigned ones around 128: the same numbers, by another kernel of ONNX Runtime.

    Where x86 lacks VNNI, its kernel for signed weights adds pairs of products in 16 bits, which saturate:
    ``2 * 255 * 64 < 2 ** 15 <= 2 * 255 * 127``. The one for unsigned weights is exact and takes longer.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    moved: set[str] = set()

    def centred(node: Any) -> bool:
        """Whether a node dequantizes around 0, with a scale that the file holds."""
        zero = tensors.get(node.input[2]) if len(node.input) > 2 else None
        around = len(node.input) < 3 or (zero is not None and not numpy_helper.to_array(zero).any())
        return node.op_type == "DequantizeLinear" and around and node.input[1] in tensors

    kept = {name for node in graph.node if not centred(node) for name in node.input}
    for node in graph.node:
        if not centred(node) or node.input[0] in kept:
            continue
        held = tensors.get(node.input[0])
        if held is None or (held.data_type != onnx.TensorProto.INT8 and held.name not in moved):
            continue
        if held.name not in moved:
            steps = numpy_helper.to_array(held).astype(np.int16)
            if not steps.size or np.abs(steps).max() <= 64:
                continue
            held.CopyFrom(numpy_helper.from_array((steps + 128).astype(np.uint8), held.name))
            moved.add(held.name)
        del node.input[2:]
        node.input.append(_zero_point(graph, tuple(tensors[node.input[1]].dims), np.uint8(128)))
    for value in graph.value_info:
        if value.name in moved:
            value.type.tensor_type.elem_type = onnx.TensorProto.UINT8


def weight_zeros(graph: Any) -> None:
    """Integer weights of products are dequantized with a zero point of 0, which ONNX Runtime wants to see there.

    Without it the product stays in float and its weights are dequantized anew at every run. Convolutions need none.
    """
    import numpy as np

    makers = {name: node for node in graph.node for name in node.output}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("Gemm", "MatMul"):
            continue
        pair = makers.get(node.input[1])
        if pair is None or pair.op_type != "DequantizeLinear" or len(pair.input) > 2 or pair.input[1] not in shapes:
            continue
        pair.input.append(_zero_point(graph, shapes[pair.input[1]], np.int8(0)))


def _zero_point(graph: Any, shape: tuple[int, ...], value: Any) -> str:
    """The initializer of a shape that holds one 8-bit integer throughout, made where there is none yet."""
    import numpy as np
    from onnx import numpy_helper

    name = "_".join(("weight_zero" if value == 0 else "weight_middle", *map(str, shape)))
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.full(shape, value), name))
    return name


__all__ = [
    "MOVES",
    "global_pooling",
    "padded_channels",
    "padded_convolutions",
    "plain_moves",
    "unsigned_weights",
    "weight_zeros",
]
