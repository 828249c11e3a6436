"""How fast a machine is at the moment: a network of fixed work that is timed beside others.

A virtual machine's neighbours, a laptop's battery, a board's temperature: the same code takes half as long again an
hour later. Networks that are timed in turns share that, so a network whose work never changes takes it out: with ``r``
its time beside a group of networks and ``r0`` the median of those times over all groups, a time ``t`` of the group is

    t r0 / r

at the pace ``r0``. The reference is of the same kind of numbers, in the same runtime, and does what small networks do:
convolutions of 3x3 and 1x1, a depthwise one, an addition, a mean, a linear layer.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from compress.profiling.drawing import Drawing, Drawn
from compress.types import Precision

NAME = "pace"
"""Of the reference network among those that are timed."""
CHANNELS, SIZE = 32, 24
MOVED = 0.1
"""By how much the slowest group may be slower than the quickest before it is said."""


def network(precision: Precision) -> Drawn:
    """The reference network in one kind of numbers, 7.4 million multiply-accumulates."""
    d = Drawing(NAME, 3, SIZE, precision)
    x = d.conv(d.input, CHANNELS, 3)
    x = d.add(d.conv(d.conv(x, CHANNELS, 3, activation=None), CHANNELS, 1, activation=None), x)
    x = d.conv(d.conv(x, 2 * CHANNELS, 1, 2), 2 * CHANNELS, 3, groups=2 * CHANNELS)
    return d.done(d.linear(d.global_pool(d.conv(x, 2 * CHANNELS, 1)), 10))


def at_one_pace(groups: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Times of all groups as they would be at the median pace, by name; :data:`NAME`'s is that pace.

    Args:
        groups: seconds by name of what was timed in turns, :data:`NAME` among them in each.
    """
    if not groups:
        return {}
    median = statistics.median(group[NAME] for group in groups)
    found = {name: seconds * median / group[NAME] for group in groups for name, seconds in group.items()}
    return {**found, NAME: median}


def moved(groups: Sequence[Mapping[str, float]]) -> float:
    """How much slower the machine was in its slowest group than in its quickest, relative."""
    paces = [group[NAME] for group in groups]
    return max(paces) / min(paces) - 1 if paces else 0.0


__all__ = ["MOVED", "NAME", "at_one_pace", "moved", "network"]
