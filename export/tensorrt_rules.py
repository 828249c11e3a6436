"""TensorRT's documented rules on an ONNX file: each violation with its node and what to do.

The rules are those of the developer guide (quantized types, strongly typed networks), of the operator reference, and of
the ONNX parser's support matrix. An ``error`` stops the build or the parser; ``slow`` builds, but that part doesn't run
in integers or costs a kernel of its own; a ``warning`` is something that is documented for later releases only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compress.errors import BadInput
from compress.export import tensorrt_support as support
from compress.export.onnx_view import View, attribute, called

Level = Literal["error", "slow", "warning"]
WEIGHTED: dict[str, int] = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": -1}
"""Operators with weights, and the axis of the weights that per-channel scales lie along (Gemm with transB)."""
ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSwish", "Elu", "Gelu"})
BLOCKS = (64, 128)
"""Elements of a block of INT4 weights that share a scale."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule that one node breaks.

    Attributes:
        rule: a short name.
        node: the node's name in the file, or the tensor's.
        found: what is wrong.
        fix: what to do.
        level: see the module.
        versions: the TensorRT releases that it holds for.
    """

    rule: str
    node: str
    found: str
    fix: str
    level: Level = "error"
    versions: tuple[str, ...] = support.VERSIONS


def load(path: Path) -> Any:
    """An ONNX model, without its external weights.

    Raises:
        BadInput: it isn't there, or isn't an ONNX file.
    """
    import onnx

    if not path.is_file():
        raise BadInput(f"ONNX file {path}: there is no such file; give the path of an .onnx file")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises whatever the damage leads to
        raise BadInput(
            f"ONNX file {path} can't be read ({' '.join(str(error).split())[:120]}); export it again"
        ) from None
    if not model.graph.node:
        raise BadInput(f"ONNX file {path} holds no network; export it again")
    return model


def check(model: Any) -> tuple[Violation, ...]:
    """Everything in a model that TensorRT's documentation rules out or warns of, in the order of the nodes."""
    view = View.of(model)
    found: list[Violation] = list(_opset(view))
    for value in (*model.graph.input, *model.graph.initializer):
        kind = _type_name(value.data_type if hasattr(value, "data_type") else value.type.tensor_type.elem_type)
        if kind in support.UNSUPPORTED_TYPES:
            found.append(
                Violation("type", value.name, f"it is {kind.lower()}", support.UNSUPPORTED_TYPES[kind], _severity(kind))
            )
    for node in model.graph.node:
        for rule in RULES:
            found += rule(view, node)
    return tuple(found)


def _severity(kind: str) -> Level:
    return "warning" if kind == "DOUBLE" else "error"


def _type_name(kind: int) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(kind)) if kind else "UNDEFINED"


def _opset(view: View) -> Iterator[Violation]:
    opset = view.opset
    if opset < support.SMALLEST_OPSET:
        yield Violation("opset", "the file", f"opset {opset} is too old", "export it with opset 17 or later")
    older = tuple(version for version, largest in support.LARGEST_OPSET.items() if opset > largest)
    if older:
        said = f"opset {opset} is newer than the parser documents"
        yield Violation(
            "opset", "the file", said, "export it with a lower opset if the parser refuses it", "warning", older
        )


def _operators(view: View, node: Any) -> Iterator[Violation]:
    if node.domain not in ("", "ai.onnx"):
        said = f"operator {node.domain}.{node.op_type} isn't one of ONNX's"
        yield Violation(
            "operator", called(node), said, "rewrite it with ONNX's operators, or give TensorRT a plugin of that name"
        )
        return
    missing = tuple(version for version in support.VERSIONS if not support.supported(node.op_type, version))
    if missing:
        fix = support.INSTEAD.get(node.op_type, support.OTHERWISE)
        yield Violation("operator", called(node), f"operator {node.op_type} isn't supported", fix, "error", missing)


