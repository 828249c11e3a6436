"""The points of the plots, and the lines that join the undominated ones.

Both the page and ``front.svg`` draw these, so that they can't disagree on what is measured. A plot has any two of
:data:`METRICS`; accuracy, which is better the higher it is, is always the upward one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from compress.report import words
from compress.report.gains import LatencyKind
from compress.results import Accuracy, Candidate, Estimate, Front, Measurement

Metric = Literal["accuracy", "latency", "size", "ram", "macs", "energy"]
METRICS: tuple[Metric, ...] = ("accuracy", "latency", "size", "ram", "macs", "energy")
NAMES: Mapping[Metric, str] = {
    "accuracy": "Accuracy",
    "latency": "Latency",
    "size": "File size",
    "ram": "RAM",
    "macs": "MACs",
    "energy": "Energy",
}
ENERGY = "energy_j"
"""Under this name a measurement's conditions hold the joules of one input, where a device tells them."""
Bar = tuple[float, float, float, LatencyKind]
"""A figure: its value, the two ends of what it may be, and how it is known."""


@dataclass(frozen=True)
class Point:
    """One candidate in a plot.

    Attributes:
        index: 0 is the baseline, then the candidates as in :func:`ordered`.
        id: the candidate's id.
        x: in the metric's own unit: seconds, bytes, multiply-accumulates or joules.
        x_low, x_high: what ``x`` may be: a prediction's range, see :func:`interval`.
        kind: whether all that is drawn of it is measured (or counted), or something is predicted.
        measured_x: a measured latency that stands beside the predicted ``x`` by which candidates are
            compared; None where there is none.
        y, y_low, y_high: the same upwards; of an accuracy its 95% interval.
        accuracy: of the candidate; None where it isn't known and not drawn.
        baseline, on_front, best: which of these it is. ``on_front`` is about this plot's own axes.
    """

    index: int
    id: str
    x: float
    x_low: float
    x_high: float
    kind: LatencyKind
    measured_x: float | None
    y: float
    y_low: float
    y_high: float
    accuracy: Accuracy | None
    baseline: bool
    on_front: bool
    best: bool


def ordered(front: Front) -> tuple[Candidate, ...]:
    """The baseline, then the candidates, fastest first: the order of every table."""
    candidates = sorted(front.candidates, key=lambda c: (front.latency_s(c), -c.value, c.best.bytes, c.id))
    return (front.baseline, *candidates)


def points(front: Front, metric: Metric, up: Metric = "accuracy") -> tuple[Point, ...]:
    """A point for the baseline and every candidate of which both coordinates are known.

    Args:
        front: what was found.
        metric: along the plot.
        up: upwards.
    """
    best = front.best() if front.candidates else None
    found = []
    for index, candidate in enumerate(ordered(front)):
        across, upwards = figure(front, candidate, metric), figure(front, candidate, up)
        if across is None or upwards is None:
            continue
        measurement = candidate.best.measurement
        predicted = metric == "latency" and across[3] == "predicted"
        kinds = {across[3], upwards[3]}
        found.append(
            Point(
                index=index,
                id=candidate.id,
                x=across[0],
                x_low=across[1],
                x_high=across[2],
                kind="predicted" if "predicted" in kinds else "measured",
                measured_x=measurement.latency_s if predicted and measurement is not None else None,
                y=upwards[0],
                y_low=upwards[1],
                y_high=upwards[2],
                accuracy=candidate.best.accuracy,
                baseline=index == 0,
                on_front=False,
                best=best is not None and index > 0 and candidate.id == best.id,
            )
        )
    by_run = metric == "latency" and up == "accuracy"
    chosen = {c.id for c in front.on_front()} if by_run else _undominated(found, up)
    return tuple(replace(p, on_front=not p.baseline and p.id in chosen) for p in found)


def figure(front: Front, candidate: Candidate, metric: Metric) -> Bar | None:
    """One figure of a candidate with its interval; None where it isn't known."""
    best = candidate.best
    if metric == "accuracy":
        known = best.accuracy
        return None if known is None else (known.value, known.low, known.high, "measured")
    if metric == "latency":
        return _latency(front, candidate)
    if metric == "ram":
        # A compiled library's memory is planned to the byte; a runtime's is the model's.
        kind: LatencyKind = "measured" if best.runtime == "tvm" else "predicted"
        return None if best.ram_bytes is None else (best.ram_bytes, best.ram_bytes, best.ram_bytes, kind)
    if metric == "energy":
        told = best.measurement.conditions.get(ENERGY) if best.measurement is not None else None
        return (float(told), float(told), float(told), "measured") if isinstance(told, (int, float)) else None
    exact = float(best.bytes if metric == "size" else candidate.macs)
    return exact, exact, exact, "measured"


