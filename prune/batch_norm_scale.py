"""Pruning by the scale of batch norm: network slimming's criterion.

Liu et al., *Learning Efficient Convolutional Networks through Network Slimming*, ICCV 2017: behind
``z = gamma * (x - mu) / sqrt(var + eps) + beta`` a channel whose ``|gamma|`` is small varies little and goes
first. Where several batch norms scale the same unit (the branches that add to one residual stream, the two
around a depthwise convolution) its score is ``sqrt(sum of gamma^2)``: for independent branches, the
standard deviation of what they add up to.

Departures from the paper: no sparsity is trained into gamma beforehand (its term ``lambda * sum |gamma|``),
and units are compared inside their group only, not over the whole network. Units that no batch norm scales
have no such score: a group without batch norm, or with one that has no gamma, is ranked by
:func:`compress.prune.norm.magnitude`, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from compress.graph.groups import Dependencies, Group
from compress.graph.trace import Network, kind
from compress.prune.goal import Goal
from compress.prune.norm import magnitude
from compress.prune.ranking import remove_lowest
from compress.types import Context, Note, State


@dataclass(frozen=True, slots=True)
class BatchNormScale:
    """Remove the units whose batch norms scale them least until ``goal`` is met.

    ``amounts`` is one of :data:`compress.prune.shares.AMOUNTS`.
    """

    goal: Goal
    amounts: str = "uniform"
    label: ClassVar[str] = "prune by batch-norm scale"

    def __call__(self, state: State, context: Context) -> State:
        """The state with a smaller network and the plan that says which channels stay."""
        notes: list[Note] = []

        def scores(
            model: nn.Module, network: Network, dependencies: Dependencies, context: Context
        ) -> list[torch.Tensor]:
            scales = gammas(model, network)
            found = [scale(scales, group) for group in dependencies.groups]
            for group, each in zip(dependencies.groups, found, strict=True):
                if each is None:
                    notes.append(Note(group.name, "batch-norm scale", "no batch norm scales it: ranked by magnitude"))
            return [
                magnitude(model, group) if each is None else each
                for group, each in zip(dependencies.groups, found, strict=True)
            ]

        smaller = remove_lowest(state, context, self.goal, scores, self.amounts)
        return replace(smaller, notes=tuple(dict.fromkeys((*smaller.notes, *notes))))


def gammas(model: nn.Module, network: Network) -> Mapping[str, torch.Tensor]:
    """The scale of every batch norm in ``network`` by its parameter's name, shape (channels,), float64."""
    names = [network.parameter(node.args[1]) for node in network.nodes if kind(node) == "batch_norm"]
    return {name: model.get_parameter(name).detach().double().cpu() for name in names if name is not None}


def scale(gammas: Mapping[str, torch.Tensor], group: Group) -> torch.Tensor | None:
    """The root of the sum of squared scales of each unit, shape (units,), float64; None without batch norm."""
    slots = [slot for slot in group.slots if slot[0] in gammas]
    if not slots:
        return None
    total = torch.zeros(len(group.units), dtype=torch.float64)
    for slot in slots:
        squares = gammas[slot[0]].square()
        total += torch.stack([squares[list(unit.members[slot])].sum() for unit in group.units])
    return total.sqrt()
