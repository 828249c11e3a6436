"""Residual blocks that can be removed whole: modules that compute ``x + branch(x)``, or an activation of that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import fx, nn

from compress.graph.trace import Network, kind, layer_name, shape
from compress.graph.walk import is_tensor

PASSES_ON = frozenset(["relu", "relu6", "clone", "contiguous", "dropout", "identity", "alias"])
"""What may follow a block's sum: it leaves the block's input unchanged where that came out of the same."""


@dataclass(frozen=True, slots=True)
class Block:
    """A module that ``nn.Identity()`` can take the place of, as if its branches gave zero.

    Attributes:
        path: of the module.
        layers: the convolution, linear and other weighted layers in it (batch norms go with theirs).
        sums: for each traced addition, the position of the operand that a branch makes.
    """

    path: str
    layers: tuple[str, ...]
    sums: Mapping[str, int]


def find_blocks(network: Network, live: Iterable[fx.Node]) -> tuple[Block, ...]:
    """The modules that look like residual blocks, in the order of execution; trying proves them."""
    inside: dict[str, list[fx.Node]] = {}
    for node in live:
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            if path and not path.startswith("_"):
                inside.setdefault(path, []).append(node)
    weights: dict[str, list[str]] = {}
    for node in network.nodes:
        name = network.parameter(node.args[1]) if len(node.args) > 1 else None
        if name is not None and kind(node) != "batch_norm":
            weights.setdefault(layer_name(name), []).append(name)
    found = []
    for path, nodes in inside.items():
        sums = _sums(network, nodes)
        layers = tuple(name for name in weights if name.startswith(f"{path}."))
        if sums and layers:
            found.append(Block(path, layers, sums))
    # A chain of blocks is no block of its own.
    inner = {b.path: {layer for a in found if a.path.startswith(f"{b.path}.") for layer in a.layers} for b in found}
    return tuple(block for block in found if not inner[block.path].issuperset(block.layers))


def _sums(network: Network, nodes: list[fx.Node]) -> dict[str, int]:
    """The additions between a module's input and its output; none if it isn't of that form."""
    within = set(nodes)
    outside = {
        operand
        for node in nodes
        for operand in node.all_input_nodes
        if operand not in within and network.parameter(operand) is None and is_tensor(operand) and shape(operand)
    }
    returned = {node for node in nodes if any(user not in within for user in node.users)}
    returned = {node for node in returned if is_tensor(node)}
    if len(outside) != 1 or len(returned) != 1:
        return {}
    entry, node = outside.pop(), returned.pop()
    if shape(entry) != shape(node):
        return {}
    sums: dict[str, int] = {}
    while node is not entry:
        if node not in within:
            return {}
        if kind(node) in PASSES_ON and isinstance(node.args[0], fx.Node):
            node = node.args[0]
            continue
        if kind(node) != "add" or len(node.args) != 2 or node.kwargs:
            return {}
        stream = [i for i in (0, 1) if is_tensor(node.args[i]) and _carries(node.args[i], entry)]
        if len(stream) != 1 or shape(node.args[stream[0]]) != shape(node):  # type: ignore[arg-type]  # a node
            return {}
        sums[node.name] = 1 - stream[0]
        node = node.args[stream[0]]  # type: ignore[assignment]  # a node
    return sums


def _carries(node: object, entry: fx.Node) -> bool:
    """True if the stream reaches ``node`` through sums and activations alone."""
    while isinstance(node, fx.Node) and node is not entry:
        if kind(node) in PASSES_ON:
            node = node.args[0]
        elif kind(node) == "add":
            return any(_carries(operand, entry) for operand in node.args)
        else:
            return False
    return node is entry


def without_blocks(model: nn.Module, blocks: Iterable[Block]) -> None:
    """Put ``nn.Identity()`` in the place of each block, in place; blocks inside of others go with those."""
    paths = {block.path for block in blocks}
    for path in sorted(paths):
        if not any(path.startswith(f"{other}.") for other in paths):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, nn.Identity())
