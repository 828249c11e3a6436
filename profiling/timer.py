"""Latency of artifacts on this machine, side by side.

Every artifact is warmed up, then all are timed in turn, round after round, so that whatever else the
machine does falls on each of them alike. The median over all timed runs is quoted, with the 90th
percentile beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compress.results import Measurement

ROUNDS = 12
SLICE_S = 0.02
WARM_UP_S = 0.05
SETTLE_S = 0.004
NOISY = 1.5
"""A 90th percentile this many times the median says that the machine was busy."""


def interleaved(
    jobs: Mapping[str, Callable[[], Any]],
    device: str,
    conditions: Mapping[str, Any],
    rounds: int = ROUNDS,
    slice_s: float = SLICE_S,
) -> dict[str, Measurement]:
    """Time every job, in turns.

    Args:
        jobs: each computes one input when it is called.
        device: the machine, in words.
        conditions: what a reader needs to compare: threads, batch.
        rounds: turns each job gets.
        slice_s: seconds of a turn; at least three runs are timed in it.
    """
    counts = {name: _warmed(run, slice_s) for name, run in jobs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    names = list(jobs)
    for turn in range(rounds):
        # Rotate, so that no job always follows the same neighbour's cache and clock.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            run, times = jobs[name], seconds[name]
            settled = time.perf_counter() + SETTLE_S
            while time.perf_counter() < settled:
                run()  # until its own data is cached and the last job's threads have stopped spinning
            for _ in range(counts[name]):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
    return {name: _measurement(times, device, conditions) for name, times in seconds.items()}


def _warmed(run: Callable[[], Any], slice_s: float) -> int:
    """Run until warm; how many runs fit a slice."""
    start, n = time.perf_counter(), 0
    while n < 3 or time.perf_counter() - start < WARM_UP_S:
        run()
        n += 1
    each = (time.perf_counter() - start) / n
    return max(3, int(slice_s / max(each, 1e-7)))


def _measurement(times: list[float], device: str, conditions: Mapping[str, Any]) -> Measurement:
    median, p90 = (float(np.percentile(times, q)) for q in (50, 90))
    return Measurement(median, p90, len(times), device, {**conditions, "noisy": p90 > NOISY * median})
