"""An ONNX file as a graph of fixed shapes: batch 1, constants folded, equal nodes merged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.lowering.errors import CannotLower

Array = NDArray[Any]
FLOAT = 1
"""float32 among ONNX's types."""
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
WIDE = {
    **dict.fromkeys(("int2", "uint2", "int4", "uint4", "int8", "uint8"), np.int16),
    **dict.fromkeys(("int16", "uint16"), np.int64),
    "int32": np.int32,
}
"""Types of quantized constants, and what their integers are kept in: int16 for weights, int32 for biases."""
LARGEST_FOLDED = 1 << 26
"""Elements; a constant above this isn't computed from others."""


@dataclass(eq=False)
class Node:
    """One operator of the file; ``inputs`` holds "" where an optional one is left out."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]

    def input(self, index: int) -> str:
        """The name of an input, "" where there is none."""
        return self.inputs[index] if index < len(self.inputs) else ""


@dataclass(frozen=True, eq=False)
class QuantizedConstant:
    """A constant behind DequantizeLinear: integers, float32 scales and integer zero points along ``axis``."""

    integers: Array
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int

    @property
    def real(self) -> NDArray[np.float32]:
        """The float32 numbers that it stands for."""
        along = [1] * self.integers.ndim
        if self.scale.size > 1:
            along[self.axis] = -1
        steps = self.integers.astype(np.int64) - self.zero_point.reshape(along)
        return np.asarray(steps.astype(np.float32) * self.scale.reshape(along), np.float32)


@dataclass(eq=False)
class Graph:
    """A file, read.

    Attributes:
        nodes: in an order in which they can run; none of them has only constant inputs.
        constants: float or integer arrays by name.
        quantized: constants behind DequantizeLinear.
        shapes: of every value, batch 1 included.
        inputs, outputs: names; inputs are float32.
        output_names: what the file calls its outputs, which may be other names of the same values.
        opset: of ONNX's own operators.
    """

    nodes: list[Node]
    constants: dict[str, Array]
    quantized: dict[str, QuantizedConstant]
    shapes: dict[str, tuple[int, ...]]
    inputs: list[str]
    outputs: list[str]
    output_names: list[str]
    opset: int
    users: dict[str, list[Node]] = field(default_factory=dict)

    def constant(self, name: str) -> Array | None:
        """A constant's float or integer numbers, dequantized where it is; None for what is computed."""
        if name in self.quantized:
            return self.quantized[name].real
        return self.constants.get(name)

    def shape(self, name: str, node: Node) -> tuple[int, ...]:
        """A value's shape.

        Raises:
            CannotLower: it isn't known.
        """
        if name not in self.shapes:
            raise CannotLower(
                f"the shape of {name!r} isn't fixed; export the network with fixed sizes", node.name, node.op
            )
        return self.shapes[name]

    def index(self) -> None:
        """Bring ``users`` up to date."""
        users: defaultdict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                users[name].append(node)
        self.users = dict(users)


def read(source: Path | bytes) -> Graph:
    """Read a file, or its bytes.

    Raises:
        CannotLower: it isn't ONNX, its inputs have open sizes other than the batch, or weights lie in other files.
    """
    import onnx

    content = source if isinstance(source, bytes) else _content(source)
    try:
        model = onnx.load_model_from_string(content)
        if not model.graph.node:
            raise ValueError("it holds no operators")
        if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
            raise ValueError("its weights lie in other files; save it as one file")
        if model.functions:
            from onnx import inliner

            model = inliner.inline_local_functions(model)
        initializers = {tensor.name for tensor in model.graph.initializer}
        _fix_sizes(model, initializers)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        return _Reader(model, initializers).graph()
    except CannotLower:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise CannotLower(f"the file can't be read as ONNX: {said or type(error).__name__}") from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CannotLower(f"{path}: {error.strerror or error}; give an ONNX file") from error


def _fix_sizes(model: Any, initializers: set[str]) -> None:
    from onnx import helper

    for value in model.graph.input:
        if value.name in initializers:
            continue
        kind = value.type.tensor_type.elem_type
        if kind != FLOAT:
            said = helper.tensor_dtype_to_string(kind).split(".")[-1] if kind else "no tensor"
            raise CannotLower(f"input {value.name!r} is {said}; a network whose inputs are float32 can be compiled")
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            if axis:
                raise CannotLower(
                    f"input {value.name!r} has an open size at axis {axis}"
                    f"{f' ({dim.dim_param})' if dim.dim_param else ''}; export the network with fixed sizes"
                )
            dim.Clear()
            dim.dim_value = 1
        if dims and dims[0].dim_value != 1:
            raise CannotLower(f"input {value.name!r} has a batch of {dims[0].dim_value}; export it with a batch of 1")
    # Shapes in between were written for an open batch; they are inferred anew.
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


