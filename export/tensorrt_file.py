"""The strongly typed ONNX file that TensorRT builds an engine from.

TensorRT 11 takes every precision from the file, and TensorRT 10 does with its ``STRONGLY_TYPED`` flag. So the file says
everything: int8 at the places of the interchange file, which are those where TensorRT fuses; float16 elsewhere; float32
at the network's ends, and where a scale or a constant is no float16 number. Against ``model.onnx``:

- biases are float constants, ``integer * scale``, as DequantizeLinear takes no int32 there;
- weights of fewer bits are stored as int8, as no convolution takes less; those of a matrix product may stay INT4, in
  blocks along the reduction, and its input is then left in float16 (TensorRT's INT4 is for weights alone);
- scales are rounded to float16 (at most 1 part in 2048), the same number in a pair's two halves.

For a DLA, which computes in float16, the pairs are left out and the weights keep the values of their grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import BadInput
from compress.export.onnx_view import Array, View, attribute, called
from compress.types import Note

OPSET, IR_VERSION = 19, 9
"""The first opset whose quantizers take float16; TensorRT 10.3 documents up to 20."""
OPSET_INT4, IR_INT4 = 21, 10
LARGEST = 65504.0
"""Of float16."""
SCALE_ERROR = 2.0**-10
"""Largest relative change of a scale; float16 numbers below 2^-14 are coarser and make their layer float32."""
PRODUCTS = ("MatMul", "Gemm")
ACTIVATIONS = ("LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Gelu", "Relu", "Clip")
LAYERS = ("Conv", "ConvTranspose", *PRODUCTS)


@dataclass(frozen=True)
class Typed:
    """The file's bytes and what was changed in a way that its reader should know."""

    content: bytes
    notes: tuple[Note, ...]


def typed(path: Path, int4: bool = True, dla: bool = False) -> Typed:
    """The strongly typed form of an interchange file.

    Args:
        path: ONNX with explicit Q/DQ pairs, signed and symmetric, or in float.
        int4: whether matrix products keep 4-bit weights.
        dla: for a DLA: float16 throughout, without Q/DQ pairs.

    Raises:
        BadInput: its quantizers aren't symmetric; a tensor's type can't be inferred.
    """
    from compress.export.tensorrt_rules import load

    return _Typing(load(path), int4, dla).typed()


