"""Latency of artifacts on this machine, side by side.

Every artifact is warmed up until its times are steady, then all are timed in turn, round after round, so that whatever
else the machine does falls on each of them alike. The median over the timed runs is quoted, with the 90th percentile
and a 95% interval of the median, which comes from the medians of the turns.

What disturbs is noticed and said (:mod:`compress.profiling.disturbance`): a turn in which the system took the processor
from us doesn't count where at least half of them were left alone; a clock that falls while the rounds go on, and the
share of the cores that other programs used, stand among the conditions. The calling thread stays on one core meanwhile,
where the system allows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import geometric_mean
from typing import Any

import numpy as np

from compress.profiling.disturbance import Watch, pinned
from compress.results import Measurement

ROUNDS = 12
SLICE_S = 0.02
WARM_UP_S, LONGEST_WARM_UP_S = 0.05, 0.5
STEADY, STEADY_BATCHES = 0.03, 4
"""Warm is a job whose last batches' medians lie this close together, relative to the smallest."""
SETTLE_S = 0.016
NOISY = 1.5
"""A 90th percentile this many times the median says that the machine was busy."""
OUTSIDE = 0.05
"""The chance that a median's interval doesn't hold it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The times of one turn in seconds, and whether the system interrupted it."""

    seconds: tuple[float, ...]
    disturbed: bool


@dataclass(frozen=True, slots=True)
class Timed:
    """What jobs took, in turns.

    Attributes:
        turns: of each job, one a round; no job is without.
        conditions: of each job, what was noticed meanwhile.
    """

    turns: Mapping[str, Sequence[Turn]]
    conditions: Mapping[str, Mapping[str, Any]]

    def measurements(self, device: str, conditions: Mapping[str, Any]) -> dict[str, Measurement]:
        """Latencies; arguments as those of :func:`interleaved`."""
        return {
            name: _measurement(made, device, {**conditions, **self.conditions[name]})
            for name, made in self.turns.items()
        }

    def pace(self, references: Sequence[str]) -> float:
        """Seconds of some jobs: the median over rounds of the geometric mean of their medians."""
        return float(np.median([turn.seconds[0] for turn in counted(self._together(references))[0]]))

    def ratios(self, references: Sequence[str]) -> dict[str, float]:
        """How many times as long as the references every other job took: the median over rounds of its median in a
        round over the geometric mean of theirs in the same one.

        A machine that is slow in some rounds is slow for all, so this is steadier than the ratio of two medians, which
        may be of different rounds. Rounds in which one was disturbed don't count where at least half are left.
        """
        beside = self._together(references)
        return {name: _ratio(made, beside) for name, made in self.turns.items() if name not in references}

    def _together(self, references: Sequence[str]) -> list[Turn]:
        """The geometric mean of some jobs' medians in each round, disturbed where one of them was."""
        return [
            Turn(
                (geometric_mean([float(np.median(turn.seconds)) for turn in turns]),),
                any(turn.disturbed for turn in turns),
            )
            for turns in zip(*(self.turns[name] for name in references), strict=True)
        ]


def _ratio(made: Sequence[Turn], beside: Sequence[Turn]) -> float:
    both = [
        Turn((float(np.median(mine.seconds)) / theirs.seconds[0],), mine.disturbed or theirs.disturbed)
        for mine, theirs in zip(made, beside, strict=True)
    ]
    return float(np.median([turn.seconds[0] for turn in counted(both)[0]]))


def interleaved(
    jobs: Mapping[str, Callable[[], Any]],
    device: str,
    conditions: Mapping[str, Any],
    rounds: int | None = None,
    slice_s: float | None = None,
    warm_up_s: float | None = None,
) -> dict[str, Measurement]:
    """Time every job, in turns.

    Args:
        jobs, rounds, slice_s, warm_up_s: as those of :func:`in_turns`.
        device: the machine, in words.
        conditions: what a reader needs to compare: threads, batch.
    """
    return in_turns(jobs, rounds, slice_s, warm_up_s).measurements(device, conditions)


