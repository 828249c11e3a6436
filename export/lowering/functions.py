"""Functions of one value: of 8-bit tensors as tables, of float32 ones as operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.export.lowering.builder import Value
from compress.export.lowering.errors import CannotLower
from compress.export.lowering.graph import Node, scalar
from compress.export.lowering.lookahead import clip_ends
from compress.integer import program as p

if TYPE_CHECKING:
    from compress.export.lowering.lower import Walk

Floats = NDArray[np.float32]


def evaluated(node: Node, opset: int, *operands: Floats) -> Floats:
    """A node's result on float32 arrays, by ONNX's reference."""
    import onnx
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    names = [f"x{index}" for index in range(len(operands))]
    made = helper.make_node(node.op, names, ["y"], **node.attributes)
    ends = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, v.shape) for n, v in zip(names, operands, strict=True)
    ]
    graph = helper.make_graph([made], "function", ends, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    with np.errstate(all="ignore"):
        (result,) = ReferenceEvaluator(model).run(None, dict(zip(names, operands, strict=True)))
    return np.asarray(result, np.float32)


class Reals:
    """Short words for float32 operators on tensors of one shape."""

    def __init__(self, walk: Walk, node: Node, shape: tuple[int, ...]) -> None:
        self.walk, self.node, self.shape = walk, node, shape

    def apply(self, kind: str, *inputs: str, constant: Any = None, swapped: bool = False, to: str = "") -> str:
        """One elementwise operator; the name of its tensor."""
        builder = self.walk.builder
        made = builder.tensor(to or f"{self.node.outputs[0]}_{kind}", self.shape, "float32")
        held = None if constant is None else np.asarray(constant, np.float32)
        return builder.add(p.FloatElementwise, f"{self.node.name}_{kind}", inputs, made.name, kind, held, swapped)

    def reduce(self, kind: str, tensor: str, axes: tuple[int, ...]) -> str:
        """``kind`` over ``axes``, kept as 1."""
        builder = self.walk.builder
        shape = tuple(1 if axis in axes else size for axis, size in enumerate(builder.tensors[tensor].shape))
        made = builder.tensor(f"{self.node.outputs[0]}_{kind}", shape, "float32")
        return builder.add(p.FloatReduce, f"{self.node.name}_{kind}", [tensor], made.name, kind, axes)


def _hard_sigmoid(r: Reals, x: str) -> str:
    alpha, beta = r.node.attributes.get("alpha", 0.2), r.node.attributes.get("beta", 0.5)
    return r.apply("clip", r.apply("add", r.apply("mul", x, constant=alpha), constant=beta), constant=[0, 1])


def _hard_swish(r: Reals, x: str) -> str:
    gate = r.apply("clip", r.apply("add", r.apply("mul", x, constant=1 / 6), constant=0.5), constant=[0, 1])
    return r.apply("mul", x, gate)


def _leaky(r: Reals, x: str) -> str:
    slope = float(r.node.attributes.get("alpha", 0.01))
    return r.apply("max" if slope <= 1 else "min", x, r.apply("mul", x, constant=slope))


def _gelu(r: Reals, x: str) -> str:
    way = r.node.attributes.get("approximate", b"none")
    if way in (b"tanh", "tanh"):
        cube = r.apply("mul", r.apply("mul", x, x), x)
        inner = r.apply("add", x, r.apply("mul", cube, constant=0.044715))
        share = r.apply("tanh", r.apply("mul", inner, constant=math.sqrt(2 / math.pi)))
    else:
        share = r.apply("erf", r.apply("mul", x, constant=1 / math.sqrt(2)))
    return r.apply("mul", r.apply("mul", x, constant=0.5), r.apply("add", share, constant=1.0))


def _softplus(r: Reals, x: str) -> str:
    # log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), which doesn't overflow.
    small = r.apply("exp", r.apply("neg", r.apply("abs", x)))
    return r.apply("add", r.apply("relu", x), r.apply("log", r.apply("add", small, constant=1.0)))


def _elu(r: Reals, x: str) -> str:
    alpha = float(r.node.attributes.get("alpha", 1.0))
    below = r.apply("add", r.apply("exp", r.apply("min", x, constant=0.0)), constant=-1.0)
    return r.apply("add", r.apply("relu", x), r.apply("mul", below, constant=alpha))


def _one(kind: str) -> Callable[[Reals, str], str]:
    return lambda r, x: r.apply(kind, x)


REAL: Mapping[str, Callable[[Reals, str], str]] = {
    "Relu": _one("relu"),
    "Sigmoid": _one("sigmoid"),
    "Tanh": _one("tanh"),
    "Exp": _one("exp"),
    "Erf": _one("erf"),
    "Sqrt": _one("sqrt"),
    "Log": _one("log"),
    "Neg": _one("neg"),
    "Abs": _one("abs"),
    "Reciprocal": _one("reciprocal"),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky,
    "Gelu": _gelu,
    "Softplus": _softplus,
    "Elu": _elu,
    "Mish": lambda r, x: r.apply("mul", x, r.apply("tanh", _softplus(r, x))),
    "Swish": lambda r, x: r.apply("mul", x, r.apply("sigmoid", x)),
}
"""Functions that also run in float32."""
TABLE_ONLY = ("Selu", "Celu", "Softsign", "Floor", "Ceil", "Round", "Sin", "Cos", "Sign", "ThresholdedRelu")
"""Functions that are known as tables of 8-bit values alone."""


def _function(walk: Walk, node: Node) -> None:
    """A function of one value."""
    value = walk.value(node.inputs[0], node)
    domain = walk.builder.lookup_domain(value)
    if domain is not None:
        walk.set(node.outputs[0], Value(value.tensor, value.shape, value.axes, _on(walk, node, domain)))
        return
    ends = clip_ends(walk.graph, node)
    to = walk.destination(node)
    real = walk.builder.real(node.name, value)
    reals = Reals(walk, node, walk.builder.tensors[real.tensor].shape)
    if node.op == "Clip":
        if ends is None:
            raise CannotLower("its ends are computed; give constant ones", node.name, node.op)
        made = reals.apply("clip", real.tensor, constant=ends)
    elif node.op in REAL:
        made = REAL[node.op](reals, real.tensor)
    else:
        raise CannotLower("it is supported on quantized values only; quantize its input", node.name, node.op)
    walk.finish_real(node, to, made, value.shape, value.axes)


def _on(walk: Walk, node: Node, domain: Floats) -> Floats:
    ends = clip_ends(walk.graph, node)
    if ends is not None:
        return np.clip(domain, np.float32(ends[0]), np.float32(ends[1]))
    constants = [
        np.float32(found) for name in node.inputs[1:] if (found := scalar(walk.graph.constants, name)) is not None
    ]
    return evaluated(node, walk.graph.opset, domain, *(np.asarray(c, np.float32) for c in constants))


RULES = dict.fromkeys((*REAL, *TABLE_ONLY, "Clip"), _function)
