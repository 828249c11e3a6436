"""What of a network a DLA takes, by the restrictions that TensorRT documents; the rest falls back to the GPU.

It computes in float16 here: Q/DQ pairs are not for a DLA. Support ends with TensorRT 10.7 and comes back, on the Jetson
AGX Orin alone, with 11.4.1.
"""

from __future__ import annotations

from typing import Any

from compress.export.onnx_view import View, attribute, called
from compress.export.tensorrt_rules import Violation

VERSIONS = ("10.3",)
ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "PRelu", "Clip"})
ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Max", "Min", "Div", "Pow", "Equal", "Greater", "Less"})
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
OTHERS = frozenset({"Concat", "LRN", "Resize", "Softmax", "Slice", "Cast", "Reshape", "Flatten", "Gemm", "MatMul"})
OTHERS_TOO = frozenset(
    {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Transpose", "Abs", "Exp", "Sqrt", "Identity"}
)
LARGEST, LARGEST_KERNEL, LARGEST_STRIDE = 8192, 32, 8
"""Of any dimension but the batch; of a convolution's kernel; of its strides."""
LARGEST_POOL, LARGEST_POOL_STRIDE = 8, 16


def fallbacks(model: Any) -> tuple[Violation, ...]:
    """The nodes that no DLA takes, each with the reason, in the file's order."""
    view = View.of(model)
    found = []
    for node in model.graph.node:
        if node.op_type == "Constant" or all(view.array(name) is not None for name in node.input if name):
            continue
        reason = _reason(view, node)
        if reason is not None:
            fix = (
                "it falls back to the GPU; keep such layers at the network's "
                "ends, as every change of device costs a copy"
            )
            found.append(Violation("DLA", called(node), reason, fix, "slow", VERSIONS))
    return tuple(found)


def _reason(view: View, node: Any) -> str | None:
    kind = node.op_type
    if kind in ("QuantizeLinear", "DequantizeLinear"):
        return "a DLA takes no Q/DQ pairs: give it the file model.dla.onnx"
    for name in (*node.input, *node.output):
        if view.array(name) is None and any((size or 0) > LARGEST for size in view.shapes.get(name, ())[1:]):
            return f"a dimension of {name} is above {LARGEST}"
    if kind in ("Conv", "ConvTranspose"):
        return _window(view, node)
    if kind in POOLS:
        kernel, strides = attribute(node, "kernel_shape", [1]), attribute(node, "strides", [1])
        if max(kernel) > LARGEST_POOL or max(strides) > LARGEST_POOL_STRIDE:
            return f"a window of {kernel} with strides of {strides}: at most {LARGEST_POOL} and {LARGEST_POOL_STRIDE}"
        return None
    if kind == "Concat" and attribute(node, "axis", 1) != 1:
        return "it joins along another axis than the channels"
    if kind == "Resize" and attribute(node, "mode", b"nearest") not in (b"nearest", b"linear"):
        return "only nearest and linear"
    known = ACTIVATIONS | ELEMENTWISE | OTHERS | OTHERS_TOO
    return None if kind in known else f"it has no {kind}"


def _window(view: View, node: Any) -> str | None:
    weights = view.array(node.input[1])
    kernel = attribute(node, "kernel_shape", list(weights.shape[2:]) if weights is not None else [])
    strides, dilations = attribute(node, "strides", [1]), attribute(node, "dilations", [1])
    if len(kernel) != 2:
        return f"a {len(kernel)}D window: a DLA takes 2D ones"
    if max(kernel) > LARGEST_KERNEL or max(strides) > LARGEST_STRIDE or max(dilations) > LARGEST_KERNEL:
        return f"a kernel of {kernel} with strides of {strides}: at most {LARGEST_KERNEL} and {LARGEST_STRIDE}"
    if node.op_type == "ConvTranspose":
        if attribute(node, "group", 1) != 1 or max(dilations) > 1 or any(attribute(node, "pads", [0])):
            return "a transposed convolution with groups, dilation or padding"
    elif max(dilations) > 1 and attribute(node, "group", 1) > 1:
        return "a dilated convolution in groups"
    return None


__all__ = ["VERSIONS", "fallbacks"]
