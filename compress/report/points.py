"""The points of the two plots, and the lines that join the undominated ones.

Both the page and ``front.svg`` draw these, so that they can't disagree on what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from compress.report import words
from compress.report.gains import LatencyKind
from compress.results import Accuracy, Candidate, Front

Metric = Literal["latency", "size"]


@dataclass(frozen=True)
class Point:
    """One candidate in a plot.

    Attributes:
        index: 0 is the baseline, then the candidates as in :func:`ordered`.
        id: the candidate's id.
        x: seconds or bytes.
        x_low, x_high: the range of a prediction; both ``x`` where ``x`` is no prediction.
        kind: whether ``x`` is measured or predicted; a file's size counts as measured.
        measured_x: a measured latency that stands beside the predicted ``x`` by which candidates are
            compared; None where there is none.
        accuracy: its value and interval are the point's height.
        baseline, on_front, best: which of these it is. ``on_front`` is about this plot's own ``x``.
    """

    index: int
    id: str
    x: float
    x_low: float
    x_high: float
    kind: LatencyKind
    measured_x: float | None
    accuracy: Accuracy
    baseline: bool
    on_front: bool
    best: bool


def ordered(front: Front) -> tuple[Candidate, ...]:
    """The baseline, then the candidates, fastest first: the order of every table."""
    candidates = sorted(front.candidates, key=lambda c: (front.latency_s(c), -c.value, c.best.bytes, c.id))
    return (front.baseline, *candidates)


def points(front: Front, metric: Metric) -> tuple[Point, ...]:
    """A point for the baseline and every candidate of which both coordinates are known."""
    best = front.best() if front.candidates else None
    found = []
    for index, candidate in enumerate(ordered(front)):
        accuracy = candidate.best.accuracy
        place = _latency(front, candidate) if metric == "latency" else _size(candidate)
        if accuracy is None or place is None:
            continue
        x, error, kind, measured = place
        found.append(
            Point(
                index=index,
                id=candidate.id,
                x=x,
                x_low=x * max(0.0, 1 - error),
                x_high=x * (1 + error),
                kind=kind,
                measured_x=measured,
                accuracy=accuracy,
                baseline=index == 0,
                on_front=False,
                best=best is not None and index > 0 and candidate.id == best.id,
            )
        )
    chosen = {c.id for c in front.on_front()} if metric == "latency" else _smallest_undominated(found)
    return tuple(replace(p, on_front=not p.baseline and p.id in chosen) for p in found)


def _latency(front: Front, candidate: Candidate) -> tuple[float, float, LatencyKind, float | None] | None:
    estimate, measurement = candidate.best.estimate, candidate.best.measurement
    if measurement is not None and (front.all_measured or estimate is None):
        return measurement.latency_s, 0.0, "measured", None
    if estimate is not None:
        return estimate.latency_s, estimate.error, "predicted", measurement.latency_s if measurement else None
    return None


def _size(candidate: Candidate) -> tuple[float, float, LatencyKind, float | None]:
    return float(candidate.best.bytes), 0.0, "measured", None


def _smallest_undominated(found: Sequence[Point]) -> set[str]:
    chosen: set[str] = set()
    highest = float("-inf")
    for point in sorted((p for p in found if not p.baseline), key=lambda p: (p.x, -p.accuracy.value, p.id)):
        if point.accuracy.value > highest:
            highest = point.accuracy.value
            chosen.add(point.id)
    return chosen


def front_line(found: Sequence[Point]) -> tuple[tuple[float, float], ...]:
    """Corners (x, accuracy) of the staircase through the undominated points, fastest or smallest first."""
    corners: list[tuple[float, float]] = []
    for point in sorted((p for p in found if p.on_front), key=lambda p: (p.x, p.accuracy.value)):
        if corners:
            corners.append((point.x, corners[-1][1]))
        corners.append((point.x, point.accuracy.value))
    return tuple(corners)


def unit(front: Front, metric: Metric) -> words.Unit:
    """The unit of a metric, the same in plots and tables."""
    if metric == "size":
        return words.byte_unit(c.best.bytes for c in ordered(front))
    latencies = []
    for candidate in ordered(front):
        estimate, measurement = candidate.best.estimate, candidate.best.measurement
        latencies += [estimate.latency_s if estimate else None, measurement.latency_s if measurement else None]
    return words.latency_unit(latencies)


def describe(point: Point, front: Front, metric: Metric) -> str:
    """A point in words, one fact a line, its name first."""
    by = unit(front, metric)
    name = point.id + (" (float baseline)" if point.baseline else "")
    lines = [f"{name}{' · best' if point.best else ''}{' · on the front' if point.on_front else ''}"]
    interval = f"95% interval {words.interval_text(point.accuracy)}"
    lines.append(f"{words.accuracy_text(point.accuracy)}, {interval}, by {words.runtime(point.accuracy.measured_on)}")
    if metric == "size":
        lines.append(f"{by.text(point.x)} file")
    elif point.kind == "measured":
        lines.append(f"{by.text(point.x)} measured")
    else:
        half = f"{100 * (point.x_high / point.x - 1):.0f}%" if point.x else "0%"
        lines.append(f"{by.text(point.x)} predicted, ± {half}")
    if point.measured_x is not None:
        lines.append(f"{by.text(point.measured_x)} measured")
    return "\n".join(lines)