@dataclass
class _Typing:
    model: Any
    int4: bool
    dla: bool
    view: View = field(init=False)
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    casts: dict[tuple[str, str], str] = field(default_factory=dict)
    pairs: dict[tuple[str, str], str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    opset: int = OPSET

    def __post_init__(self) -> None:
        self.view = View.of(self.model)

    def typed(self) -> Typed:
        import onnx

        graph = self.model.graph
        self.kinds = {value.name: "float32" for value in graph.input if self._is_float(value.name)}
        for node in graph.node:
            self._node(node)
        for value in graph.output:
            if self._is_float(value.name):
                self._end(value.name)
        used = {name for node in self.nodes for name in node.input} | self.view.outputs
        made = onnx.helper.make_graph(
            [node for node in self.nodes if node.op_type != "" and any(out in used for out in node.output)],
            graph.name,
            [value for value in graph.input if value.name not in self.view.initializers],
            list(graph.output),
            [tensor for name, tensor in self.constants.items() if name in used],
        )
        model = onnx.helper.make_model(made, producer_name=self.model.producer_name)
        model.producer_version = self.model.producer_version
        self.opset = max(self.opset, *(self._first_opset(node) for node in self.nodes))
        model.ir_version = IR_VERSION if self.opset < OPSET_INT4 else IR_INT4
        del model.opset_import[:]
        model.opset_import.append(onnx.helper.make_opsetid("", self.opset))
        onnx.checker.check_model(model, full_check=True)
        return Typed(model.SerializeToString(deterministic=True), tuple(self.notes))

    def _first_opset(self, node: Any) -> int:
        """The lowest opset from :data:`OPSET` on that knows the operator."""
        import onnx

        for version in range(OPSET, self.view.opset):
            if onnx.defs.has(node.op_type, version, node.domain):
                return version
        return max(OPSET, self.view.opset)

    def _is_float(self, name: str) -> bool:
        import onnx

        kind = self.view.types.get(name, 0)
        if not kind:
            raise BadInput(f"the type of tensor {name!r} can't be inferred; export the network again with torch.onnx")
        return bool(kind == onnx.TensorProto.FLOAT)

    def _node(self, node: Any) -> None:
        if node.op_type == "Constant" or (node.op_type == "Cast" and self.view.array(node.output[0]) is not None):
            return  # taken where it is read
        if node.op_type == "DequantizeLinear":
            return  # made for each type that its readers want
        if node.op_type == "QuantizeLinear":
            if not self.dla:
                self._quantize(node)
            return
        if node.op_type == "Gemm" and self.int4 and not self.dla and self._four_bits(node):
            self._int4_product(node)
            return
        self._operator(node, self._kind_of(node))

    # Types

    def _kind_of(self, node: Any) -> str:
        """float16, or float32 where a number of the node doesn't fit."""
        reason = None
        if not self._takes_half(node):
            reason = f"{node.op_type} has no float16 form"
        for name in node.input:
            scale = self._scale_of(name)
            if scale is not None and not representable(scale):
                reason = "a scale is too small for float16"
            values = self.view.array(name) if name and scale is None else None
            if (
                values is not None
                and values.dtype == np.float32
                and np.abs(values[np.isfinite(values)]).max(initial=0) > LARGEST
            ):
                reason = "a constant is too large for float16"
        for name in node.output:
            for reader, _ in self.view.readers.get(name, []):
                if reader.op_type == "QuantizeLinear":
                    step = self.view.array(reader.input[1])
                    if step is not None and float(np.max(step)) * 128 > LARGEST:
                        reason = "its results are too large for float16"
        if reason is not None:
            self.notes.append(Note(called(node), "float32", f"stays in float32: {reason}"))
        return "float32" if reason is not None else "float16"

    def _takes_half(self, node: Any) -> bool:
        import onnx

        try:
            schema = onnx.defs.get_schema(node.op_type, min(self.view.opset, OPSET_INT4), node.domain)
        except onnx.defs.SchemaError:
            return False
        wanted = {
            schema.inputs[min(i, len(schema.inputs) - 1)].type_str
            for i, n in enumerate(node.input)
            if n and self._is_float(n)
        }
        types = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        return all("tensor(float16)" in types.get(each, [each, "tensor(float16)"]) for each in wanted)

    def _fixed_float(self, node: Any, index: int) -> bool:
        """Whether an input is float32 by definition, whatever the node computes in: the scales of Resize."""
        import onnx

        schema = onnx.defs.get_schema(node.op_type, min(self.view.opset, OPSET_INT4), node.domain)
        return bool(schema.inputs[min(index, len(schema.inputs) - 1)].type_str == "tensor(float)")

    def _scale_of(self, name: str) -> Array | None:
        maker = self.view.producers.get(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        values = self.view.array(maker.input[0])
        return self.view.array(maker.input[1]) if values is None or values.dtype == np.int8 else None

    # Writing

    def _operator(self, node: Any, kind: str) -> None:
        import onnx

        made = onnx.NodeProto()
        made.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name and self._is_float(name):
                fixed = self._fixed_float(node, index)
                made.input[index] = self._operand(name, "float32" if fixed else kind)
            elif name and self.view.array(name) is not None:
                self._constant(name, self.view.array(name))
        for each in made.attribute:
            if node.op_type == "Cast" and each.name == "to" and each.i == onnx.TensorProto.FLOAT:
                each.i = _proto(kind)
        for name in node.output:
            if name and self._is_float(name):
                self.kinds[name] = kind
        self.nodes.append(made)

    def _operand(self, name: str, kind: str) -> str:
        """The tensor in the wanted float type: a constant, a DequantizeLinear's output, or a Cast's."""
        values = self.view.array(name)
        if values is not None:
            return self._constant(f"{name}.{kind}", values.astype(kind))
        maker = self.view.producers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            return self._dequantized(maker, kind)
        have = self.kinds[name]
        if have == kind:
            return name
        key = (name, kind)
        if key not in self.casts:
            self.casts[key] = f"{name}.{kind}"
            self._add("Cast", [name], self.casts[key], to=_proto(kind))
        return self.casts[key]

    def _dequantized(self, node: Any, kind: str) -> str:
        name = str(node.output[0])
        values = self.view.array(node.input[0])
        scale = self.view.array(node.input[1])
        zero = self.view.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if scale is None or attribute(node, "block_size", 0):
            raise BadInput(f"{called(node)}: its scales are computed or in blocks; give a file that compress made")
        if zero is not None and np.any(zero.astype(np.int64)):
            raise BadInput(
                f"{called(node)}: its zero point isn't 0, and TensorRT quantizes symmetrically; make the file with "
                "--target jetson"
            )
        if values is not None and values.dtype not in (np.int8, np.int32):
            raise BadInput(
                f"{called(node)}: it reads {values.dtype}, and TensorRT takes int8; make the file with --target jetson"
            )
        axis = attribute(node, "axis", 1)
        if values is not None and (values.dtype == np.int32 or self.dla):
            return self._constant(f"{name}.{kind}", (values * _along(scale, values.ndim, axis)).astype(kind))
        if self.dla or self._splits_a_layer(node):  # the pair is left out
            return self._operand(self.view.producers[node.input[0]].input[0], kind)
        key = (name, kind)
        if key not in self.pairs:
            self.pairs[key] = name if kind == "float16" else f"{name}.{kind}"
            integers = node.input[0] if values is None else self._constant(f"{name}.integers", values)
            steps = self._constant(f"{name}.scale.{kind}", _rounded(scale).astype(kind))
            more = {} if np.ndim(scale) == 0 or np.size(scale) == 1 else {"axis": axis}
            self._add("DequantizeLinear", [integers, steps], self.pairs[key], **more)
        return self.pairs[key]

    def _splits_a_layer(self, node: Any) -> bool:
        """Whether the pair stands between a layer and its activation function, which TensorRT computes in one
        kernel."""
        pair = self.view.producers.get(node.input[0])
        if pair is None or pair.op_type != "QuantizeLinear":
            return False
        layer = self.view.producers.get(pair.input[0])
        if layer is None or layer.op_type not in LAYERS or len(self.view.readers.get(layer.output[0], [])) != 1:
            return False
        readers = self.view.readers.get(node.output[0], [])
        return len(readers) == 1 and readers[0][0].op_type in ACTIVATIONS

    def _quantize(self, node: Any) -> None:
        """Rounds in the type that its input has, by the scale that its other half has."""
        scale = self.view.array(node.input[1])
        zero = self.view.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if scale is None or zero is None or zero.dtype != np.int8 or np.any(zero):
            raise BadInput(
                f"{called(node)}: TensorRT quantizes to int8 with zero point 0 and a fixed scale; make the file with "
                "--target jetson"
            )
        source = str(node.input[0])
        kind = self.kinds.get(source, "float16")
        if not representable(scale):
            kind = "float32"
        steps = self._constant(f"{node.output[0]}.scale.{kind}", _rounded(scale).astype(kind))
        zeros = self._constant(f"{node.output[0]}.zero", np.zeros(np.shape(scale), np.int8))
        self._add("QuantizeLinear", [self._operand(source, kind), steps, zeros], str(node.output[0]))

    def _end(self, name: str) -> None:
        """The graph's outputs stay float32."""
        if self.kinds.get(name) == "float32":
            return
        inner = f"{name}.float16"
        maker = self.view.producers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            self._add("Identity", [self._dequantized(maker, "float32")], name)
            return
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, each in enumerate(names):
                    if each == name:
                        names[index] = inner
        self._add("Cast", [inner], name, to=_proto("float32"))

    # 4-bit weights

    def _four_bits(self, node: Any) -> bool:
        """Whether a Gemm is a plain linear layer with weights of at most 4 bits, and blocks fit its inputs."""
        maker = self.view.producers.get(node.input[1])
        values = self.view.array(maker.input[0]) if maker is not None and maker.op_type == "DequantizeLinear" else None
        plain = attribute(node, "transB", 0) and not attribute(node, "transA", 0)
        plain = plain and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
        if values is None or values.dtype != np.int8 or not plain:
            return False
        scale = self._scale_of(node.input[1])
        narrow = values.size and values.min() >= -8 and values.max() <= 7
        return bool(narrow and values.shape[1] % 64 == 0 and scale is not None and representable(scale))

    def _int4_product(self, node: Any) -> None:
        """A MatMul with INT4 weights (K, N) in blocks along K, whose input isn't quantized, and an Add for the bias."""
        import onnx

        maker = self.view.producers[node.input[1]]
        values, scale = self.view.array(maker.input[0]), self.view.array(maker.input[1])
        assert values is not None
        assert scale is not None
        outputs, inputs = values.shape
        block = 128 if inputs % 128 == 0 else 64
        steps = np.broadcast_to(_rounded(scale).astype(np.float16).reshape(-1), (outputs,))
        name = str(maker.output[0])
        packed = onnx.helper.make_tensor(
            f"{name}.int4", onnx.TensorProto.INT4, (inputs, outputs), _packed(values.T), raw=True
        )
        self.constants[packed.name] = packed
        scales = self._constant(f"{name}.scale.blocks", np.tile(steps, (inputs // block, 1)))
        self._add("DequantizeLinear", [packed.name, scales], f"{name}.blocks", axis=0, block_size=block)
        source = str(node.input[0])
        pair = self.view.producers.get(source)
        if pair is not None and pair.op_type == "DequantizeLinear":
            source = str(self.view.producers[pair.input[0]].input[0])
        result = str(node.output[0])
        bias = node.input[2] if len(node.input) > 2 else ""
        product = f"{result}.product" if bias else result
        self._add("MatMul", [self._operand(source, "float16"), f"{name}.blocks"], product)
        if bias:
            self._add("Add", [product, self._operand(str(bias), "float16")], result)
        self.kinds[result] = "float16"
        self.opset = OPSET_INT4
        self.notes.append(
            Note(called(node), "INT4", f"keeps 4-bit weights, in blocks of {block}; its input is not quantized")
        )

    def _constant(self, name: str, values: Array | None) -> str:
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        import onnx

        name = f"{operator.lower()}_{output}"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], name=name, **attributes))


def representable(scale: Array) -> bool:
    """Whether scales are float16 numbers to within :data:`SCALE_ERROR`."""
    exact = np.asarray(scale, np.float64)
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float16).astype(np.float64)
    return bool(np.all(np.isfinite(rounded)) and np.all(np.abs(rounded - exact) <= SCALE_ERROR * exact))


def _rounded(scale: Array) -> Array:
    """Scales as float32 numbers that float16 holds, where it does so closely enough; else as they are."""
    return scale.astype(np.float16).astype(np.float32) if representable(scale) else scale


def _along(scale: Array, rank: int, axis: int) -> Array:
    if np.size(scale) == 1:
        return np.reshape(scale, ())
    shape = [1] * rank
    shape[axis] = -1
    return scale.reshape(shape)


def _packed(values: Array) -> bytes:
    """Two INT4 a byte, the first in the lower half."""
    flat = np.ascontiguousarray(values).ravel().astype(np.uint8) & 15
    flat = np.pad(flat, (0, len(flat) % 2))
    return (flat[0::2] | flat[1::2] << 4).astype(np.uint8).tobytes()


def _proto(kind: str) -> int:
    import onnx

    return int(onnx.TensorProto.FLOAT16 if kind == "float16" else onnx.TensorProto.FLOAT)


__all__ = ["Typed", "representable", "typed"]
