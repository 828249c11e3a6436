"""Small networks drawn twice: as an ONNX file that a device can time, and as the operators that a model predicts by.

What :func:`compress.export.onnx.export` writes of a traced network and what :func:`compress.graph.costs.operators`
lists of it, without tracing anything: a hundred files take a second. Integer files hold the same Q/DQ pairs in the same
places: unsigned activations of 8 bits, symmetric weights with a scale a channel, and no batch norms, which are folded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.export import onnx_forms
from compress.export.onnx import IR_VERSION, OPSET
from compress.graph.operators import Operator
from compress.types import Precision

STEP = 0.05
"""Scale of every activation grid; what numbers come out plays no part in how long it takes."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One network.

    Attributes:
        name: unique among those that are timed together.
        file: ONNX; input ``input``, output ``output``, batch 1.
        operators: in the order of execution.
        inputs: elements of the network's input by name.
        shape: of the input, (1, C, H, W).
        precision: of every layer.
    """

    name: str
    file: bytes
    operators: tuple[Operator, ...]
    inputs: Mapping[str, int]
    shape: tuple[int, int, int, int]
    precision: Precision


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of a drawing: its node in the file, the operator that made it, its sizes; positive: never below 0."""

    node: str
    operator: str
    channels: int
    size: int
    positive: bool = False

    @property
    def elements(self) -> int:
        """Of one input."""
        return self.channels * self.size**2


