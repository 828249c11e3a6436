"""The frame of every method that ranks units by a score and removes the lowest of each group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from compress.graph.groups import Dependencies, Unit
from compress.graph.surgery import planned, remove
from compress.graph.trace import Network
from compress.graph.traces import traced
from compress.prune.amounts import proportional, undershoot
from compress.prune.counter import Counter
from compress.prune.goal import Goal
from compress.prune.prunable import prunable
from compress.prune.recalibrate import as_in_training, recalibrate
from compress.prune.shares import AMOUNTS
from compress.types import Context, State

Scores = Sequence[torch.Tensor]
"""For each group, the score of each of its units, shape (units,): the lowest go first."""

Criterion = Callable[[nn.Module, Network, Dependencies, Context], Scores]


def remove_lowest(state: State, context: Context, goal: Goal, criterion: Criterion, amounts: str = "uniform") -> State:
    """``state`` without the units that score lowest in their groups.

    Batch norms are recalibrated on inputs as in training where ``goal`` says that these are data.

    Args:
        state: what to prune.
        context: of the run.
        goal: what to reach.
        criterion: scores the units.
        amounts: how much goes from which group, one of :data:`compress.prune.shares.AMOUNTS`.

    Raises:
        NoPrunableAxis: nothing can be pruned.
        BadInput: the goal is out of reach; the least reachable is named.
    """
    inputs = context.data.train.inputs(context.samples, context.generator)
    network = traced(state.model, (inputs[:2],), context.shared)
    dependencies = prunable(state.model, network, goal.skip)
    counter = Counter.of(network, dependencies, context.target, goal)
    weights = AMOUNTS[amounts](state.model, dependencies)
    kept = proportional(counter, goal, context.target.channel_multiple, weights)
    units = lowest(dependencies, criterion(state.model, network, dependencies, context), kept)
    model = remove(state.model, dependencies, units)
    if goal.sees_data and network.dynamic_batch:
        recalibrate(model, as_in_training(context.data, inputs, context.generator))
    plan = planned(state.plan, dependencies, units)
    notes = state.notes + dependencies.left_alone + network.notes
    notes += undershoot(counter, goal, kept, context.target.channel_multiple)
    return replace(state, model=model, plan=plan, notes=tuple(dict.fromkeys(notes)))


def lowest(dependencies: Dependencies, scores: Scores, kept: Sequence[int]) -> list[Unit]:
    """The units that score lowest, as many of each group as it doesn't keep."""
    gone: list[Unit] = []
    for group, each, stays in zip(dependencies.groups, scores, kept, strict=True):
        order = torch.argsort(each, stable=True).tolist()
        gone += [group.units[i] for i in order[: len(group.units) - stays]]
    return gone
