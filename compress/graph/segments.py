"""A network in segments: runs of operators between tensors through which everything flows.

What a segment computes is compared with what the original computes there, channel by channel, so a
segment ends where it is known which of the original's channels are left, and where inputs lie along the
first axis, so that it runs on a few of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compress.graph.groups import PRODUCES, Dependencies
from compress.graph.interpret import Steps
from compress.graph.trace import argument, batch_first, kind, shape

LAYERS = 2
"""Weighted layers that a segment holds at least: one that makes channels and one that reads them."""

FOLLOWS = frozenset(
    {
        "relu",
        "relu6",
        "hardtanh",
        "leaky_relu",
        "elu",
        "gelu",
        "silu",
        "mish",
        "sigmoid",
        "hardsigmoid",
        "hardswish",
        "tanh",
        "clamp",
        "clamp_max",
        "clamp_min",
        "prelu",
        "softplus",
        "batch_norm",
        "dropout",
        "max_pool2d",
    }
)
"""Operators that belong with what stands in front of them."""


@dataclass(frozen=True)
class Segment:
    """Operators ``first`` to ``last`` (positions, both included), which read the tensor ``entry`` and make
    the tensor ``exit``."""

    first: int
    last: int
    entry: str
    exit: str


@dataclass(frozen=True)
class Kept:
    """Which channels of the original's tensors the smaller network still has."""

    dependencies: Dependencies
    gone: frozenset[int]

    def known(self, name: str) -> bool:
        """True if it can be said for this tensor."""
        return self.dependencies.channels.get(name, {}) is not None

    def of(self, name: str, tensor: Tensor) -> Tensor:
        """The original's ``tensor`` at node ``name``, without the channels that are gone."""
        for axis, labels in (self.dependencies.channels.get(name) or {}).items():
            stay = [i for i, label in enumerate(labels.tolist()) if label not in self.gone]
            if len(stay) < tensor.shape[axis]:
                tensor = tensor.index_select(axis, torch.tensor(stay, device=tensor.device))
        return tensor


def segments(steps: Steps, kept: Kept | None = None) -> tuple[Segment, ...]:
    """The segments of a network with one input, in order; together they hold every operator.

    Args:
        steps: the network.
        kept: where its channels are known, if some of them are gone from the network that it is compared with.
    """
    known = (lambda name: True) if kept is None else kept.known
    cuts = {i for i, name in _bottlenecks(steps) if known(name) and batch_first(steps.nodes[i])}
    found: list[Segment] = []
    first, entry, layers = 0, steps.inputs[0], 0
    for i, node in enumerate(steps.nodes):
        layers += kind(node) in PRODUCES
        following = steps.nodes[i + 1] if i + 1 < len(steps.nodes) else None
        inside = following is not None and kind(following) in FOLLOWS
        if following is None or (i in cuts and layers >= LAYERS and not inside):
            end = steps.output if following is None else node.name
            found.append(Segment(first, i, entry, end))
            first, entry, layers = i + 1, node.name, 0
    if len(found) > 1 and not any(kind(node) in PRODUCES for node in steps.nodes[found[-1].first :]):
        tail, before = found.pop(), found.pop()
        found.append(Segment(before.first, tail.last, before.entry, tail.exit))
    return tuple(found)


def _bottlenecks(steps: Steps) -> Iterable[tuple[int, str]]:
    """Positions behind which one tensor alone is read: the one that was made there."""
    last = dict(steps.last_use)
    alive = {name for name in steps.inputs if name in last}
    for i, node in enumerate(steps.nodes):
        if _is_tensor(node) and node.name in last:
            alive.add(node.name)
        alive = {name for name in alive if last[name] > i}
        if alive == {node.name}:
            yield i, node.name


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor) and bool(shape(node))


def other_operand(steps: Steps, at: int) -> str | None:
    """The other operand of the residual addition that a layer's output goes into; None if there is none."""
    node = steps.nodes[at]
    users = list(node.users)
    if len(users) != 1 or kind(users[0]) != "add" or argument(users[0], "alpha", 1) != 1:
        return None
    others = [each for each in users[0].args[:2] if each is not node]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or others[0].name in steps.constants:
        return None
    return others[0].name


__all__ = ["Kept", "Segment", "other_operand", "segments"]
