"""What a pruning method is going to keep and to damage, from much to little, before anything is made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from compress.errors import BadInput
from compress.graph.operators import Operator
from compress.graph.traces import traced
from compress.prune.amounts import uniform
from compress.prune.counter import Counter
from compress.prune.goal import Goal, Measure
from compress.prune.prunable import prunable
from compress.types import Context, State

STEPS = 48
"""Networks in the outlook of a method that has none of its own."""


@dataclass(frozen=True)
class Outlook:
    """A smaller network.

    Attributes:
        kept: units of each group.
        macs, params: multiply-accumulates and parameters.
        damage: how much worse it is expected to be, 0 for the whole network; on a scale of the method's own.
        operators, inputs: what the target's models are asked about.
        depth: damage by residual blocks that were left out, on a scale of its own.
    """

    kept: tuple[int, ...]
    macs: float
    params: int
    damage: float
    operators: tuple[Operator, ...]
    inputs: Mapping[str, int]
    depth: float = 0.0


@runtime_checkable
class Foresees(Protocol):
    """A stage that knows what it is going to keep."""

    def outlook(self, state: State, context: Context, measure: Measure) -> Iterator[Outlook]:
        """From the whole network to the smallest."""


def outlook(stage: object, state: State, context: Context, measure: Measure) -> Iterator[Outlook]:
    """What ``stage`` keeps of ``state``'s network under ever tighter goals, from the whole network to the smallest.

    A method that doesn't know is taken to remove the same share everywhere, and to damage by ``-log`` of the
    share of multiply-accumulates that it keeps.

    Args:
        stage: of :mod:`compress.prune.roster`.
        state: of the network, unpruned.
        context: of the run.
        measure: what the goals are about; where a stage doesn't know, always multiply-accumulates.
    """
    if isinstance(stage, Foresees):
        yield from stage.outlook(state, context, measure)
        return
    example = context.data.train.inputs(2, torch.Generator().manual_seed(0))
    network = traced(state.model, (example,), context.shared)
    dependencies = prunable(state.model, network)
    counter = Counter.of(network, dependencies)
    full, least = counter.counts(counter.all_units)[0], counter.least()[0]
    seen: set[tuple[int, ...]] = set()
    for step in range(STEPS):
        try:
            kept = uniform(
                counter, Goal(macs=max(least, 1e-4) ** (step / (STEPS - 1))), context.target.channel_multiple
            )
        except BadInput:
            return  # rounding: the least reachable lies just above
        if kept in seen:
            continue
        seen.add(kept)
        macs, params = counter.counts(kept)
        damage = -math.log(max(macs, 1.0) / full)
        yield Outlook(kept, macs, params, damage, counter.shrunk(kept), dict(counter.inputs))


__all__ = ["Foresees", "Outlook", "outlook"]