@dataclass
class Drawing:
    """A network that is being drawn.

    Args:
        name: of the network.
        channels, size: of its input, a square image.
        precision: float32, or integers: weights of 8 or 4 bits, activations of 8.
        seed: of the weights.
    """

    name: str
    channels: int
    size: int
    precision: Precision
    seed: int = 0
    operators: list[Operator] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.integer = self.precision.kind == "integer"
        if self.integer:
            self._constant("step", np.array(STEP, np.float32))
            self._constant("zero", np.array(0, np.uint8))
            self._constant("middle", np.array(128, np.uint8))
        node = self._paired("input", signed=True) if self.integer else "input"
        self.input = Value(node, "x", self.channels, self.size)

    def conv(
        self, x: Value, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, activation: str | None = "relu"
    ) -> Value:
        """A convolution padded to keep the size, with bias and an activation function (``relu``, ``silu`` or None)."""
        name = f"conv{len(self.operators)}"
        size = -(-x.size // stride)
        weights = out * (x.channels // groups) * kernel**2
        shape = (out, x.channels // groups, kernel, kernel)
        settings = {"pads": [kernel // 2] * 4, "strides": [stride] * 2, "group": groups}
        node = self._node("Conv", [x.node, *self._weights(name, shape)], name, **settings)
        made = Operator(
            name, name, "conv2d", weights * size**2, weights, weights + out, (x.operator,), out * size**2,
            x.channels, out, groups,
        )  # fmt: skip
        return self._made(made, node, out, size, activation)

    def linear(self, x: Value, out: int, activation: str | None = None) -> Value:
        """A linear layer on a vector (1, C)."""
        name = f"linear{len(self.operators)}"
        features = x.elements
        node = self._node("Gemm", [x.node, *self._weights(name, (out, features))], name, transB=1)
        weights = out * features
        made = Operator(name, name, "linear", weights, weights, weights + out, (x.operator,), out, features, out)
        return self._made(made, node, out, 1, activation)

    def add(self, x: Value, y: Value, activation: str | None = "relu") -> Value:
        """A residual addition."""
        name = f"add{len(self.operators)}"
        node = self._node("Add", [x.node, y.node], name)
        made = Operator(name, "", "add", 0, 0, 0, (x.operator, y.operator), x.elements)
        return self._made(made, node, x.channels, x.size, activation)

    def max_pool(self, x: Value) -> Value:
        """The largest of 2 x 2."""
        name = f"pool{len(self.operators)}"
        size = x.size // 2
        node = self._node("MaxPool", [x.node], name, kernel_shape=[2, 2], strides=[2, 2])
        made = Operator(name, "", "max_pool2d", 0, 0, 0, (x.operator,), x.channels * size**2)
        return self._made(made, node, x.channels, size, None, x.positive)

    def global_pool(self, x: Value) -> Value:
        """The mean over space, as a vector."""
        name = f"mean{len(self.operators)}"
        node = self._node("GlobalAveragePool", [x.node], name)
        made = Operator(name, "", "mean", 0, 0, 0, (x.operator,), x.channels)
        mean = self._made(made, node, x.channels, 1, None, x.positive)
        return self.flat(mean)

    def flat(self, x: Value) -> Value:
        """The same numbers as a vector (1, C)."""
        name = f"flat{len(self.operators)}"
        node = self._node("Flatten", [x.node], name, axis=1)
        made = Operator(name, "", "flatten", 0, 0, 0, (x.operator,), x.elements)
        self.operators.append(made)
        return Value(self._pair_if(node, not x.positive), name, x.elements, 1, x.positive)

    def done(self, x: Value) -> Drawn:
        """The network that ends with ``x``."""
        from onnx import TensorProto, helper

        shape = (1, self.channels, self.size, self.size)
        last = next(node for node in self.nodes if x.node in node.output)
        if self.integer and last.op_type == "DequantizeLinear":
            # The network's output stays in float: no pair stands behind its last operator.
            source = next(node for node in self.nodes if last.input[0] in node.output)
            self.nodes.remove(last)
            self.nodes.remove(source)
            last = next(node for node in self.nodes if source.input[0] in node.output)
        last.output[0] = "output"
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
            self.constants,
        )
        onnx_forms.weight_zeros(graph)
        opsets = [helper.make_opsetid("", OPSET)]
        file = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION[OPSET]).SerializeToString()
        inputs = {"x": self.channels * self.size**2}
        return Drawn(self.name, bytes(file), tuple(self.operators), inputs, shape, self.precision)

    def _made(
        self, operator: Operator, node: str, channels: int, size: int, activation: str | None, positive: bool = False
    ) -> Value:
        """The tensor behind an operator and its activation function, on its grid where numbers are integers."""
        self.operators.append(operator)
        name = operator.name
        if activation is not None:
            elements, made = channels * size**2, f"{name}_{activation}"
            if activation == "relu":
                node = self._node("Relu", [node], made)
            else:
                gate = self._node("Sigmoid", [self._pair_if(node)], f"{made}_gate")
                node = self._node("Mul", [self._pair_if(node), self._pair_if(gate)], made)
            self.operators.append(Operator(made, "", activation, 0, 0, 0, (name,), elements, fused_into=name))
            name = made
        positive |= activation == "relu"
        return Value(self._pair_if(node, not positive), name, channels, size, positive)

    def _pair_if(self, node: str, signed: bool = True) -> str:
        return self._paired(node, signed) if self.integer else node

    def _paired(self, node: str, signed: bool) -> str:
        """A tensor behind its QuantizeLinear and DequantizeLinear; the grid of one that may be negative is shifted."""
        if (made := f"{node}_d") in [output for each in self.nodes for output in each.output]:
            return made
        grid = ["step", "middle" if signed else "zero"]
        return self._node("DequantizeLinear", [self._node("QuantizeLinear", [node, *grid], f"{node}_q"), *grid], made)

    def _weights(self, name: str, shape: tuple[int, ...]) -> list[str]:
        """Weight and bias of a layer, small enough that sums stay in range."""
        fan = int(np.prod(shape[1:]))
        values = self.random.standard_normal(shape, np.float32) / np.sqrt(fan).astype(np.float32)
        bias = self.random.standard_normal(shape[0], np.float32) / 10
        if not self.integer:
            return [self._constant(f"{name}_w", values), self._constant(f"{name}_b", bias)]
        high = 2 ** (self.precision.weight_bits - 1) - 1
        largest = np.abs(values).reshape(shape[0], -1).max(axis=1).clip(1e-6)
        scale = (largest / high).astype(np.float32)
        spread = scale.reshape(-1, *[1] * (len(shape) - 1))
        integers = np.clip(np.round(values / spread), -high, high).astype(np.int8)
        stored = self._packed(name, integers)
        steps = self._constant(f"{name}_ws", scale)
        sums = self._constant(f"{name}_bq", np.round(bias / (scale * STEP)).astype(np.int32))
        grid = self._constant(f"{name}_bs", (scale * STEP).astype(np.float32))
        return [
            self._node("DequantizeLinear", [stored, steps], f"{name}_w", axis=0),
            self._node("DequantizeLinear", [sums, grid], f"{name}_b", axis=0),
        ]

    def _packed(self, name: str, integers: npt.NDArray[np.int8]) -> str:
        """Integer weights as the file stores them: 4 bits behind a Cast, 8 bits as they are."""
        from onnx import TensorProto, helper

        if self.precision.weight_bits == 8:
            return self._constant(f"{name}_wq", integers)
        self.constants.append(
            helper.make_tensor(f"{name}_wq4", TensorProto.INT4, integers.shape, integers.ravel().tolist())
        )
        return self._node("Cast", [f"{name}_wq4"], f"{name}_wq", to=TensorProto.INT8)

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output


__all__ = ["Drawing", "Drawn", "Value"]
