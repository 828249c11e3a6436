"""A network's ONNX file from the measurements on: without the operators that simulate the optics.

The image runs through what only moves or rounds it (quantize/dequantize pairs, a split by channel, padding) to the
convolutions whose weights are the patterns; what those give together is the measurements. A channel may have several
that differ by their biases: what the others gave is the channel's measurements and the difference of the biases.
Everything behind stays as it is in the file, operator by operator, so both files compute the same from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.export.onnx_view import Readers, readers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compress.export.measuring import Patterns

MOVES = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "Cast", "Split", "Pad", "Clip", "Identity", "Slice", "Reshape", "Concat"}
)
"""What an image passes on its way to the measuring convolutions."""
INPUT = "measurements"


@dataclass(frozen=True)
class Cut:
    """A network from the measurements on.

    Attributes:
        network: the ONNX file.
        weights: of each convolution that measures, by its name, (measurements, 1, height, width) float32.
    """

    network: bytes
    weights: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class _Measuring:
    """A convolution that reads the image, and the channel that it reads."""

    node: Any
    channel: int

    @property
    def end(self) -> str:
        """The tensor that it makes."""
        return str(self.node.output[0])


def cut(file: Path, patterns: Patterns) -> Cut | str:
    """Cut ``file`` behind its sensing layer; why that isn't possible, in half a sentence, where it isn't."""
    import onnx

    model = onnx.load(file)
    graph = model.graph
    readers = readers_of(graph)
    convolutions, strange = _measuring(graph, readers)
    if strange is not None:
        return f"the network reads the image elsewhere too, by {strange}, so it can't begin at the measurements"
    if not convolutions:
        return "the file has no convolution that measures the image"
    weights = {each.node.name: _constant(graph, each.node.input[1]) for each in convolutions}
    channels = len(patterns.scale) // len(next(iter(weights.values())))
    if {each.channel for each in convolutions} != set(range(channels)):
        return f"it measures other channels than the patterns' {channels}"
    ends = [each.end for each in convolutions]
    joined = next((n for n in graph.node if n.op_type == "Concat" and list(n.input) == ends), None)
    if joined is not None and all([node for node, _ in readers[end]] == [joined] for end in ends):
        # Nothing to take apart first: the measurements are what the operator gives.
        names, before = {joined.output[0]: INPUT}, _Before([], [])
    else:
        names, before = _from_input(graph, convolutions, channels, patterns)
    kept = _behind(graph, {*ends, *names})
    if graph.input[0].name in {name for node in kept for name in node.input}:
        return "the network reads the image behind the measurements too"
    for node in kept:
        for at, name in enumerate(node.input):
            node.input[at] = names.get(name, name)
    return Cut(_written(model, kept, before, patterns), weights)


def _measuring(graph: Any, readers: Readers) -> tuple[list[_Measuring], str | None]:
    """The convolutions that read the image, and the name of anything else that does."""
    found: list[_Measuring] = []
    start = graph.input[0].name
    pending, seen = [(start, 0)], {start}
    while pending:
        name, channel = pending.pop(0)
        for node, index in readers.get(name, []):
            if node.op_type == "Conv" and index == 0:
                if all(node is not each.node for each in found):
                    found.append(_Measuring(node, channel))
            elif node.op_type in MOVES and index == 0:
                for at, output in enumerate(node.output):
                    if output not in seen:
                        pending.append((output, at if node.op_type == "Split" else channel + _skipped(graph, node)))
                seen.update(node.output)
            else:
                return found, f"{node.op_type} {node.name}"
    return found, None


def _skipped(graph: Any, node: Any) -> int:
    """How many channels a Slice leaves out in front."""
    if node.op_type != "Slice" or len(node.input) < 4:
        return 0
    starts, axes = (_constant(graph, node.input[at]).astype(int).tolist() for at in (1, 3))
    return int(starts[axes.index(1)]) if 1 in axes else 0


@dataclass(frozen=True)
class _Before:
    """Operators between the measurements and what the network reads of them, and their constants."""

    nodes: list[Any]
    tensors: list[Any]


def _from_input(
    graph: Any, convolutions: list[_Measuring], channels: int, patterns: Patterns
) -> tuple[dict[str, str], _Before]:
    """What the convolutions gave -> what it is now, and the operators that make that of the measurements."""
    from onnx import helper, numpy_helper

    names: dict[str, str] = {}
    before = _Before([], [])

    def constant(name: str, value: NDArray[Any]) -> str:
        before.tensors.append(numpy_helper.from_array(value, name))
        return name

    count = len(patterns.scale) // channels
    for channel in range(channels):
        own = [each for each in convolutions if each.channel == channel]
        part, offset = INPUT, patterns.offset[channel * count : (channel + 1) * count]
        if channels > 1:
            part = f"{INPUT}.{channel}"
            ends = [np.array([k * count], np.int64) for k in (channel, channel + 1)]
            inputs = [constant(f"{part}.{name}", end) for name, end in zip(("first", "end"), ends, strict=True)]
            inputs.append(constant(f"{part}.axis", np.array([1], np.int64)))
            before.nodes.append(helper.make_node("Slice", [INPUT, *inputs], [part], name=part))
        biases = [_constant(graph, each.node.input[2]) if len(each.node.input) > 2 else 0 * offset for each in own]
        # A file of integers has rounded biases: the measurements are those of the convolution that is nearest.
        nearest = min(range(len(own)), key=lambda k: float(np.abs(biases[k] - offset).sum()))
        for each, bias in zip(own, biases, strict=True):
            if bias is biases[nearest]:
                names[each.end] = part
                continue
            shift = constant(f"{each.end}.shift", (bias - biases[nearest]).astype(np.float32)[None, :, None, None])
            names[each.end] = f"{each.end}.shifted"
            before.nodes.append(helper.make_node("Add", [part, shift], [names[each.end]], name=names[each.end]))
    return names, before


def _behind(graph: Any, borders: set[str]) -> list[Any]:
    """The operators that the outputs need, if ``borders`` are given, in order."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output) and not borders & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    return kept[::-1]