def _restrictions(view: View, node: Any) -> Iterator[Violation]:
    kind, name = node.op_type, called(node)
    if kind in ("MaxPool", "AveragePool", "LpPool") and any(d != 1 for d in attribute(node, "dilations", [])):
        yield Violation("pooling", name, "dilations must be 1", "replace the dilated pooling")
    if kind == "MaxPool" and len(node.output) > 1 and node.output[1]:
        yield Violation("pooling", name, "the indices' output isn't supported", "leave the second output out")
    if kind in ("Conv", "ConvTranspose", "MaxPool", "AveragePool"):
        shape = view.shapes.get(node.input[0])
        if shape is not None and len(shape) not in (3, 4, 5):
            yield Violation(
                "rank", name, f"its input has {len(shape)} dimensions", "2D and 3D windows only: reshape it"
            )
    if kind == "Resize":
        mode = _text(attribute(node, "mode", b"nearest"))
        where = _text(attribute(node, "coordinate_transformation_mode", b"half_pixel"))
        allowed = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
        if mode not in ("nearest", "linear"):
            yield Violation("resize", name, f"mode {mode} isn't supported", "use nearest or linear")
        if where not in allowed:
            yield Violation("resize", name, f"coordinates {where} aren't supported", f"use one of {', '.join(allowed)}")
        if attribute(node, "antialias", 0):
            yield Violation("resize", name, "antialiasing isn't supported", "set antialias to 0")
    if kind == "ScatterND" and _text(attribute(node, "reduction", b"none")) != "none":
        yield Violation("scatter", name, "a reduction isn't supported", "use reduction none")
    if kind.startswith("Reduce") and len(node.input) > 1 and node.input[1] and view.array(node.input[1]) is None:
        yield Violation("axes", name, "its axes are computed", "make them an initializer")
    if kind == "Cast":
        types = (view.types.get(node.input[0], 0), attribute(node, "to", 0))
        odd = [_type_name(each) for each in types if each and _type_name(each) not in support.CASTS_FROM]
        if odd:
            said = f"Cast doesn't know {' or '.join(each.lower() for each in odd)}"
            fix = "store the weights as INT8 (as INT4 for a MatMul) right in front of DequantizeLinear"
            yield Violation("cast", name, said, fix)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _quantizers(view: View, node: Any) -> Iterator[Violation]:
    """Scales are positive build-time constants, zero points 0, types those that TensorRT quantizes to."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    name = called(node)
    scale = view.array(node.input[1])
    if scale is None:
        yield Violation("scale", name, "its scale is computed", "make the scale an initializer")
    elif not np.all(np.asarray(scale, np.float64) > 0):
        yield Violation("scale", name, "a scale isn't above 0", "give every channel a positive scale")
    zero = view.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if zero is not None and np.any(np.asarray(zero).astype(np.int64) != 0):
        fix = "quantize symmetrically: int8 with zero point 0 (compress --target jetson does)"
        yield Violation("zero point", name, "its zero point isn't 0", fix)
    kind = _quantized_type(view, node)
    if kind == "UINT8":
        fix = "quantize to int8, symmetric (compress --target jetson does)"
        yield Violation("quantized type", name, "unsigned 8-bit tensors aren't supported", fix)
    elif kind == "INT32" and node.op_type == "DequantizeLinear":
        fix = "store the bias in float (scale times integer); TensorRT keeps it exact in its accumulators"
        yield Violation("quantized type", name, "DequantizeLinear takes no int32", fix)
    elif kind in support.UNSUPPORTED_TYPES:
        yield Violation("quantized type", name, f"{kind.lower()} isn't supported", support.UNSUPPORTED_TYPES[kind])
    elif kind == "INT4":
        yield from _int4(view, node, name)
    if kind != "INT4" and attribute(node, "block_size", 0):
        yield Violation("granularity", name, "blocks with a scale each are for INT4 weights", "use one scale a channel")
    if scale is not None and np.asarray(scale).size > 1 and view.array(node.input[0]) is None:
        yield Violation(
            "granularity", name, "an activation has several scales", "give it one scale for the whole tensor"
        )


def _quantized_type(view: View, node: Any) -> str:
    if node.op_type == "DequantizeLinear":
        return _type_name(view.types.get(node.input[0], 0))
    if len(node.input) > 2 and node.input[2]:
        return _type_name(view.types.get(node.input[2], 0))
    return _type_name(attribute(node, "output_dtype", 0) or view.types.get(node.output[0], 0) or 2)


def _int4(view: View, node: Any, name: str) -> Iterator[Violation]:
    if node.op_type == "QuantizeLinear" or view.array(node.input[0]) is None:
        yield Violation("INT4", name, "INT4 is for weights only", "quantize activations to int8")
        return
    others = [
        reader.op_type for reader, _ in view.readers.get(node.output[0], []) if reader.op_type not in ("MatMul", "Gemm")
    ]
    if others:
        fix = "store those weights as INT8 (the typed file of a bundle does)"
        yield Violation("INT4", name, f"INT4 weights of a {others[0]}: matrix products only", fix)
    block = attribute(node, "block_size", 0)
    if block and block not in BLOCKS:
        yield Violation("INT4", name, f"blocks of {block} weights", f"use blocks of {' or '.join(map(str, BLOCKS))}")


def _weights(view: View, node: Any) -> Iterator[Violation]:
    """Weights' scales lie along the output channels, and integer weights want integer inputs."""
    if node.op_type not in WEIGHTED or len(node.input) < 2:
        return
    name = called(node)
    maker = view.producers.get(node.input[1])
    source = view.producers.get(node.input[0])
    quantized_input = source is not None and source.op_type == "DequantizeLinear"
    if maker is None or maker.op_type != "DequantizeLinear":
        if quantized_input and view.array(node.input[1]) is not None:
            fix = "put QuantizeLinear and DequantizeLinear on the weights too, or take them off the input"
            yield Violation(
                "weights", name, "its input is quantized, its weights aren't: it runs in float", fix, "slow"
            )
        return
    weights, scale = view.array(maker.input[0]), view.array(maker.input[1])
    kind = _type_name(view.types.get(maker.input[0], 0))
    if weights is not None and scale is not None and np.asarray(scale).ndim == 1 and np.asarray(scale).size > 1:
        rank = weights.ndim
        wanted = WEIGHTED[node.op_type] % rank
        if node.op_type == "Gemm" and not attribute(node, "transB", 0):
            wanted = 1
        axis = attribute(maker, "axis", 1) % rank
        if axis != wanted:
            said = f"its weights' scales lie along axis {axis}"
            yield Violation("axis", name, said, f"quantize along axis {wanted}, the output channels")
    if not quantized_input and weights is not None and kind == "INT8":
        fix = "quantize its input too, or keep the weights in float16"
        yield Violation("weights", name, "its weights are quantized, its input isn't: it runs in float", fix, "slow")


