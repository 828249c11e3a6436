"""How fast a machine is at the moment: networks of fixed work that are timed beside others.

A virtual machine's neighbours, a laptop's battery, a board's temperature: the same code takes half as long again an
hour later. Networks that are timed in turns share that, so networks whose work never changes take it out: with ``r``
their time beside a group of networks and ``r0`` the median of those times over all groups, a time ``t`` of the group is

    t r0 / r

at the pace ``r0``. Within a group ``t / r`` is the median over rounds of the ratios of both in one round, as a machine
may be quick in one round and slow in the next. ``r`` is the geometric mean of three networks of the kinds that are
timed, with whole and with odd numbers of channels: what slows down tight loops by a fifth slows down most networks by a
tenth, so that a reference of a few tight loops would take out twice what there is. They are of the same kind of numbers
and run in the same runtime.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from compress.profiling.drawing import Drawing, Drawn
from compress.types import Precision

NAME = "pace"
"""Of the references' geometric mean among what is timed."""
MOVED = 0.1
"""By how much the slowest group may be slower than the quickest before it is said."""


def networks(precision: Precision) -> list[Drawn]:
    """The reference networks in one kind of numbers, 17.1 million multiply-accumulates together."""
    return [_residual(precision), _separable(precision), _plain(precision)]


def _residual(precision: Precision) -> Drawn:
    d = Drawing(f"{NAME}-residual", 3, 32, precision)
    x = d.conv(d.input, 16)
    for inner in (16, 13):
        x = d.add(d.conv(d.conv(x, inner), 16, activation=None), x)
    y = d.conv(d.conv(x, 27, 3, 2), 32, activation=None)
    x = d.add(y, d.conv(x, 32, 1, 2, activation=None))
    return d.done(d.linear(d.global_pool(x), 10))


def _separable(precision: Precision) -> Drawn:
    d = Drawing(f"{NAME}-separable", 3, 48, precision)
    x = d.conv(d.input, 16, 3, 2)
    for out, stride in ((16, 1), (24, 2), (22, 1)):
        inner = 4 * x.channels
        y = d.conv(d.conv(d.conv(x, inner, 1), inner, 3, stride, groups=inner), out, 1, activation=None)
        x = d.add(y, x, None) if (y.size, y.channels) == (x.size, x.channels) else y
    return d.done(d.linear(d.global_pool(d.conv(x, 96, 1)), 10))


def _plain(precision: Precision) -> Drawn:
    d = Drawing(f"{NAME}-plain", 1, 28, precision)
    x = d.conv(d.max_pool(d.conv(d.input, 10, 5)), 36)
    return d.done(d.linear(d.linear(d.flat(d.conv(d.max_pool(x), 24)), 64, "relu"), 10))


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


__all__ = ["MOVED", "NAME", "at_one_pace", "moved", "networks"]
