"""Which dependency groups of a network may be pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from compress.errors import NoPrunableAxis
from compress.graph.groups import Dependencies, find
from compress.graph.surgery import proven
from compress.graph.trace import Network
from compress.types import Note


def prunable(model: nn.Module, network: Network, skip: Sequence[str] = ()) -> Dependencies:
    """The dependencies of ``model``, which ``network`` traces, that can go.

    Groups that touch a layer in ``skip`` or a weight in hardware, or that the network's own code holds on to, are left
    out and noted.

    Raises:
        NoPrunableAxis: nothing is left.
    """
    dependencies = proven(model, find(network), network.example_inputs[0])
    wanted = set(skip)
    stays = []
    for group in dependencies.groups:
        if network.hardware & {name for name, _ in group.slots}:
            stays.append((group, "they are made in hardware"))
        elif wanted & set(group.name.split("+")):
            stays.append((group, "you asked to skip them"))
    groups = tuple(group for group in dependencies.groups if all(group is not each for each, _ in stays))
    notes = dependencies.left_alone + tuple(Note(group.name, "channels", why) for group, why in stays)
    if not groups:
        raise NoPrunableAxis([f"{note.where}: {note.why}" for note in notes])
    return replace(dependencies, groups=groups, left_alone=notes)
