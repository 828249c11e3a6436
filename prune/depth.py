"""So many residual blocks fewer, then channels: how a search varies a network's depth beside its widths.

Blocks go in the order of the damage that the rest can't make up for (:mod:`compress.prune.block_worth`), for the share
that they have, in the mean, of what a device may spend its time on: multiply-accumulates, starting operators, and
moving tensors. So the order is the same on every device, and each number of blocks is rebuilt once for all sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from compress.errors import NoPrunableAxis
from compress.graph.blocks import Block
from compress.graph.surgery import remove_blocks
from compress.graph.traces import traced
from compress.prune.block_removal import BlockStudy, study
from compress.prune.block_worth import ordered
from compress.prune.blocks import shortened
from compress.prune.goal import Goal, Measure
from compress.prune.outlook import Outlook
from compress.prune.prunable import prunable
from compress.prune.reconstruct import looks, study_of
from compress.types import Context, State

SHARES = (0.08, 0.16, 0.22, 0.28, 0.34, 0.42)
"""Of the blocks that can go: the numbers that a search tries."""


@dataclass(frozen=True, slots=True)
class Depth:
    """Leave out ``blocks`` residual blocks, then remove channels until ``goal`` is met.

    The fractions in the goal are those of the whole network. ``iterations`` as in ``Reconstruct``.
    """

    goal: Goal
    blocks: int
    iterations: int = 60
    label: ClassVar[str] = "leave out blocks and channels"

    def __call__(self, state: State, context: Context) -> State:
        """The state with a smaller network; layers of removed blocks keep no channel in its plan."""
        found = study(state.model, self.goal.skip, context)
        gone = [block for block, _ in _order(found)[: self.blocks]]
        return shortened(state, found, gone, self.goal, self.iterations, context)

    def outlook(self, state: State, context: Context, measure: Measure) -> Iterator[Outlook]:
        """See :func:`compress.prune.outlook.outlook`; channels do the damage that they do in the whole network."""
        found = study(state.model, self.goal.skip, context)
        order = _order(found)[: self.blocks]
        model = remove_blocks(found.model, [block for block, _ in order])
        network = traced(model, (found.inputs[:2].cpu(),), context.shared)
        try:
            dependencies = prunable(model, network, self.goal.skip)
        except NoPrunableAxis:
            dependencies = replace(found.dependencies, groups=())  # that network alone
        damage = order[-1][1] if order else 0.0
        channels = study_of(state.model, self.goal, context)
        for look in looks(channels, network, dependencies, self.goal, context, measure):
            yield replace(look, depth=damage)


def depths(state: State, goal: Goal, context: Context) -> tuple[int, ...]:
    """The numbers of blocks that are worth trying; none where no block can go."""
    free = len(_order(study(state.model, goal.skip, context)))
    return tuple(sorted({max(1, round(share * free)) for share in SHARES})) if free else ()


def _order(found: BlockStudy) -> tuple[tuple[Block, float], ...]:
    """The order in which blocks go, each with the damage of all up to it."""
    return ordered(found.blocks, found.damage, found.follows, _saved(found))


def _saved(found: BlockStudy) -> dict[str, float]:
    """The share of all blocks' multiply-accumulates, layers and layers' outputs that each has, in the mean."""
    layers = {block.path: len(block.layers) for block in found.blocks}

    def share(of: Mapping[str, int], path: str) -> float:
        return of[path] / max(1, sum(of.values()))

    return {
        block.path: sum(share(each, block.path) for each in (found.macs, layers, found.elements)) / 3
        for block in found.blocks
    }


__all__ = ["Depth", "depths"]
