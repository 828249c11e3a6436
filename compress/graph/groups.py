"""Dependency groups: what has to be removed together.

A *unit* is the smallest thing that can be removed: one class of tied labels, with every index of every
parameter and buffer that it holds. Units with the same parameters and axes form a *group*: the channels
of one convolution, or those that a chain of residual additions shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import fx

from compress.graph.labels import Fix
from compress.graph.rules import RULES, Axes, Walk, spread
from compress.graph.trace import Network, kind, layer_name, shape
from compress.types import Note

Slot = tuple[str, int]
"""A parameter's or buffer's qualified name, and one of its axes."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What goes together: for each slot, the indices (ascending)."""

    members: Mapping[Slot, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Group:
    """Units that share their slots.

    Attributes:
        name: the layers that make its channels, joined by ``+``.
        units: in the order of the first producer's channels.
        producers: slots along which its channels are made (a convolution's output channels).
        consumers: slots along which they are read (the next convolution's input channels).
    """

    name: str
    units: tuple[Unit, ...]
    producers: tuple[Slot, ...]
    consumers: tuple[Slot, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every parameter and axis that a unit of the group touches."""
        return tuple(self.units[0].members)


@dataclass(frozen=True)
class Dependencies:
    """The groups of a network, what has to stay and why, and the shape of every parameter."""

    groups: tuple[Group, ...]
    left_alone: tuple[Note, ...]
    shapes: Mapping[str, tuple[int, ...]]


PRODUCES = {"conv1d": 0, "conv2d": 0, "conv3d": 0, "linear": 0, "conv_transpose2d": 1}
CONSUMES = {"conv1d": 1, "conv2d": 1, "conv3d": 1, "linear": 1, "conv_transpose2d": 0}
"""Weighted operators: the weight's axis along which channels are made, and read."""


def find(network: Network) -> Dependencies:
    """The dependency groups of a traced network."""
    walk = Walk()
    own: dict[Slot, np.ndarray] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    by_name: dict[str, Axes] = {}
    for node in network.graph.nodes:
        if node.op == "placeholder":
            parameter = network.parameter(node)
            if parameter is None:
                walk.axes[node] = (None,) * len(shape(node))
                continue
            if parameter not in by_name:
                shapes[parameter] = tuple(node.meta["val"].shape)
                axes = tuple(walk.labels.fresh(n) for n in shapes[parameter])
                by_name[parameter] = axes
                own |= {(parameter, axis): labels for axis, labels in enumerate(axes)}
            walk.axes[node] = by_name[parameter]
        elif node.op == "call_function":
            walk.axes[node] = _apply(walk, node)
    for node in network.outputs():
        for labels in walk.of(node):
            if labels is not None:
                walk.labels.fix(labels, Fix("output", "", "it is the network's output"))
    return _collect(network, walk, own, shapes)


def _apply(walk: Walk, node: fx.Node) -> Axes:
    rule = RULES.get(kind(node), spread)
    try:
        axes = rule(walk, node)
    except (IndexError, TypeError, ValueError, AssertionError):
        # An unusual form of a known operator: leave alone what it touches rather than guess.
        axes = spread(walk, node)
    return axes if len(axes) == len(shape(node)) else spread(walk, node)


def _collect(
    network: Network, walk: Walk, own: Mapping[Slot, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> Dependencies:
    classes, fixed = walk.labels.classes()
    members: dict[int, dict[Slot, list[int]]] = {}
    for slot, labels in own.items():
        for index, each in enumerate(classes[labels]):
            members.setdefault(int(each), {}).setdefault(slot, []).append(index)

    making, reading = _roles(network)
    groups: dict[tuple[Slot, ...], list[Unit]] = {}
    notes: dict[tuple[str, str], Note] = {}
    for each, slots in members.items():
        producers = [slot for slot in slots if slot in making]
        if not producers:
            continue
        if each in fixed:
            why = fixed[each]
            what = "output channels" if why.operator == "output" else f"{why.operator} in {why.path or 'the network'}"
            for name, _ in producers:
                notes.setdefault((name, why.reason), Note(layer_name(name), what, why.reason))
            continue
        unit = Unit({slot: tuple(indices) for slot, indices in slots.items()})
        groups.setdefault(tuple(slots), []).append(unit)

    result = []
    for key, units in groups.items():
        made = tuple(slot for slot in key if slot in making)
        read = tuple(slot for slot in key if slot in reading)
        if read:
            result.append(
                Group("+".join(dict.fromkeys(layer_name(name) for name, _ in made)), tuple(units), made, read)
            )
    return Dependencies(tuple(result), tuple(notes.values()), shapes)


def _roles(network: Network) -> tuple[set[Slot], set[Slot]]:
    making: set[Slot] = set()
    reading: set[Slot] = set()
    for node in network.nodes:
        if kind(node) in PRODUCES and len(node.args) > 1:
            weight = network.parameter(node.args[1])
            if weight is not None:
                making.add((weight, PRODUCES[kind(node)]))
                reading.add((weight, CONSUMES[kind(node)]))
    return making, reading


def removed_indices(units: Iterable[Unit]) -> dict[Slot, set[int]]:
    """For each slot, the indices that go when all of ``units`` go."""
    gone: dict[Slot, set[int]] = {}
    for unit in units:
        for slot, indices in unit.members.items():
            gone.setdefault(slot, set()).update(indices)
    return gone


__all__ = ["CONSUMES", "PRODUCES", "Dependencies", "Group", "Slot", "Unit", "find", "removed_indices"]
