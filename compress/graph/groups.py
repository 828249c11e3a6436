"""Dependency groups: what has to be removed together.

A *unit* is the smallest thing that can be removed: one class of tied labels, with every index of every
parameter and buffer that it holds. Units with the same parameters and axes form a *group*: the channels
of one convolution, those that a chain of residual additions shares, or the heads of an attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import fx

from compress.graph.blocks import Block, find_blocks
from compress.graph.labels import Fix, Indices
from compress.graph.layout import Layout, plain
from compress.graph.rules import apply
from compress.graph.sizes import Resize, Rewrite, resizes
from compress.graph.trace import Network, layer_name
from compress.graph.walk import Walk
from compress.types import Note

Slot = tuple[str, int]
"""A parameter's or buffer's qualified name, and one of its axes."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What goes together.

    Attributes:
        members: for each slot, the indices (ascending).
        averaged: for each traced node that takes statistics over these channels, the indices on its axis.
        label: what :attr:`Dependencies.channels` calls it.
    """

    members: Mapping[Slot, tuple[int, ...]]
    averaged: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    label: int = -1


@dataclass(frozen=True, slots=True)
class Group:
    """Units that share their slots, with equally many indices in each.

    Attributes:
        name: the layers that make its channels, joined by ``+``.
        units: in the order of the first producer's channels.
        producers: slots along which its channels are made (a convolution's output channels).
        consumers: slots along which they are read (the next convolution's input channels).
        resizes: integers among operators' arguments that follow its size.
        rewrites: integers in attributes of the user's modules that have to follow; found by trying.
    """

    name: str
    units: tuple[Unit, ...]
    producers: tuple[Slot, ...]
    consumers: tuple[Slot, ...]
    resizes: tuple[Resize, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every parameter and axis that a unit of the group touches."""
        return tuple(self.units[0].members)

    @property
    def renormalizes(self) -> bool:
        """True if removal changes statistics over channels (layer norm).

        The smaller network then equals the original with the readers of the removed channels zeroed only if
        those channels are left out of the mean and variance too.
        """
        return bool(self.units[0].averaged)


@dataclass(frozen=True)
class Dependencies:
    """The groups of a network, what has to stay and why, and the shape of every parameter.

    Attributes:
        groups: what can be removed.
        left_alone: the layers whose channels stay, with the operator and the reason.
        shapes: of every parameter and buffer.
        blocks: residual blocks that can be removed whole.
        axes: of each traced node that takes statistics over channels, the axis.
        channels: of each traced node, for each axis that could shrink, the label of the unit that each of its
            indices belongs to; None where several axes shrink together (heads).
        network: the trace that they are of.
    """

    groups: tuple[Group, ...]
    left_alone: tuple[Note, ...]
    shapes: Mapping[str, tuple[int, ...]]
    blocks: tuple[Block, ...] = ()
    axes: Mapping[str, int] = field(default_factory=dict)
    channels: Mapping[str, Mapping[int, Indices] | None] = field(default_factory=dict, compare=False, repr=False)
    network: Network | None = field(default=None, compare=False, repr=False)


PRODUCES = {"conv1d": 0, "conv2d": 0, "conv3d": 0, "linear": 0, "conv_transpose2d": 1}
CONSUMES = {"conv1d": 1, "conv2d": 1, "conv3d": 1, "linear": 1, "conv_transpose2d": 0}
"""Weighted operators: the weight's axis along which channels are made, and read."""


def find(network: Network) -> Dependencies:
    """The dependency groups of a traced network."""
    walk, live = Walk(), network.live()
    running = set(live)
    own: dict[Slot, Indices] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    by_storage: dict[tuple[int, tuple[int, ...]], Layout] = {}
    for node in network.graph.nodes:
        if node.op == "placeholder":
            name = network.parameter(node)
            if name is None:
                continue
            walk.constants.add(node)
            shapes[name] = tuple(node.meta["val"].shape)
            tensor = network.program.state_dict.get(name)
            key = (id(node), ()) if tensor is None else (tensor.data_ptr(), shapes[name])
            if key not in by_storage or shapes[name] == () or 0 in shapes[name]:
                by_storage[key] = plain([walk.labels.fresh(n) if n > 1 else None for n in shapes[name]])
            # One tensor under two names is one set of labels.
            walk.layouts[node] = by_storage[key]
            own |= {(name, factor.axes[0]): factor.labels for factor in by_storage[key]}
        elif node.op == "call_function" and node in running:
            walk.layouts[node] = apply(walk, node)
            if all(each in walk.constants for each in node.all_input_nodes):
                walk.constants.add(node)
    for node in network.outputs():
        for factor in walk.of(node):
            walk.labels.fix(factor.labels, Fix("output", "", "it is the network's output"))
    walk.resolve()
    return _collect(network, walk, own, shapes, live)


def _collect(
    network: Network,
    walk: Walk,
    own: Mapping[Slot, Indices],
    shapes: Mapping[str, tuple[int, ...]],
    live: Sequence[fx.Node],
) -> Dependencies:
    classes, fixed = walk.labels.classes()
    # Fixed kernels in buffers follow their channels, but make and read none.
    trained = set(network.program.graph_signature.inputs_to_parameters.values())
    weights = {slot: labels for slot, labels in own.items() if slot[0] in trained}
    making, reading = _slots(weights, walk.made), _slots(weights, walk.read)
    averaged: dict[int, dict[str, list[int]]] = {}
    for statistic in walk.statistics:
        for index, each in enumerate(classes[statistic.labels]):
            averaged.setdefault(int(each), {}).setdefault(statistic.node, []).append(index)
    members: dict[int, dict[Slot, list[int]]] = {}
    for slot, labels in own.items():
        for index, each in enumerate(classes[labels]):
            members.setdefault(int(each), {}).setdefault(slot, []).append(index)

    alike: dict[tuple[object, ...], list[int]] = {}
    notes: dict[tuple[str, str], Note] = {}
    for each, slots in members.items():
        producers = [slot for slot in slots if slot in making]
        if not producers:
            continue
        if each in fixed:
            _note(notes, producers, fixed[each])
            continue
        means = averaged.get(each, {})
        key = (*((slot, len(at)) for slot, at in slots.items()), *((node, len(at)) for node, at in means.items()))
        alike.setdefault(key, []).append(each)

    kept: list[tuple[list[int], tuple[Slot, ...], tuple[Slot, ...]]] = []
    for units in alike.values():
        made, read = (tuple(slot for slot in members[units[0]] if slot in role) for role in (making, reading))
        tied = max(len(at) for at in members[units[0]].values())
        if len(units) == 1 and tied > 1:
            _note(notes, made, Fix("", "", f"its {tied} channels all depend on one another"))
        elif read:
            kept.append((units, made, read))
    sizes = resizes(walk, live, classes, {each: i for i, (units, _, _) in enumerate(kept) for each in units})
    groups = [
        Group(
            "+".join(dict.fromkeys(layer_name(name) for name, _ in made)),
            tuple(
                Unit(
                    {slot: tuple(at) for slot, at in members[each].items()},
                    {node: tuple(at) for node, at in averaged.get(each, {}).items()},
                    each,
                )
                for each in units
            ),
            made,
            read,
            tuple(sorted(sizes.get(i, ()))),
        )
        for i, (units, made, read) in enumerate(kept)
    ]
    axes = {statistic.node: statistic.axis for statistic in walk.statistics}
    channels = {node.name: _channels(walk.of(node), classes) for node in live}
    blocks = find_blocks(network, live)
    return Dependencies(tuple(groups), tuple(notes.values()), shapes, blocks, axes, channels, network)


def _channels(layout: Layout, classes: Indices) -> Mapping[int, Indices] | None:
    if any(factor.joint for factor in layout):
        return None
    return {factor.axes[0]: classes[factor.labels] for factor in layout}


def _slots(own: Mapping[Slot, Indices], roles: Iterable[Indices]) -> set[Slot]:
    """The parameters' axes that labels in ``roles`` belong to."""
    slots = list(own)
    count = max((int(labels[-1]) + 1 for labels in own.values()), default=0)
    owner = np.full(count, -1)
    for i, labels in enumerate(own.values()):
        owner[labels] = i
    ids = np.unique(np.concatenate([np.zeros(0, np.int64), *(labels.ravel() for labels in roles)]))
    mine = {int(i) for i in np.unique(owner[ids[ids < count]]) if i >= 0}
    # One tensor under two names: both are slots of the same labels.
    starts = {(int(own[slots[i]].flat[0]), own[slots[i]].size) for i in mine}
    return {slot for slot, labels in own.items() if (int(labels.flat[0]), labels.size) in starts}


def _note(notes: dict[tuple[str, str], Note], producers: Sequence[Slot], why: Fix) -> None:
    what = f"{why.operator} in {why.path or 'the network'}"
    if why.operator in ("", "output"):
        what = "output channels"
    for name, _ in producers:
        notes.setdefault((name, why.reason), Note(layer_name(name), what, why.reason))


def removed_indices(units: Iterable[Unit]) -> dict[Slot, set[int]]:
    """For each slot, the indices that go when all of ``units`` go."""
    gone: dict[Slot, set[int]] = {}
    for unit in units:
        for slot, indices in unit.members.items():
            gone.setdefault(slot, set()).update(indices)
    return gone


__all__ = ["CONSUMES", "PRODUCES", "Dependencies", "Group", "Slot", "Unit", "find", "removed_indices"]
