"""Which dependency groups of a network may be pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from compress.errors import NoPrunableAxis
from compress.graph.groups import Dependencies, Group, find
from compress.graph.hardware import in_hardware
from compress.graph.surgery import proven
from compress.graph.trace import Network
from compress.types import Note

HARDWARE = "the layer's weights are in hardware"


def _layers(group: Group) -> set[str]:
    return set(group.name.split("+"))


def prunable(model: nn.Module, network: Network, skip: Sequence[str] = ()) -> Dependencies:
    """The dependencies of ``model``, which ``network`` traces, that can go.

    Groups that touch a layer in ``skip`` or one whose weights are in hardware, or that the network's own code holds on
    to, are left out and noted.

    Raises:
        NoPrunableAxis: nothing is left.
    """
    dependencies = proven(model, find(network), network.example_inputs[0])
    hardware = set(in_hardware(model))
    stays = [group for group in dependencies.groups if (hardware | set(skip)) & _layers(group)]
    groups = tuple(group for group in dependencies.groups if group not in stays)
    notes = dependencies.left_alone + tuple(
        Note(group.name, "channels", HARDWARE if hardware & _layers(group) else "you asked to skip them")
        for group in stays
    )
    if not groups:
        raise NoPrunableAxis([f"{note.where}: {note.why}" for note in notes])
    return replace(dependencies, groups=groups, left_alone=notes)
