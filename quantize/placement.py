"""Which tensors of a network are quantized, so that integer kernels really run.

An integer kernel takes integers and gives integers: both ends of a convolution or linear layer, both
operands and the result of an addition, get a grid. Where a runtime computes an activation function in
the same pass (ReLU, clip), only the tensor behind it gets one. Operators that move values without
changing them (pooling by maximum, reshapes, padding) hand their input's grid on, so that nothing is
rounded twice. The network's outputs stay in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from compress.graph.groups import PRODUCES
from compress.graph.trace import Network, kind, layer_name, module_path, shape
from compress.types import Note, Plan

CLIPS = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"})
"""Activation functions that an integer kernel gets for free from its saturation."""

CARRIERS = frozenset(
    [
        "max_pool2d",
        "max_pool1d",
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "permute",
        "transpose",
        "contiguous",
        "dropout",
        "slice",
        "constant_pad_nd",
        "pad",
        "upsample_nearest2d",
        "identity",
        "clone",
        "alias",
    ]
)
"""Operators whose outputs are values of their input, or zeros: the grid goes through."""

JOINS = frozenset({"add", "cat", "mul"})
"""Operators with integer kernels that need every operand on a grid."""

AVERAGES = frozenset({"avg_pool2d", "adaptive_avg_pool2d", "mean"})
"""Operators with integer kernels that take one grid and give another."""

FLOATS = {
    **dict.fromkeys(
        ("matmul", "bmm", "mm", "baddbmm", "scaled_dot_product_attention"),
        "a product of two activations; the layers that make and read them are quantized",
    ),
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), "exponentials span more than an integer grid holds"),
    **dict.fromkeys(
        ("layer_norm", "rms_norm", "group_norm", "instance_norm"),
        "it divides by a deviation of its own input, which integer kernels don't",
    ),
    **dict.fromkeys(
        (
            *("gelu", "silu", "mish", "elu", "selu", "celu", "softplus", "tanh", "sigmoid", "log_sigmoid"),
            *("hardswish", "hardsigmoid", "leaky_relu", "prelu"),
        ),
        "integer kernels compute clips alone in the same pass; the tensors before and behind it have grids",
    ),
    **dict.fromkeys(("embedding", "embedding_bag"), "its rows are looked up, not multiplied"),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose3d"), "there is no integer kernel for it"),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "its state passes through many steps"),
}
"""Operators that stay float, and why."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where grids go.

    Attributes:
        tensors: traced nodes whose tensors get a grid of their own, with its bits.
        carried: node -> the node whose grid it takes.
        weights: weight parameter -> (bits, output axis).
        notes: layers that stay float, and why.
    """

    tensors: Mapping[str, int]
    carried: Mapping[str, str]
    weights: Mapping[str, tuple[int, int]]
    notes: tuple[Note, ...]


def place(network: Network, plan: Plan) -> Placement:
    """The placement for ``plan``: each layer by its own precision, the operators between by their neighbours'."""
    tensors: dict[fx.Node, int] = {}
    weights: dict[str, tuple[int, int]] = {}
    notes: list[Note] = []
    outputs = set(network.outputs())
    for node in network.nodes:
        if kind(node) not in PRODUCES:
            continue
        weight = network.parameter(node.args[1])
        if weight is None:
            notes.append(Note(module_path(node), kind(node), "stays float: its weight is computed, not a parameter"))
            continue
        precision = plan.layer(layer_name(weight)).precision
        if precision.kind == "float":
            continue
        if precision.weight_bits > 8 or precision.activation_bits > 8:
            notes.append(Note(layer_name(weight), str(precision), "stays float: integer kernels take at most 8 bits"))
            continue
        weights[weight] = (precision.weight_bits, PRODUCES[kind(node)])
        source = node.args[0]
        assert isinstance(source, fx.Node)
        tensors[source] = min(precision.activation_bits, tensors.get(source, 8))
        result = _behind_clip(node)
        if result not in outputs:
            tensors.setdefault(result, precision.activation_bits)
    _spread(network, tensors, outputs)
    carried = _carry(network, tensors)
    own = {node.name: bits for node, bits in tensors.items() if node.name not in carried}
    return Placement(own, carried, weights, (*notes, *_floats(network)))


def _floats(network: Network) -> list[Note]:
    """A note for each kind of operator that stays float, with the first place where it stands."""
    found: dict[str, list[str]] = {}
    for node in network.nodes:
        if kind(node) in FLOATS:
            found.setdefault(kind(node), []).append(module_path(node) or node.name)
    notes = []
    for what, places in found.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        notes.append(Note(places[0] + more, what, f"stays float: {FLOATS[what]}"))
    return notes


def _behind_clip(node: fx.Node) -> fx.Node:
    """The tensor that a runtime's kernel writes: behind the activation function that it fuses."""
    users = [user for user in node.users if shape(user)]
    if len(users) == 1 and kind(users[0]) in CLIPS:
        return users[0]
    return node


def _spread(network: Network, tensors: dict[fx.Node, int], outputs: set[fx.Node]) -> None:
    """Give grids to the joins, averages and carriers that stand between tensors that have one."""
    for node in network.nodes:
        sources = [arg for arg in node.all_input_nodes if network.parameter(arg) is None and shape(arg)]
        if not sources or not all(source in tensors for source in sources):
            continue
        joins = kind(node) in JOINS and (kind(node) == "cat" or len(sources) == 2 or node.args[0] is node.args[1])
        if joins or kind(node) in AVERAGES or kind(node) in CARRIERS:
            result = _behind_clip(node) if joins else node
            if result not in outputs:
                tensors.setdefault(result, min(tensors[source] for source in sources))


def _carry(network: Network, tensors: Mapping[fx.Node, int]) -> dict[str, str]:
    carried: dict[str, str] = {}
    for node in network.nodes:
        source = node.args[0] if node.args else None
        if kind(node) in CARRIERS and node in tensors and isinstance(source, fx.Node) and source in tensors:
            carried[node.name] = carried.get(source.name, source.name)
    return carried
