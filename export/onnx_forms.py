"""The forms of operators that runtimes have integer kernels for: each changes how a graph says something, not what.

Runtimes fuse an operator with the quantize/dequantize pairs around it into a kernel for integers, by its form. What
they don't find stays in float, with the pairs computed at every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.export.onnx_view import Readers, attribute, readers_of


def global_pooling(graph: Any, initializers: Mapping[str, Any]) -> None:
    """Means over space as GlobalAveragePool, for which runtimes have integer kernels."""
    from onnx import numpy_helper

    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in [*graph.value_info, *graph.input]}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in initializers:
            continue
        axes = sorted(int(a) % 4 for a in numpy_helper.to_array(initializers[node.input[1]]).ravel())
        if axes == [2, 3] and attribute(node, "keepdims", 1) == 1 and ranks.get(node.input[0]) == 4:
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


def _zeros_around(pad: Any, initializers: Mapping[str, Any]) -> list[int] | None:
    """The padding of a node's spatial axes as convolutions give it (all beginnings, then all ends); None where it pads
    by anything but zeros, elsewhere, or by less than nothing."""
    from onnx import numpy_helper

    amounts = initializers.get(pad.input[1])
    value = pad.input[2] if len(pad.input) > 2 else ""
    if attribute(pad, "mode", b"constant") != b"constant" or amounts is None or len(pad.input) > 3:
        return None
    if value and (value not in initializers or numpy_helper.to_array(initializers[value]).any()):
        return None
    found = [int(each) for each in numpy_helper.to_array(amounts)]
    rank = len(found) // 2
    before, after = found[:rank], found[rank:]
    return None if any(before[:2]) or any(after[:2]) or min(found) < 0 else [*before[2:], *after[2:]]


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


def weight_zeros(graph: Any) -> None:
    """Integer weights of products are dequantized with a zero point of 0, which ONNX Runtime wants to see there.

    Without it the product stays in float and its weights are dequantized anew at every run. Convolutions need none.
    """
    import numpy as np
    from onnx import numpy_helper

    makers = {name: node for node in graph.node for name in node.output}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    made: dict[tuple[int, ...], str] = {}
    for node in graph.node:
        if node.op_type not in ("Gemm", "MatMul"):
            continue
        pair = makers.get(node.input[1])
        if pair is None or pair.op_type != "DequantizeLinear" or len(pair.input) > 2 or pair.input[1] not in shapes:
            continue
        shape = shapes[pair.input[1]]
        if shape not in made:
            made[shape] = "_".join(("weight_zero", *map(str, shape)))
            graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.int8), made[shape]))
        pair.input.append(made[shape])


__all__ = ["MOVES", "global_pooling", "padded_convolutions", "plain_moves", "weight_zeros"]