class _Reader:
    """Folds what is constant, node by node."""

    def __init__(self, model: Any, initializers: set[str]) -> None:
        from onnx import numpy_helper

        self.model = model
        self.opset = [opset for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
        self.constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.quantized: dict[str, QuantizedConstant] = {}
        self.renamed: dict[str, str] = {}
        self.seen: dict[Any, Node] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
            self._note_shape(value)
        self.inputs = [value.name for value in model.graph.input if value.name not in initializers]

    def _note_shape(self, value: Any) -> None:
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            self.shapes[value.name] = tuple(d.dim_value for d in kind.shape.dim)

    def graph(self) -> Graph:
        from onnx import helper

        nodes: list[Node] = []
        for number, proto in enumerate(self.model.graph.node):
            attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
            name = proto.name or f"{proto.op_type}_{number}"
            inputs = [self.renamed.get(each, each) for each in proto.input]
            node = Node(proto.op_type, name, inputs, list(proto.output), attributes)
            if proto.domain not in ("", "ai.onnx", "com.microsoft"):
                raise CannotLower(f"operators of {proto.domain!r} aren't known", name, proto.op_type)
            if self._vanishes(node) or self._folds(node, proto):
                continue
            key = (node.op, tuple(node.inputs), repr(sorted(node.attributes.items(), key=lambda item: item[0])))
            if key in self.seen:
                same = self.seen[key]
                self.renamed |= dict(zip(node.outputs, same.outputs, strict=False))
                continue
            self.seen[key] = node
            nodes.append(node)
        names = [value.name for value in self.model.graph.output]
        outputs = [self.renamed.get(name, name) for name in names]
        opset = self.opset[0].version
        graph = Graph(nodes, self.constants, self.quantized, self.shapes, self.inputs, outputs, names, opset)
        for name in graph.outputs:
            if name in self.constants or name in self.quantized:
                raise CannotLower(f"output {name!r} doesn't depend on the input")
        _sweep(graph)
        graph.index()
        return graph

    def _vanishes(self, node: Node) -> bool:
        if node.op in ("Identity", "Dropout") or (node.op == "Cast" and self._keeps_type(node)):
            source = node.inputs[0]
            if source in self.constants:
                self.constants[node.outputs[0]] = self.constants[source]
            elif source in self.quantized:
                self.quantized[node.outputs[0]] = self.quantized[source]
            self.renamed[node.outputs[0]] = source
            return True
        return False

    def _keeps_type(self, node: Node) -> bool:
        import onnx

        return node.attributes.get("to") == onnx.TensorProto.FLOAT and node.inputs[0] not in self.constants

    def _folds(self, node: Node, proto: Any) -> bool:
        if node.op == "Shape" and node.inputs[0] in self.shapes and node.inputs[0] not in self.constants:
            sizes = self.shapes[node.inputs[0]]
            rank = len(sizes)
            start, end = node.attributes.get("start", 0), node.attributes.get("end", rank)
            self.constants[node.outputs[0]] = np.array(sizes[start:end], np.int64)
            return True
        given = [name for name in node.inputs if name]
        if node.op == DEQUANTIZE and node.inputs[0] in self.constants:
            self._dequantized(node)
            return True
        if given and node.op == "Transpose" and node.inputs[0] in self.quantized:
            held = self.quantized[node.inputs[0]]
            order = list(node.attributes.get("perm", range(held.integers.ndim)[::-1]))
            self.quantized[node.outputs[0]] = QuantizedConstant(
                held.integers.transpose(order), held.scale, held.zero_point, order.index(held.axis)
            )
            return True
        if not all(name in self.constants or name in self.quantized for name in given):
            return False
        if node.op == "Constant" or given:
            for name, value in zip(node.outputs, self._evaluate(node, proto), strict=False):
                self.constants[name] = value
            return True
        return False

    def _evaluate(self, node: Node, proto: Any) -> list[Array]:
        import onnx
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        def known(name: str) -> Array:
            return self.quantized[name].real if name in self.quantized else self.constants[name]

        if node.op == "Cast":
            kind = helper.tensor_dtype_to_np_dtype(node.attributes["to"])
            return [known(node.inputs[0]).astype(kind)]
        feeds = {name: known(name) for name in node.inputs if name}
        if sum(value.size for value in feeds.values()) > LARGEST_FOLDED:
            raise CannotLower("a constant is too large to be computed", node.name, node.op)
        typed = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ]
        made = onnx.NodeProto()
        made.CopyFrom(proto)
        del made.input[:]
        made.input.extend(node.inputs)
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.outputs if name]
        graph = helper.make_graph([made], "constant", typed, outputs)
        model = helper.make_model(graph, opset_imports=self.opset)
        return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, feeds)]

    def _dequantized(self, node: Node) -> None:
        integers = np.asarray(self.constants[node.inputs[0]])
        scale = np.asarray(self.constants[node.inputs[1]], np.float32).ravel()
        zero = self.constants.get(node.input(2))
        points = np.zeros(scale.size, np.int64) if zero is None else np.asarray(zero).astype(np.int64).ravel()
        if points.size == 1 and scale.size > 1:
            points = np.repeat(points, scale.size)
        axis = int(node.attributes.get("axis", 1))
        if node.attributes.get("block_size"):
            raise CannotLower("weights with a scale for each block aren't lowered", node.name, node.op)
        kind = integers.dtype.name
        if kind not in WIDE:
            raise CannotLower(f"constants of type {kind} aren't lowered; integers are", node.name, node.op)
        wide = integers.astype(WIDE[kind])
        axis = axis % integers.ndim if integers.ndim else 0
        self.quantized[node.outputs[0]] = QuantizedConstant(wide, scale, points, axis)


def _sweep(graph: Graph) -> None:
    """Drop nodes that no output depends on."""
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            kept.append(node)
    graph.nodes[:] = reversed(kept)


def scalar(constants: Mapping[str, Array], name: str) -> float | None:
    """A constant of one element as a number."""
    value = constants.get(name)
    return float(np.asarray(value).ravel()[0]) if value is not None and np.size(value) == 1 else None


__all__ = ["DEQUANTIZE", "QUANTIZE", "Graph", "Node", "QuantizedConstant", "read", "scalar"]
