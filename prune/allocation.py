"""How many units each group keeps, from what each removal costs in error and saves of the limits.

Minimize ``sum_g E_g(k_g)`` subject to the limits of a goal. Every group's curve is walked along its lower
convex hull: the move with the least error per saving, over all groups and any number of units at once, is
taken until the limits are met (the greedy solution of a separable convex problem, exact but for the last
move). Savings are those of the network as it is then, as what a channel costs depends on its neighbours.
Afterwards what still fits is given back where it helps most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from compress.errors import BadInput
from compress.graph.groups import Group
from compress.prune.amounts import Limits, granularity, out_of_reach
from compress.prune.counter import Cost, Counter
from compress.prune.goal import Goal, Measure

LEVELS = 32
"""Counts at which a group's curve is looked at, at most."""


def allocate(counter: Counter, goal: Goal, multiple: int, curves: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Units that each group keeps.

    Args:
        counter: of the network.
        goal: what to reach.
        multiple: the channel multiple that the target's kernels like; counts are in its steps while a group
            has at least four of them.
        curves: for each group, the error when 0, 1, ... units are gone; never falling.

    Raises:
        BadInput: even the smallest network misses the goal; the least reachable is named.
    """
    groups, limits = counter.dependencies.groups, Limits.of(goal, counter)
    if limits.met(counter, counter.all_units):
        return counter.all_units
    levels = _levels(groups, multiple)
    if not limits.met(counter, [each[-1] for each in levels]):
        levels = _down_to_one(levels)
        if not limits.met(counter, [1] * len(groups)):
            raise BadInput(out_of_reach(counter, [1] * len(groups)))
    kept = list(counter.all_units)
    for kept, now in _walked(counter, limits, levels, curves):  # noqa: B007  # the last ones count
        if limits.holds(now):
            break
    else:
        raise BadInput(out_of_reach(counter, kept))
    return _filled(counter, limits, kept, levels, curves, limits.cost(counter, counter.all_units))


def path(
    counter: Counter, measure: Measure, multiple: int, curves: Sequence[np.ndarray]
) -> Iterator[tuple[tuple[int, ...], Cost]]:
    """What :func:`allocate` keeps under ever tighter limits on ``measure`` alone, before what fits is given back.

    From the whole network to the smallest, each with its costs; those that the target's models predict only where
    ``measure`` is one of them.
    """
    never_met = Limits(0.0 if measure == "macs" else None, None, 0.0 if measure == "latency_s" else None, None)
    levels = _down_to_one(_levels(counter.dependencies.groups, multiple))
    for kept, cost in _walked(counter, never_met, levels, curves):
        yield tuple(kept), cost


def _walked(
    counter: Counter, limits: Limits, levels: Sequence[Sequence[int]], curves: Sequence[np.ndarray]
) -> Iterator[tuple[list[int], Cost]]:
    """The whole network, and what is left after every move, down to the least of all levels."""
    groups = counter.dependencies.groups
    kept = list(counter.all_units)
    full = limits.cost(counter, kept)
    touching = _touching(counter)
    savings: dict[int, dict[int, float]] = {}

    def saved(g: int, below: Sequence[int], now: Cost) -> dict[int, float]:
        """What each lower count of a group saves."""

        def at(count: int) -> float:
            return _saving(limits, full, now, limits.cost(counter, [*kept[:g], count, *kept[g + 1 :]]))

        if limits.latency_s is not None and limits.ram_bytes is None:
            # Kernels fill up blocks of channels: some counts save nothing, the next one a block at once.
            return {count: at(count) for count in below}
        one = at(below[0]) / (kept[g] - below[0])
        return {count: one * (kept[g] - count) for count in below}

    while True:
        now = limits.cost(counter, kept)
        yield list(kept), now
        if limits.ram_bytes is not None:
            savings.clear()  # a peak may move to where no group was changed; MACs, parameters and seconds add up
        best: tuple[float, int, int] | None = None
        for g, each in enumerate(levels):
            below = [count for count in each if count < kept[g]]
            if not below:
                continue
            if g not in savings:
                savings[g] = saved(g, below, now)
            units = len(groups[g].units)
            here = float(curves[g][units - kept[g]])
            for count in below:
                rise = float(curves[g][units - count]) - here
                rate = rise / max(savings[g][count], 1e-30)
                if best is None or rate < best[0]:
                    best = rate, g, count
        if best is None:
            return
        _, g, count = best
        kept[g] = count
        for other in touching[g]:
            savings.pop(other, None)


def _levels(groups: Sequence[Group], multiple: int) -> list[list[int]]:
    """The counts that each group may have below all its units, largest first."""
    found = []
    for group in groups:
        units, step = len(group.units), granularity(group, multiple)
        step = max(step, -(-units // LEVELS) if step == 1 else step)
        found.append(list(range((units - 1) // step * step, 0, -step)) or [1])
    return found


def _down_to_one(levels: Sequence[list[int]]) -> list[list[int]]:
    """The same, each with one unit as its last."""
    return [[*each, 1] if each[-1] > 1 else each for each in levels]


def _saving(limits: Limits, full: Cost, before: Cost, after: Cost) -> float:
    """How far a move leads towards the limits that aren't met, each as a share of the whole."""
    saved = 0.0
    for name in ("macs", "params", "latency_s", "ram_bytes"):
        limit, whole = getattr(limits, name), getattr(full, name)
        if limit is not None and getattr(before, name) > limit:
            saved += (getattr(before, name) - getattr(after, name)) / whole
    return saved


def _touching(counter: Counter) -> list[set[int]]:
    """For each group, the groups that share a parameter with it, itself among them."""
    names = [{name for name, _ in group.slots} for group in counter.dependencies.groups]
    return [{j for j, other in enumerate(names) if own & other} for own in names]


def _filled(
    counter: Counter,
    limits: Limits,
    kept: list[int],
    levels: Sequence[Sequence[int]],
    curves: Sequence[np.ndarray],
    full: Cost,
) -> tuple[int, ...]:
    """``kept`` with units given back, each time those that lower the error most for what they cost."""
    while True:
        now = limits.cost(counter, kept)
        best: tuple[float, int, int] | None = None
        for g, each in enumerate(levels):
            units = counter.all_units[g]
            wider = min((count for count in (*each, units) if count > kept[g]), default=None)
            if wider is None:
                continue
            trial = [*kept[:g], wider, *kept[g + 1 :]]
            cost = limits.cost(counter, trial)
            if not limits.holds(cost):
                continue
            gain = float(curves[g][units - kept[g]] - curves[g][units - wider])
            spent = max((cost.macs - now.macs) / full.macs + (cost.params - now.params) / full.params, 1e-12)
            if best is None or gain / spent > best[0]:
                best = gain / spent, g, wider
        if best is None:
            return tuple(kept)
        kept[best[1]] = best[2]
