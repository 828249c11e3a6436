"""How much goes from where: counts of units with which a network meets a goal.

:func:`uniform` takes the same share from every group, :func:`proportional` a share of its own from each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compress.errors import BadInput
from compress.graph.groups import Group
from compress.prune.counter import Cost, Counter
from compress.prune.goal import Goal
from compress.types import Note

NAMES = ("MACs", "parameters")


@dataclass(frozen=True)
class Limits:
    """A goal as absolute numbers for one network."""

    macs: float | None
    params: float | None
    latency_s: float | None
    ram_bytes: int | None

    @classmethod
    def of(cls, goal: Goal, counter: Counter) -> Limits:
        """The limits that ``goal`` sets to the network that ``counter`` counts."""
        macs, params = counter.counts(counter.all_units)
        return cls(
            None if goal.macs is None else goal.macs * macs * (1 + 1e-9),
            None if goal.params is None else goal.params * params * (1 + 1e-9),
            goal.latency_s,
            goal.ram_bytes,
        )

    @property
    def needs_device(self) -> bool:
        """True if the target's models are asked."""
        return self.latency_s is not None or self.ram_bytes is not None

    def met(self, counter: Counter, kept: Sequence[int]) -> bool:
        """True if the network with ``kept`` units a group stays within the limits."""
        return self.holds(self.cost(counter, kept))

    def cost(self, counter: Counter, kept: Sequence[int]) -> Cost:
        """What the limits are about; the target's models are asked only where they have to be."""
        if self.needs_device:
            return counter.cost(kept)
        return Cost(*counter.counts(kept))

    def holds(self, cost: Cost) -> bool:
        """True if ``cost`` stays within the limits."""
        pairs = (
            (cost.macs, self.macs),
            (cost.params, self.params),
            (cost.latency_s, self.latency_s),
            (cost.ram_bytes, self.ram_bytes),
        )
        return all(limit is None or (found is not None and found <= limit) for found, limit in pairs)


def granularity(group: Group, multiple: int) -> int:
    """The step in which a group's channels are counted: the target's multiple, halved until the group
    has at least four steps."""
    while multiple > 1 and len(group.units) < 4 * multiple:
        multiple //= 2
    return multiple


def uniform(counter: Counter, goal: Goal, multiple: int) -> tuple[int, ...]:
    """Units that each group keeps when all lose the same share, for what ``goal`` asks.

    Raises:
        BadInput: even the smallest network is larger; the least reachable is named.
    """
    return proportional(counter, goal, multiple, [1.0] * len(counter.dependencies.groups))


def proportional(counter: Counter, goal: Goal, multiple: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Units that each group keeps when group i keeps the share ``min(1, s * weights[i])``, ``s`` as large as
    ``goal`` allows.

    No group falls below ``multiple`` channels while the others can give enough: kernels made for that many
    are slower with fewer (ONNX Runtime's int8 convolution takes 31 microseconds for 12 channels where it
    takes 19 for 16). Above it, counts are in steps of :func:`granularity`. What rounding leaves over is given
    back a step at a time to the group that is furthest below its share.

    Args:
        counter: of the network.
        goal: what to reach.
        multiple: the channel multiple that the target's kernels like, 1 or more.
        weights: above 0, one a group.

    Raises:
        BadInput: even the smallest network is larger; the least reachable is named.
    """
    groups, limits = counter.dependencies.groups, Limits.of(goal, counter)
    steps = [granularity(group, multiple) for group in groups]
    floors = [max(multiple, 1)] * len(groups)

    def at(share: float) -> list[int]:
        return [
            min(len(group.units), max(floor, math.floor(min(1.0, share * weight) * len(group.units) / step) * step))
            for group, step, floor, weight in zip(groups, steps, floors, weights, strict=True)
        ]

    if limits.met(counter, counter.all_units):
        return counter.all_units
    for smaller in (list(steps), [1] * len(groups)):
        if not limits.met(counter, at(0.0)):
            floors, steps = smaller, [min(step, floor) for step, floor in zip(steps, smaller, strict=True)]
    if not limits.met(counter, at(0.0)):
        raise BadInput(out_of_reach(counter, at(0.0)))
    low, high = 0.0, 1.0 / min(weights)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if limits.met(counter, at(middle)) else (low, middle)
    return given_back(counter, limits, at(low), steps, [min(1.0, high * weight) for weight in weights])


def given_back(
    counter: Counter, limits: Limits, kept: Sequence[int], steps: Sequence[int], shares: Sequence[float]
) -> tuple[int, ...]:
    """``kept`` with what still fits added, a step at a time, first to the group furthest below its share."""
    now, sizes = list(kept), counter.all_units
    while True:
        order = sorted(range(len(now)), key=lambda i: (now[i] / sizes[i] - shares[i], i))
        for i in order:
            wider = [*now[:i], min(sizes[i], now[i] + steps[i]), *now[i + 1 :]]
            if wider[i] > now[i] and limits.met(counter, wider):
                now = wider
                break
        else:
            return tuple(now)


def undershoot(counter: Counter, goal: Goal, kept: Sequence[int], multiple: int) -> tuple[Note, ...]:
    """Why a network keeps less than 98% of the fractions that were asked for; nothing where it keeps more."""
    full, now = counter.counts(counter.all_units), counter.counts(kept)
    notes = []
    for what, asked, share in (
        ("MACs", goal.macs, now[0] / full[0]),
        ("parameters", goal.params, now[1] / full[1]),
    ):
        if asked is None or share >= 0.98 * min(1.0, asked):
            continue
        if sum(limit is not None for limit in (goal.macs, goal.params, goal.latency_s, goal.ram_bytes)) > 1:
            why = "another limit is reached first"
        elif multiple > 1:
            why = f"the target's kernels like channels in multiples of {multiple}, and one step more would exceed it"
        else:
            why = "one unit more would exceed it"
        notes.append(Note("", what, f"{share:.3f} are kept where {asked:g} was asked for: {why}"))
    return tuple(notes)


def out_of_reach(counter: Counter, smallest: Sequence[int]) -> str:
    """The sentence for a goal that even ``smallest`` misses."""
    full, least = counter.cost(counter.all_units), counter.cost(smallest)
    shares = (least.macs / full.macs, least.params / full.params)
    parts = [f"{share:.{3 if share >= 0.01 else 5}f} of the {what}" for share, what in zip(shares, NAMES, strict=True)]
    if least.latency_s is not None:
        parts.append(f"a predicted latency of {1e3 * least.latency_s:.3g} ms")
    if least.ram_bytes is not None:
        parts.append(f"{least.ram_bytes} bytes of RAM")
    listed = f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"the network can't be pruned so far: the least reachable is {listed}; ask for more than that"
