"""An ONNX file as what passes over it need: constants by name, who makes a tensor and who reads it, types and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Readers = Mapping[str, list[tuple[Any, int]]]
"""Of tensors by name: the nodes, and as which input they read it."""


@dataclass
class View:
    """One graph of a model. Constants are initializers and the outputs of ``Constant``; all by tensor name."""

    model: Any
    initializers: dict[str, Any] = field(default_factory=dict)
    producers: dict[str, Any] = field(default_factory=dict)
    readers: dict[str, list[tuple[Any, int]]] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> View:
        """The view of a model's main graph, with inferred types as far as ONNX can infer them."""
        import onnx

        try:
            inferred = onnx.shape_inference.infer_shapes(model)
        except Exception:  # what can't be inferred stays unknown
            inferred = model
        view = cls(model)
        for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
            view.types[value.name] = value.type.tensor_type.elem_type
        view.shapes |= shapes_of(inferred.graph)
        for initializer in model.graph.initializer:
            view.initializers[initializer.name] = initializer
            view.types[initializer.name] = initializer.data_type
            view.shapes[initializer.name] = tuple(initializer.dims)
        for node in model.graph.node:
            for name in node.output:
                view.producers[name] = node
        view.readers = readers_of(model.graph)
        return view

    @property
    def outputs(self) -> frozenset[str]:
        """Names of the graph's outputs."""
        return frozenset(value.name for value in self.model.graph.output)

    @property
    def opset(self) -> int:
        """Of ONNX's own domain."""
        return max((o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")), default=0)

    def tensor(self, name: str) -> Any | None:
        """The TensorProto of a constant; None if it is computed."""
        if name in self.initializers:
            return self.initializers[name]
        node = self.producers.get(name)
        if node is not None and node.op_type == "Constant":
            return next((a.t for a in node.attribute if a.name == "value"), None)
        return None

    def array(self, name: str) -> Array | None:
        """A constant's numbers, INT4 and INT2 ones as int8; None if it is computed.

        A Cast of a constant to an integer type counts as a constant: that is how sub-byte weights are stored.
        """
        import onnx
        from onnx import numpy_helper

        found = self.tensor(name)
        if found is not None:
            values = np.asarray(numpy_helper.to_array(found))
            narrow = (onnx.TensorProto.INT4, getattr(onnx.TensorProto, "INT2", -1))
            return values.astype(np.int8) if found.data_type in narrow else values
        node = self.producers.get(name)
        if node is not None and node.op_type == "Cast" and attribute(node, "to", 0) == onnx.TensorProto.INT8:
            return self.array(node.input[0])
        return None


def readers_of(graph: Any) -> dict[str, list[tuple[Any, int]]]:
    """Who reads each tensor, and as which input."""
    readers: dict[str, list[tuple[Any, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, index))
    return readers


def shapes_of(graph: Any) -> dict[str, tuple[int | None, ...]]:
    """The shapes that a graph states, of inputs, outputs and what lies between; None for what isn't fixed."""
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def attribute(node: Any, name: str, default: Any) -> Any:
    """An attribute's value as onnx reads it, or the default."""
    import onnx

    for each in node.attribute:
        if each.name == name:
            return onnx.helper.get_attribute_value(each)
    return default


def called(node: Any) -> str:
    """How to name a node for people: its name, else its operator and first output."""
    return str(node.name) or f"{node.op_type} of {node.output[0] if node.output else '?'}"


__all__ = ["Readers", "View", "attribute", "called", "readers_of", "shapes_of"]
