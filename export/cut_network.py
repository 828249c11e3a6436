"""A network's ONNX file from the measurements on: without the operators that simulate the optics.

The image runs through what only moves or rounds it (quantize/dequantize pairs, a split by channel, padding) to one
convolution a channel, whose weights are the patterns; what those give together is the measurements. Everything behind
stays as it is in the file, operator by operator, so both files compute the same from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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


def cut(file: Path, patterns: Patterns) -> Cut | str:
    """Cut ``file`` behind its sensing layer; why that isn't possible, in half a sentence, where it isn't."""
    import onnx

    model = onnx.load(file)
    graph = model.graph
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    convolutions, strange = _measuring(graph.input[0].name, readers)
    if strange is not None:
        return f"the network reads the image elsewhere too, by {strange}, so it can't begin at the measurements"
    if not convolutions:
        return "the file has no convolution that measures the image"
    ends = [node.output[0] for node in convolutions]
    after = {id(node) for end in ends for node in readers.get(end, [])}
    border = ends[0]
    if len(ends) > 1:
        joined = next((n for n in graph.node if n.op_type == "Concat" and list(n.input) == ends), None)
        if joined is None or len(after) != 1:
            return "the channels' measurements aren't put together by one operator"
        border = joined.output[0]
    kept = _behind(graph, border)
    if graph.input[0].name in {name for node in kept for name in node.input}:
        return "the network reads the image behind the measurements too"
    weights = {node.name: _constant(graph, node.input[1]) for node in convolutions}
    return Cut(_written(model, kept, border, patterns), weights)


def _measuring(start: str, readers: Mapping[str, list[Any]]) -> tuple[list[Any], str | None]:
    """The convolutions that read the image, and the name of anything else that does."""
    found: list[Any] = []
    pending, seen = [start], {start}
    while pending:
        name = pending.pop(0)
        for node in readers.get(name, []):
            if node.op_type == "Conv" and node.input[0] == name:
                if node not in found:
                    found.append(node)
            elif node.op_type in MOVES and node.input[0] == name:
                pending += [output for output in node.output if output not in seen]
                seen.update(node.output)
            else:
                return found, f"{node.op_type} {node.name}"
    return found, None


def _behind(graph: Any, border: str) -> list[Any]:
    """The operators that the outputs need, if ``border`` is given, in order."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output) and border not in node.output:
            kept.append(node)
            needed |= set(node.input)
    return kept[::-1]


def _constant(graph: Any, name: str) -> NDArray[np.float32]:
    """A tensor that the file gives, through casts and dequantization."""
    from onnx import numpy_helper

    held = {tensor.name: tensor for tensor in graph.initializer}
    if name in held:
        return np.asarray(numpy_helper.to_array(held[name]), dtype=np.float32)
    node = next(each for each in graph.node if name in each.output)
    if node.op_type in ("Cast", "Identity"):
        return _constant(graph, node.input[0])
    values, scale = (_constant(graph, each) for each in node.input[:2])
    zero = _constant(graph, node.input[2]) if len(node.input) > 2 else np.zeros(1, np.float32)
    spread = (-1, *[1] * (values.ndim - 1))
    return (values - zero.reshape(spread if zero.size > 1 else -1)) * (
        scale.reshape(spread) if scale.size > 1 else scale
    )


def _written(model: Any, kept: list[Any], border: str, patterns: Patterns) -> bytes:
    """The bytes of the network of ``kept``, whose input is ``border`` under the name of :data:`INPUT`."""
    import onnx

    graph = model.graph
    read = {name for node in kept for name in node.input}
    for node in kept:
        for at, name in enumerate(node.input):
            if name == border:
                node.input[at] = INPUT
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    channels = len(patterns.scale)
    shape = [batch.dim_param or batch.dim_value or "N", channels, *patterns.about["tiles"]]
    made = onnx.helper.make_graph(
        kept,
        graph.name,
        [onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, shape)],
        list(graph.output),
        [tensor for tensor in graph.initializer if tensor.name in read],
        value_info=[value for value in graph.value_info if value.name in read and value.name != border],
    )
    del model.graph.node[:]
    model.graph.CopyFrom(made)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


__all__ = ["INPUT", "Cut", "cut"]