def as_read(file: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """``inputs`` (N, ...) as ``file`` rounds them, on the grid of the QuantizeLinear that reads them, if one does."""
    import onnx

    graph = onnx.load(file).graph
    start = graph.input[0].name
    node = next((n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == start), None)
    if node is None or len(node.input) < 3:
        return inputs
    step, zero = (_held(graph)[name] for name in node.input[1:3])
    ends = np.iinfo(zero.dtype)
    levels = np.clip(np.rint(inputs / step) + zero.astype(np.float32), ends.min, ends.max)
    rounded: NDArray[np.float32] = ((levels - zero.astype(np.float32)) * step).astype(np.float32)
    return rounded


def _held(graph: Any) -> dict[str, NDArray[Any]]:
    """The tensors that the file holds, in their own types."""
    from onnx import numpy_helper

    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return held | {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"}


def _constant(graph: Any, name: str) -> NDArray[np.float32]:
    """A tensor that the file gives, through casts and dequantization."""
    held = _held(graph)
    if name in held:
        return held[name].astype(np.float32)
    node = next(each for each in graph.node if name in each.output)
    if node.op_type in ("Cast", "Identity"):
        return _constant(graph, node.input[0])
    values, scale = (_constant(graph, each) for each in node.input[:2])
    zero = _constant(graph, node.input[2]) if len(node.input) > 2 else np.zeros(1, np.float32)
    spread = (-1, *[1] * (values.ndim - 1))
    return (values - zero.reshape(spread if zero.size > 1 else -1)) * (
        scale.reshape(spread) if scale.size > 1 else scale
    )


def _written(model: Any, kept: list[Any], before: _Before, patterns: Patterns) -> bytes:
    """The bytes of the network of ``kept``, and ``before`` in front of them, whose input is :data:`INPUT`."""
    import onnx

    graph = model.graph
    read = {name for node in kept for name in node.input}
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    channels = len(patterns.scale)
    shape = [batch.dim_param or batch.dim_value or "N", channels, *patterns.about["tiles"]]
    made = onnx.helper.make_graph(
        [*before.nodes, *kept],
        graph.name,
        [onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, shape)],
        list(graph.output),
        [*before.tensors, *(tensor for tensor in graph.initializer if tensor.name in read)],
        value_info=[value for value in graph.value_info if value.name in read],
    )
    del model.graph.node[:]
    model.graph.CopyFrom(made)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


__all__ = ["INPUT", "Cut", "as_read", "cut"]
