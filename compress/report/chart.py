"""Geometry of the page's plots: pixels for every mark, and labels that don't lie on one another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from compress.report import axes, words
from compress.report.points import Metric, Point, describe, front_line, ordered, points, unit
from compress.results import Front


@dataclass(frozen=True)
class Canvas:
    """The size of a plot in its own pixels, and the room around the data."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    ticks: int
    label_all: bool

    @property
    def plot_width(self) -> int:
        """Pixels between the left and the right end of the x axis."""
        return self.width - self.left - self.right

    @property
    def plot_height(self) -> int:
        """Pixels between the lower and the upper end of the y axis."""
        return self.height - self.top - self.bottom


_CHARACTER = 7.8
"""Width of a character of a label, a little more than most fonts need at 13 pixels."""
WIDE = Canvas(1000, 470, 58, 24, 30, 52, 8, True)
NARROW = Canvas(360, 380, 40, 12, 28, 48, 5, False)


@dataclass(frozen=True)
class Tick:
    """A tick's pixel along its axis and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """One drawn point in pixels; ``measured_x`` is the second dot of a point that has both figures."""

    index: int
    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    measured_x: float | None
    point: Point
    classes: str
    text: str


@dataclass(frozen=True)
class Label:
    """A point's name where there is room for it: the anchor's pixel and the SVG text-anchor."""

    x: float
    y: float
    anchor: str
    text: str
    classes: str


@dataclass(frozen=True)
class Limit:
    """A limit that was asked for: a vertical (``x``) or horizontal (``y``) line and its label."""

    x: float | None
    y: float | None
    text: str


@dataclass(frozen=True)
class Chart:
    """A plot laid out for one canvas."""

    metric: Metric
    canvas: Canvas
    title: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    line: str
    area: str
    marks: tuple[Mark, ...]
    labels: tuple[Label, ...]
    limits: tuple[Limit, ...]
    x_axis: axes.Axis
    y_axis: axes.Axis
    unit: words.Unit


def lay_out(front: Front, metric: Metric, canvas: Canvas) -> Chart | None:
    """The plot of accuracy against ``metric``; None where no candidate has both figures."""
    found = points(front, metric)
    if not found:
        return None
    by = unit(front, metric)
    limit = front.budget.latency_s if metric == "latency" else front.budget.flash_bytes
    spread = [value for p in found for value in (p.x_low or p.x, p.x, p.x_high, p.measured_x) if value is not None]
    nearby = limit is not None and min(spread) / 4 <= limit <= max(spread) * 4
    x_axis = axes.positive_axis([v / by.size for v in (*spread, *([limit] if nearby and limit else []))], canvas.ticks)
    ceiling = 100.0 if found[0].accuracy.metric == "top1_percent" else float("inf")
    # Every known accuracy, also of points that this plot lacks: both plots then have the same y axis.
    known = [c.accuracy for c in ordered(front) if c.accuracy is not None]
    heights = [v for a in known for v in (a.low, a.value, a.high)]
    y_axis = axes.linear_axis(heights, 0.0, ceiling)

    def at_x(value: float) -> float:
        return canvas.left + canvas.plot_width * x_axis.at(value / by.size)

    def at_y(value: float) -> float:
        return canvas.top + canvas.plot_height * (1 - y_axis.at(value))

    marks = tuple(
        Mark(
            index=p.index,
            x=at_x(p.x),
            y=at_y(p.accuracy.value),
            x_low=at_x(p.x_low),
            x_high=at_x(p.x_high),
            y_low=at_y(p.accuracy.low),
            y_high=at_y(p.accuracy.high),
            measured_x=at_x(p.measured_x) if p.measured_x is not None else None,
            point=p,
            classes=_classes(p),
            text=describe(p, front, metric),
        )
        for p in found
    )
    corners = [(at_x(x), at_y(y)) for x, y in front_line(found)]
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) if len(corners) > 1 else ""
    floor, right = canvas.height - canvas.bottom, canvas.width - canvas.right
    area = ""
    if corners:
        steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
        area = f"M{corners[0][0]:.1f} {floor}L{steps}L{right} {corners[-1][1]:.1f}L{right} {floor}Z"
    limits = []
    if nearby and limit is not None:
        limits.append(Limit(at_x(limit), None, f"limit {by.text(limit)}"))
    drop = front.budget.max_accuracy_drop
    reference = front.baseline.accuracy
    if drop is not None and reference is not None and y_axis.low <= reference.value - drop <= y_axis.high:
        limits.append(Limit(None, at_y(reference.value - drop), f"float {words.MINUS} {words.points(drop, reference)}"))
    name = "Latency" if metric == "latency" else "File size"
    scale = ", logarithmic" if x_axis.log else ""
    y_title = words.metric_title(found[0].accuracy)
    return Chart(
        metric=metric,
        canvas=canvas,
        title=f"{y_title} against {name.lower()}",
        x_title=f"{name} ({by.symbol}{scale})",
        y_title=y_title,
        x_ticks=tuple(
            Tick(at_x(t * by.size), label)
            for t, label in zip(x_axis.ticks, axes.tick_labels(x_axis.ticks), strict=True)
        ),
        y_ticks=tuple(
            Tick(at_y(t), label) for t, label in zip(y_axis.ticks, axes.tick_labels(y_axis.ticks), strict=True)
        ),
        line=line,
        area=area,
        marks=marks,
        labels=_place_labels(marks, corners, canvas),
        limits=tuple(limits),
        x_axis=x_axis,
        y_axis=y_axis,
        unit=by,
    )


def _classes(point: Point) -> str:
    roles = [
        ("base", point.baseline),
        ("front", point.on_front),
        ("best", point.best),
        ("other", not (point.baseline or point.on_front or point.best)),
    ]
    return " ".join([point.kind, *(name for name, is_it in roles if is_it)])


Box = tuple[float, float, float, float]


def _place_labels(marks: Sequence[Mark], corners: Sequence[tuple[float, float]], canvas: Canvas) -> tuple[Label, ...]:
    """Names beside their points, the most telling first; one that finds no free place is left out, for
    the tooltip and the table have it too."""
    dots: list[Box] = [(m.x - 7, m.y - 7, m.x + 7, m.y + 7) for m in marks]
    taken = list(dots)
    soft: list[Box] = [(m.x - 2, m.y_high, m.x + 2, m.y_low) for m in marks]
    soft += [(m.x_low, m.y - 2, m.x_high, m.y + 2) for m in marks]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        soft.append((min(x0, x1) - 2, min(y0, y1) - 2, max(x0, x1) + 2, max(y0, y1) + 2))
    placed: list[Label] = []
    for mark in sorted(marks, key=lambda m: (not m.point.best, not m.point.baseline, not m.point.on_front, m.index)):
        important = mark.point.best or mark.point.baseline or mark.point.on_front
        if not important and not canvas.label_all:
            continue
        text = words.shorten(mark.point.id, 18 if canvas.label_all else 14)
        spot = _free_spot(mark, _CHARACTER * len(text), dots, taken, soft, canvas)
        if spot is None:
            continue
        box, x, y, anchor = spot
        taken.append(box)
        placed.append(Label(x, y, anchor, text, mark.classes))
    return tuple(placed)


def _free_spot(
    mark: Mark, width: float, dots: Sequence[Box], taken: Sequence[Box], soft: Sequence[Box], canvas: Canvas
) -> tuple[Box, float, float, str] | None:
    options = []
    others = [b for b in dots if not (b[0] < mark.x < b[2] and b[1] < mark.y < b[3])]
    for preference, (dx, dy, anchor) in enumerate(
        [
            (10, -9, "start"),
            (-10, -9, "end"),
            (10, 19, "start"),
            (-10, 19, "end"),
            (0, -14, "middle"),
            (0, 25, "middle"),
            (14, 5, "start"),
            (-14, 5, "end"),
            (12, -22, "start"),
            (-12, -22, "end"),
            (12, 32, "start"),
            (-12, 32, "end"),
        ]
    ):
        x, y = mark.x + dx, mark.y + dy
        left = {"start": x, "end": x - width, "middle": x - width / 2}[anchor]
        box = (left - 2, y - 11, left + width + 2, y + 3)
        inside = box[0] >= canvas.left and box[2] <= canvas.width - 2 and box[1] >= 2
        if inside and box[3] <= canvas.height - canvas.bottom and not any(_overlap(box, other) for other in taken):
            crossed = sum(_overlap(box, other) for other in soft)
            # A name must be read with its own point: one that comes near another point is misread.
            near = sum(_overlap((box[0] - 10, box[1] - 6, box[2] + 10, box[3] + 6), other) for other in others)
            options.append((3 * crossed + 8 * near + preference, box, x, y, anchor))
    if not options:
        return None
    _, box, x, y, anchor = min(options, key=lambda option: option[0])
    return box, x, y, anchor


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