def in_turns(
    jobs: Mapping[str, Callable[[], Any]],
    rounds: int | None = None,
    slice_s: float | None = None,
    warm_up_s: float | None = None,
) -> Timed:
    """The turns of every job.

    Args:
        jobs: each computes one input when it is called.
        rounds: turns each job gets; :data:`ROUNDS` by default.
        slice_s: seconds of a turn, :data:`SLICE_S` by default; at least three runs are timed in it.
        warm_up_s: seconds that each job runs before its times are looked at, :data:`WARM_UP_S` by default.
    """
    rounds = ROUNDS if rounds is None else rounds
    slice_s = SLICE_S if slice_s is None else slice_s
    warm_up_s = WARM_UP_S if warm_up_s is None else warm_up_s
    warmed = {name: _warmed(run, slice_s, warm_up_s) for name, run in jobs.items()}
    turns: dict[str, list[Turn]] = {name: [] for name in jobs}
    names = list(jobs)
    with pinned() as core, Watch() as watch:
        for number in range(rounds):
            # Rotate, so that no job always follows the same neighbour's cache and clock.
            for name in names[number % len(names) :] + names[: number % len(names)]:
                run = jobs[name]
                settled = time.perf_counter() + SETTLE_S
                while time.perf_counter() < settled:
                    run()  # until its own data is cached and the last job's threads have stopped spinning (session.py)
                turns[name].append(_turn(run, warmed[name][0], watch))
            watch.clock()
    found = watch.conditions() | ({} if core is None else {"pinned_to_core": core})
    steady = {name: {} if warm else {"warm_up": "not steady"} for name, (_, warm) in warmed.items()}
    return Timed(turns, {name: {**found, **steady[name]} for name in jobs})


def _turn(run: Callable[[], Any], count: int, watch: Watch) -> Turn:
    before, seconds = watch.interruptions(), []
    for _ in range(count):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return Turn(tuple(seconds), watch.interruptions() > before)


def _warmed(run: Callable[[], Any], slice_s: float, warm_up_s: float) -> tuple[int, bool]:
    """Run until the times are steady; how many runs fit a slice, and whether they became steady."""
    start, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - start < warm_up_s:
        run()
        count += 1
    each = (time.perf_counter() - start) / count
    size = max(3, int(warm_up_s / STEADY_BATCHES / max(each, 1e-7)))
    medians: list[float] = []
    while time.perf_counter() - start < LONGEST_WARM_UP_S + warm_up_s or len(medians) < STEADY_BATCHES:
        batch = []
        for _ in range(size):
            begun = time.perf_counter()
            run()
            batch.append(time.perf_counter() - begun)
        medians.append(float(np.median(batch)))
        if steady(medians):
            break
    return max(3, int(slice_s / max(medians[-1], 1e-7))), steady(medians)


def steady(medians: list[float]) -> bool:
    """Whether the last batches' medians lie close together."""
    last = medians[-STEADY_BATCHES:]
    return len(last) == STEADY_BATCHES and max(last) <= (1 + STEADY) * min(last)


def counted(turns: Sequence[Turn]) -> tuple[Sequence[Turn], int]:
    """The turns that count, and how many were disturbed: those left alone, where they are at least half of all."""
    alone = [turn for turn in turns if not turn.disturbed]
    return (alone if 2 * len(alone) >= len(turns) else turns), len(turns) - len(alone)


def median_interval(medians: list[float]) -> tuple[float, float]:
    """A 95% interval of the median by order statistics: the k-th smallest and k-th largest of n medians of turns.

    k is the largest with ``sum over i < k of binomial(n, i) / 2^n <= 2.5%``; below 6 turns the interval is all of them.
    """
    ordered, n = sorted(medians), len(medians)
    k, tail = 0, 1 / 2**n
    while tail <= OUTSIDE / 2:
        k += 1
        tail += comb(n, k) / 2**n
    low = max(k - 1, 0)
    return ordered[low], ordered[n - 1 - low]


def _measurement(turns: Sequence[Turn], device: str, conditions: Mapping[str, Any]) -> Measurement:
    counting, disturbed = counted(turns)
    times = [second for turn in counting for second in turn.seconds]
    median, p90 = (float(np.percentile(times, q)) for q in (50, 90))
    low, high = median_interval([float(np.median(turn.seconds)) for turn in counting])
    said: dict[str, Any] = {**conditions, "noisy": p90 > NOISY * median}
    if disturbed:
        # Without a number: a report lists every combination of conditions once.
        said["disturbed_turns"] = "left out" if len(counting) < len(turns) else "more than half, so all counted"
    return Measurement(median, p90, len(times), device, said, min(low, median), max(high, median))


__all__ = ["Timed", "Turn", "counted", "in_turns", "interleaved", "median_interval", "steady"]
