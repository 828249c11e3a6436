"""Pruning at random: what any criterion that looks at the network has to beat.

Mittal et al., *Recovering from Random Pruning* (WACV 2018), found that after enough fine-tuning many criteria
don't. Every unit's score is uniform on [0, 1), drawn from the context's generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from compress.graph.groups import Dependencies
from compress.graph.trace import Network
from compress.prune.goal import Goal
from compress.prune.ranking import remove_lowest
from compress.types import Context, State


@dataclass(frozen=True, slots=True)
class RandomChoice:
    """Remove units at random until ``goal`` is met.

    ``amounts`` is one of :data:`compress.prune.shares.AMOUNTS`.
    """

    goal: Goal
    amounts: str = "uniform"
    label: ClassVar[str] = "prune at random"

    def __call__(self, state: State, context: Context) -> State:
        """The state with a smaller network and the plan that says which channels stay."""
        return remove_lowest(state, context, self.goal, drawn, self.amounts)


def drawn(model: nn.Module, network: Network, dependencies: Dependencies, context: Context) -> list[torch.Tensor]:
    """A random score for every unit, float64."""
    return [
        torch.rand(len(group.units), dtype=torch.float64, generator=context.generator) for group in dependencies.groups
    ]
