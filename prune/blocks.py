"""Whole residual blocks go first, channels make up the rest: for devices whose time goes into starting operators.

Blocks go in the order of the damage that the rest can't make up for (:mod:`compress.prune.block_worth`) by
multiply-accumulate saved, as long as the goal isn't overshot, or until a goal in latency or RAM is met. What is left is
rebuilt against the original network's tensors (:mod:`compress.prune.refit`), and pruned by
:class:`~compress.prune.reconstruct.Reconstruct` to the goal. Removing residual blocks by their effect is Veit et al.,
*Residual Networks Behave Like Ensembles of Relatively Shallow Networks*, NeurIPS 2016; the measure and the rebuilding
are our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from compress.graph.blocks import Block
from compress.graph.surgery import planned, remove_blocks
from compress.graph.traces import traced
from compress.prune.amounts import Limits
from compress.prune.block_removal import BlockStudy, counts, study, without
from compress.prune.block_worth import ordered
from compress.prune.counter import Cost, Counter
from compress.prune.goal import Goal
from compress.prune.reconstruct import Reconstruct
from compress.types import Context, Note, State


@dataclass(frozen=True, slots=True)
class Blocks:
    """Remove residual blocks, then channels, until ``goal`` is met; ``iterations`` as in ``Reconstruct``."""

    goal: Goal
    iterations: int = 60
    label: ClassVar[str] = "remove whole blocks"

    def __call__(self, state: State, context: Context) -> State:
        """The state with a smaller network; layers of removed blocks keep no channel in its plan."""
        found = study(state.model, self.goal.skip, context)
        counter = Counter.of(found.network, found.dependencies, context.target, self.goal)
        limits = Limits.of(self.goal, counter)
        if limits.met(counter, counter.all_units):
            return state
        if not found.blocks:
            why = "no module of the network computes x + branch(x), so channels alone are pruned"
            state = replace(state, notes=(*state.notes, Note("", "blocks", why)))
            return Reconstruct(self.goal, self.iterations)(state, context)
        return shortened(state, found, _chosen(found, counter, limits, context), self.goal, self.iterations, context)


def shortened(
    state: State, found: BlockStudy, gone: Sequence[Block], goal: Goal, iterations: int, context: Context
) -> State:
    """``state`` without the blocks ``gone`` and then without channels until ``goal`` is met.

    The fractions in ``goal`` are those of the network with all its blocks.
    """
    model = without(found, gone, 0 if goal.tuned_after else iterations, context)
    plan = planned(state.plan, found.dependencies, (), gone)
    notes = state.notes + tuple(Note(block.path, "block", "removed whole") for block in gone)
    state = replace(state, model=model, plan=plan, notes=notes)
    rest = _rest(found, gone, goal, context)
    if rest.macs in (None, 1.0) and rest.params in (None, 1.0) and rest.latency_s is None and rest.ram_bytes is None:
        return state
    return Reconstruct(rest, iterations)(state, context)


def _rest(found: BlockStudy, gone: Sequence[Block], goal: Goal, context: Context) -> Goal:
    """The goal in fractions of the network that has lost its blocks."""
    whole, now = counts(found, (), context), counts(found, gone, context)
    return replace(
        goal,
        macs=None if goal.macs is None else min(1.0, goal.macs * whole[0] / now[0]),
        params=None if goal.params is None else min(1.0, goal.params * whole[1] / now[1]),
    )


def _chosen(found: BlockStudy, counter: Counter, limits: Limits, context: Context) -> list[Block]:
    """The blocks to remove: the least damage for what they save first."""
    saved = {path: float(max(macs, 1)) for path, macs in found.macs.items()}
    total = counter.counts(counter.all_units)
    gone: list[Block] = []
    for block, _ in ordered(found.blocks, found.damage, found.follows, saved):
        after = total[0] - found.macs[block.path], total[1] - found.params[block.path]
        if limits.needs_device:
            trial = traced(remove_blocks(found.model, gone), (found.inputs[:2].cpu(),), context.shared)
            none = replace(counter.dependencies, groups=())
            seen = Counter.of(trial, none, context.target, counter.goal)
            if limits.holds(seen.cost(())):
                break
        elif _overshoots(limits, Cost(*total), Cost(*after)):
            continue
        gone, total = [*gone, block], after
    return gone


def _overshoots(limits: Limits, before: Cost, after: Cost) -> bool:
    """True if nothing is left to save, or if a limit that is met already would be undercut."""
    if limits.holds(before):
        return True
    tight = [(limits.macs, after.macs), (limits.params, after.params)]
    return all(limit is None or found < limit for limit, found in tight)