def interval(known: Estimate | Measurement) -> tuple[float, float]:
    """The ends of what a latency may be, in seconds: a prediction's error on both sides, a median's 95% interval.

    A measurement without one, as a device's own program gives it, reaches up to its 90th percentile.
    """
    if isinstance(known, Estimate):
        return known.interval_s
    if known.low_s is not None and known.high_s is not None:
        return known.low_s, known.high_s
    return known.latency_s, max(known.latency_s, known.latency_p90_s)


def _latency(front: Front, candidate: Candidate) -> Bar | None:
    estimate, measurement = candidate.best.estimate, candidate.best.measurement
    if measurement is not None and (front.all_measured or estimate is None):
        return measurement.latency_s, *interval(measurement), "measured"
    return (estimate.latency_s, *interval(estimate), "predicted") if estimate is not None else None


def _undominated(found: Sequence[Point], up: Metric) -> set[str]:
    """The points that no other beats in both; accuracy is better the higher, everything else the lower."""
    sign = -1 if up == "accuracy" else 1
    chosen: set[str] = set()
    lowest = float("inf")
    for point in sorted((p for p in found if not p.baseline), key=lambda p: (p.x, sign * p.y, p.id)):
        if sign * point.y < lowest:
            lowest = sign * point.y
            chosen.add(point.id)
    return chosen


def front_line(found: Sequence[Point]) -> tuple[tuple[float, float], ...]:
    """Corners (x, y) of the staircase through the undominated points, least ``x`` first."""
    corners: list[tuple[float, float]] = []
    for point in sorted((p for p in found if p.on_front), key=lambda p: (p.x, p.y)):
        if corners:
            corners.append((point.x, corners[-1][1]))
        corners.append((point.x, point.y))
    return tuple(corners)


def unit(front: Front, metric: Metric) -> words.Unit:
    """The unit of a metric, the same in plots and tables."""
    everyone = ordered(front)
    if metric == "size":
        return words.byte_unit(c.best.bytes for c in everyone)
    if metric == "ram":
        return words.byte_unit(c.best.ram_bytes for c in everyone)
    if metric == "macs":
        return words.count_unit([c.macs for c in everyone])
    if metric == "energy":
        known = (figure(front, c, metric) for c in everyone)
        return words.energy_unit([bar[0] for bar in known if bar is not None])
    if metric == "accuracy":
        return words.Unit(1.0, front.metric.symbol, front.metric.decimals(0))
    latencies = []
    for candidate in everyone:
        estimate, measurement = candidate.best.estimate, candidate.best.measurement
        latencies += [estimate.latency_s if estimate else None, measurement.latency_s if measurement else None]
    return words.latency_unit(latencies)


def describe(point: Point, front: Front, metric: Metric, up: Metric = "accuracy") -> str:
    """A point in words, one fact a line, its name first."""
    name = point.id + (" (float baseline)" if point.baseline else "")
    lines = [f"{name}{' · best' if point.best else ''}{' · on the front' if point.on_front else ''}"]
    candidate = ordered(front)[point.index]
    for each in (up, metric):
        bar = figure(front, candidate, each)
        if bar is not None:
            lines.append(_fact(each, bar, unit(front, each), candidate))
    if point.measured_x is not None:
        lines.append(f"{unit(front, 'latency').text(point.measured_x)} measured")
    return "\n".join(lines)


def _fact(metric: Metric, bar: Bar, by: words.Unit, candidate: Candidate) -> str:
    value, _, high, kind = bar
    accuracy = candidate.best.accuracy
    if metric == "accuracy" and accuracy is not None:
        interval_ = f"95% interval {words.interval_text(accuracy)}"
        return f"{words.accuracy_text(accuracy)}, {interval_}, by {words.runtime(accuracy.measured_on)}"
    if metric == "size":
        return f"{by.text(value)} file"
    if metric == "macs":
        return f"{by.text(value)}MACs" if by.symbol in words.PREFIXES else f"{by.text(value)} MACs"
    if metric == "ram":
        return f"{by.text(value)} RAM, {'as planned' if kind == 'measured' else 'predicted'}"
    if metric == "energy":
        return f"{by.text(value)} measured"
    if kind == "measured":
        return f"{by.text(value)} measured"
    half = f"{100 * (high / value - 1):.0f}%" if value else "0%"
    return f"{by.text(value)} predicted, ± {half}"
