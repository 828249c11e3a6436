"""Which layers a network is piecewise linear in.

Where the output is a piecewise linear function of one layer's weights, all others held fixed, the second
derivative of every output by them is zero, and the layer's block of the Hessian is that of the Gauss-Newton
matrix. What lies between the weights and the output decides: convolutions, batch norm in evaluation mode, ReLU,
pooling, sums and reshapes are (piecewise) linear; a product of two tensors that both depend on the weights, GELU
or softmax are not. The same holds for a tensor of activations in the place of weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from compress.graph.groups import PRODUCES
from compress.graph.interpret import Steps
from compress.graph.trace import kind, layer_name

WEIGHTED = frozenset((*PRODUCES, "conv_transpose1d", "conv_transpose3d"))
"""Operators with a weight, their second operand."""

JOINTLY_LINEAR = frozenset(
    (
        *("add", "sub", "rsub", "neg", "cat", "concat", "concatenate", "stack", "maximum", "minimum"),
        *("relu", "relu6", "leaky_relu", "hardtanh", "hardsigmoid", "threshold", "abs", "clamp"),
        *("clamp_min", "clamp_max", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d"),
        *("avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean", "sum", "cumsum"),
        *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "amax", "amin"),
        *("view", "reshape", "flatten", "unflatten", "_unsafe_view", "squeeze", "unsqueeze", "view_as", "reshape_as"),
        *("permute", "transpose", "t", "numpy_T", "mT", "movedim", "moveaxis", "pad", "constant_pad_nd", "slice"),
        *("select", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "getitem", "narrow"),
        *("expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave", "roll", "flip"),
        *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "unfold", "im2col"),
        *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d"),
        *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
        *("dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias", "to", "_to_copy", "type_as"),
        *("detach", "identity", "zeros_like", "ones_like", "full_like"),
    )
)
"""Operators whose result is piecewise linear in all their operands together, traced in evaluation mode."""

LINEAR_IN_FIRST = frozenset(("batch_norm", "div", "index", "index_select", "gather", "masked_fill", "prelu"))
"""Operators that are linear in their first operand, the others held fixed."""

PRODUCTS = frozenset((*WEIGHTED, "mul", "matmul", "bmm", "mm", "mv", "einsum", "addmm", "baddbmm", "where"))
"""Operators that are linear in each operand, the others held fixed."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A weight of a convolution or linear layer.

    Attributes:
        name: module path of the layer; the first of several that share the weight.
        parameters: the names of the weight, several where it is registered under several.
        nodes: the operators that apply it, in the order of execution.
        others: True if something else reads it too.
    """

    name: str
    parameters: tuple[str, ...]
    nodes: tuple[str, ...]
    others: bool


def layers(steps: Steps) -> tuple[Layer, ...]:
    """The weights of a network that are parameters themselves (not computed from others), as they run."""
    storage = {name: tensor.data_ptr() for name, tensor in steps.parameters.items()}
    readers: dict[int, list[fx.Node]] = {}
    applied: dict[int, list[fx.Node]] = {}
    for node in steps.nodes:
        for source in {each.name for each in node.all_input_nodes} & set(steps.constants):
            readers.setdefault(storage[steps.constants[source]], []).append(node)
        if kind(node) in WEIGHTED and isinstance(node.args[1], fx.Node) and node.args[1].name in steps.constants:
            applied.setdefault(storage[steps.constants[node.args[1].name]], []).append(node)
    found = []
    for place, nodes in applied.items():
        names = tuple(name for name, each in storage.items() if each == place)
        weight = nodes[0].args[1]
        assert isinstance(weight, fx.Node)
        first = steps.constants[weight.name]
        alike = len({kind(node) for node in nodes}) == 1
        found.append(
            Layer(
                layer_name(first),
                names,
                tuple(node.name for node in nodes),
                not alike or len(readers[place]) != len(nodes),
            )
        )
    return tuple(found)


def linear_layers(steps: Steps, of: Iterable[Layer]) -> set[str]:
    """Names of the layers in whose weights the network's output is piecewise linear."""
    return {
        layer.name
        for layer in of
        if len(layer.nodes) == 1 and not layer.others and piecewise_linear(steps, layer.nodes[0])
    }


def piecewise_linear(steps: Steps, source: str) -> bool:
    """True if the network's output is piecewise linear in the tensor called ``source``, a node or an input."""
    reached = {source}
    for node in steps.nodes:
        operands = [each.name for each in node.all_input_nodes if each.name in reached]
        if not operands or not _holds_values(node):
            continue
        if not _linear(node, operands):
            return False
        reached.add(node.name)
    return True


def _linear(node: fx.Node, operands: list[str]) -> bool:
    name = kind(node)
    if name in JOINTLY_LINEAR:
        return True
    first = node.args[0]
    only_first = isinstance(first, fx.Node) and operands == [first.name]
    if name == "batch_norm":
        # With running statistics: with the batch's own it isn't linear.
        return only_first and not node.args[5]
    if name == "div":
        return only_first and len(node.args) == 2 and "rounding_mode" not in node.kwargs
    if name in LINEAR_IN_FIRST:
        return only_first
    if name == "where":
        return not (isinstance(first, fx.Node) and first.name in operands)
    if name in ("addmm", "baddbmm"):
        return len(operands) == 1
    return name in PRODUCTS and _once(node, operands)


def _once(node: fx.Node, operands: list[str]) -> bool:
    """One operand depends on the source, and stands in one place: x * x is no product of independent ones."""
    places = [each for arg in node.args for each in (arg if isinstance(arg, (tuple, list)) else [arg])]
    return len(operands) == 1 and sum(isinstance(each, fx.Node) and each.name == operands[0] for each in places) == 1


def _holds_values(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(each, torch.Tensor) for each in values)


def node_tensors(steps: Steps, of: Iterable[Layer]) -> Mapping[str, tuple[str, ...]]:
    """Layer -> the tensors that it reads: nodes or inputs of the network."""
    nodes = {node.name: node for node in steps.nodes}
    found: dict[str, tuple[str, ...]] = {}
    for layer in of:
        read = [nodes[name].args[0] for name in layer.nodes]
        found[layer.name] = tuple(
            dict.fromkeys(each.name for each in read if isinstance(each, fx.Node) and each.name not in steps.constants)
        )
    return found