def _fusions(view: View, node: Any) -> Iterator[Violation]:
    """What stands where TensorRT would have fused: Q/DQ between a layer and its activation, half-quantized sums."""
    name = called(node)
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        following = [reader for reader, _ in view.readers.get(node.output[0], [])]
        if len(following) == 1 and following[0].op_type == "QuantizeLinear":
            after = view.readers.get(following[0].output[0], [])
            last = [r for pair, _ in after for r, _ in view.readers.get(pair.output[0], [])]
            if last and all(reader.op_type in ACTIVATIONS for reader in last):
                said = f"QuantizeLinear stands between it and its {last[0].op_type}"
                yield Violation("fusion", name, said, "quantize behind the activation function only", "slow")
    if node.op_type == "Add" and len(node.input) == 2 and not any(view.array(i) is not None for i in node.input):
        makers = [view.producers.get(i) for i in node.input]
        quantized = [maker is not None and maker.op_type == "DequantizeLinear" for maker in makers]
        if any(quantized) and not all(quantized):
            other = makers[quantized.index(False)]
            if other is None or other.op_type not in WEIGHTED:
                fix = "quantize both inputs of the residual addition"
                yield Violation("residual", name, "one of its inputs is quantized, the other isn't", fix, "slow")


def _types(view: View, node: Any) -> Iterator[Violation]:
    """In a strongly typed network the operands of one operator have one float type; nothing is cast for them."""
    import onnx

    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast", "CastLike", "Resize", "If", "Loop", "Scan"):
        return
    kinds = {kind for name in node.input if (kind := view.types.get(name, 0)) in floats}
    if len(kinds) > 1:
        said = f"its inputs are {' and '.join(sorted(_type_name(k).lower() for k in kinds))}"
        yield Violation("strong typing", called(node), said, "put a Cast in front of one of them")


RULES: tuple[Callable[[View, Any], Iterator[Violation]], ...] = (
    _operators,
    _restrictions,
    _quantizers,
    _weights,
    _fusions,
    _types,
)

__all__ = ["Level", "Violation", "check", "load"]
