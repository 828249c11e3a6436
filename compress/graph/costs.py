"""What each traced operator computes and moves: multiply-accumulates, weights, tensors.

One table joins operators to their counts; what isn't in it counts no multiply-accumulates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import fx

from compress.graph.groups import CONSUMES, PRODUCES
from compress.graph.operators import Operator
from compress.graph.trace import Network, argument, kind, layer_name, module_path, shape
from compress.types import Size


def _convolution(node: fx.Node, weight: tuple[int, ...]) -> int:
    return math.prod(weight) * math.prod(shape(node)[2:])


def _transposed(node: fx.Node, weight: tuple[int, ...]) -> int:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return math.prod(weight) * math.prod(shape(source)[2:])


def _linear(node: fx.Node, weight: tuple[int, ...]) -> int:
    return math.prod(weight) * math.prod(shape(node)[:-1])


def _matmul(node: fx.Node, weight: tuple[int, ...]) -> int:
    left = node.args[0]
    assert isinstance(left, fx.Node)
    return math.prod(shape(node)) * shape(left)[-1]


def _attention(node: fx.Node, weight: tuple[int, ...]) -> int:
    query, key, value = (shape(arg) for arg in node.args[:3] if isinstance(arg, fx.Node))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


MACS: dict[str, Callable[[fx.Node, tuple[int, ...]], int]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    "linear": _linear,
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    "scaled_dot_product_attention": _attention,
}
"""Operator's plain name -> multiply-accumulates of a node for one input."""

ACTIVATIONS = frozenset(
    [
        "relu",
        "relu6",
        "hardtanh",
        "clamp",
        "clamp_max",
        "clamp_min",
        "leaky_relu",
        "hardswish",
        "silu",
        "sigmoid",
        "hardsigmoid",
        "gelu",
        "dropout",
    ]
)
"""Operators that runtimes compute in the same pass as the convolution or addition in front of them."""

FREE = frozenset(
    [
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "_unsafe_view",
        "squeeze",
        "unsqueeze",
        "dropout",
        "contiguous",
        "alias",
        "detach",
        "identity",
        "getitem",
        "sym_size",
    ]
)
"""Operators that move nothing: they rename a tensor."""


def operators(network: Network) -> tuple[Operator, ...]:
    """The operators of a network for one input, in the order of execution."""
    fused = _fusions(network)
    result = []
    for node in network.nodes:
        size = shape(node)
        if not size and kind(node) == "sym_size":
            continue
        weight = _weight(network, node)
        weight_shape = _weight_shape(node)
        conv = weight is not None
        groups = int(argument(node, "groups", 1)) if conv and kind(node) != "linear" else 1
        result.append(
            Operator(
                name=node.name,
                path=_path(network, node, weight),
                kind=_kind(node),
                macs=MACS[kind(node)](node, weight_shape) if kind(node) in MACS else 0,
                weights=math.prod(weight_shape) if conv else 0,
                params=sum(
                    math.prod(arg.meta["val"].shape)
                    for arg in node.all_input_nodes
                    if network.parameter(arg) is not None
                    and not network.parameters[arg.name].endswith("num_batches_tracked")
                ),
                inputs=tuple(arg.name for arg in node.all_input_nodes if network.parameter(arg) is None and shape(arg)),
                output_elements=math.prod(size),
                in_channels=weight_shape[CONSUMES[kind(node)]] * groups if conv and kind(node) in CONSUMES else 0,
                out_channels=weight_shape[PRODUCES[kind(node)]] if conv else 0,
                groups=groups,
                fused_into=fused.get(node.name),
            )
        )
    return tuple(result)


def _kind(node: fx.Node) -> str:
    """The operator's name; of a pad that puts anything but zeros, a name that says so: no convolution does that."""
    name = kind(node)
    if name not in ("pad", "constant_pad_nd"):
        return name
    mode, value = argument(node, "mode", "constant"), argument(node, "value", None)
    return name if mode == "constant" and not value else f"{mode}_pad"


def _weight(network: Network, node: fx.Node) -> fx.Node | None:
    if kind(node) in PRODUCES and len(node.args) > 1 and network.parameter(node.args[1]) is not None:
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        return weight
    return None


def _weight_shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a layer's weight, also of one that is computed from parameters; () of what is no layer."""
    weight = node.args[1] if kind(node) in PRODUCES and len(node.args) > 1 else None
    return tuple(int(n) for n in weight.meta["val"].shape) if isinstance(weight, fx.Node) else ()


def _path(network: Network, node: fx.Node, weight: fx.Node | None) -> str:
    # A layer is called by its weight's owner, also where torch.export kept no module stack.
    return layer_name(network.parameters[weight.name]) if weight is not None else module_path(node)


def _fusions(network: Network) -> dict[str, str]:
    """Node -> the weighted or adding node that it is computed together with, or that it renames."""
    fused: dict[str, str] = {}
    heads = {*MACS, "add", "mul"}
    for node in network.nodes:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_function":
            continue
        head = fused.get(source.name, source.name if kind(source) in heads else None)
        alone = len([user for user in source.users if shape(user)]) == 1
        if kind(node) in FREE:
            fused[node.name] = head or source.name
        elif head is not None and alone and (kind(node) in ACTIVATIONS or kind(node) == "batch_norm"):
            fused[node.name] = head
    return fused


def total_macs(network: Network) -> int:
    """Multiply-accumulates of the whole network for one input."""
    return sum(operator.macs for operator in operators(network))


def layer_operators(network: Network) -> tuple[Operator, ...]:
    """The convolution and linear layers: what pruning and precision decide about."""
    return tuple(operator for operator in operators(network) if operator.weights)


def size(network: Network, weight_bits: Mapping[str, int] | None = None) -> Size:
    """Multiply-accumulates for one input, parameters of the whole network, and the average bits of the layers' weights.

    The average is ``sum(bits * weights) / sum(weights)`` over every convolution and linear layer, with ``weight_bits``
    of each, by its path; 32 where a layer isn't named. A layer that is called twice has its weights once.
    """
    state = network.program.state_dict
    trainable = {name for name in network.parameters.values() if name in network.program.graph_signature.parameters}
    weights = {layer.path: layer.weights for layer in layer_operators(network)}
    total = sum(weights.values())
    bits = sum((weight_bits or {}).get(path, 32) * count for path, count in weights.items())
    params = sum(state[name].numel() for name in trainable)
    return Size(total_macs(network), params, bits / total if total else 32.0)
