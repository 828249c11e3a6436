"""Pruning by magnitude, group by group: the baseline that every other criterion must beat.

A unit's score is the Euclidean norm of everything that makes and reads its channels, each slot divided
by its mean over the group's units so that wide layers don't drown narrow ones (the group criterion of
Fang et al., *DepGraph: Towards Any Structural Pruning*, CVPR 2023, section 3.3; for a plain chain it is
Li et al., *Pruning Filters for Efficient ConvNets*, ICLR 2017, with the 2-norm).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from compress.graph.groups import Dependencies, Group
from compress.graph.trace import Network
from compress.prune.goal import Goal
from compress.prune.ranking import remove_lowest
from compress.types import Context, State


@dataclass(frozen=True, slots=True)
class Norm:
    """Remove the units with the least magnitude until ``goal`` is met.

    ``amounts`` is one of :data:`compress.prune.shares.AMOUNTS`.
    """

    goal: Goal
    amounts: str = "uniform"
    label: ClassVar[str] = "prune by norm"

    def __call__(self, state: State, context: Context) -> State:
        """The state with a smaller network and the plan that says which channels stay."""
        return remove_lowest(state, context, self.goal, magnitudes, self.amounts)


def magnitudes(model: nn.Module, network: Network, dependencies: Dependencies, context: Context) -> list[torch.Tensor]:
    """The magnitudes of all groups."""
    return [magnitude(model, group) for group in dependencies.groups]


def magnitude(model: nn.Module, group: Group) -> torch.Tensor:
    """The magnitude of each unit of a group, shape (units,), float64."""
    total = torch.zeros(len(group.units), dtype=torch.float64)
    for slot in (*group.producers, *group.consumers):
        name, axis = slot
        rows = model.get_parameter(name).detach().double().movedim(axis, 0).flatten(1).square().sum(1).cpu()
        each = torch.stack([rows[list(unit.members[slot])].sum() for unit in group.units])
        total += each / each.mean().clamp_min(1e-30)
    return total.sqrt()
