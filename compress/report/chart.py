"""Geometry of the page's plots: pixels for every mark, and labels that don't lie on one another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.report import axes, words
from compress.report.points import NAMES, Metric, Point, describe, front_line, ordered, points, unit
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
_TITLE = 28
"""Room above a plot from which on the y axis's title stands there."""
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
    up: Metric
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
    y_unit: words.Unit


def lay_out(front: Front, metric: Metric, canvas: Canvas, up: Metric = "accuracy") -> Chart | None:
    """The plot of ``up`` against ``metric``; None where no candidate has both figures."""
    found = points(front, metric, up)
    if not found:
        return None
    by, y_by = unit(front, metric), unit(front, up)
    limit, y_limit = _limit(front, metric), _limit(front, up)
    spread = [value for p in found for value in (p.x_low or p.x, p.x, p.x_high, p.measured_x) if value is not None]
    y_spread = [value for p in found for value in (p.y_low or p.y, p.y, p.y_high)]
    limit = limit if _near(limit, spread) else None
    y_limit = y_limit if _near(y_limit, y_spread) else None
    x_axis = axes.positive_axis([v / by.size for v in (*spread, *([limit] if limit else []))], canvas.ticks)
    y_axis = _y_axis(front, up, [v / y_by.size for v in (*y_spread, *([y_limit] if y_limit else []))])

    def at_x(value: float) -> float:
        return canvas.left + canvas.plot_width * x_axis.at(value / by.size)

    def at_y(value: float) -> float:
        return canvas.top + canvas.plot_height * (1 - y_axis.at(value / y_by.size))

    marks = tuple(
        Mark(
            index=p.index,
            x=at_x(p.x),
            y=at_y(p.y),
            x_low=at_x(p.x_low),
            x_high=at_x(p.x_high),
            y_low=at_y(p.y_low),
            y_high=at_y(p.y_high),
            measured_x=at_x(p.measured_x) if p.measured_x is not None else None,
            point=p,
            classes=_classes(p),
            text=describe(p, front, metric, up),
        )
        for p in found
    )
    corners = [(at_x(x), at_y(y)) for x, y in front_line(found)]
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) if len(corners) > 1 else ""
    limits = []
    if limit is not None:
        limits.append(Limit(at_x(limit), None, f"limit {by.text(limit)}"))
    if y_limit is not None:
        limits.append(Limit(None, at_y(y_limit), f"limit {y_by.text(y_limit)}"))
    drop, reference = front.budget.max_accuracy_drop, front.baseline.accuracy
    if up == "accuracy" and drop is not None and reference is not None:
        allowed = reference.value - drop
        if y_axis.low <= allowed <= y_axis.high:
            limits.append(Limit(None, at_y(allowed), f"float {words.MINUS} {words.points(drop, reference)}"))
    y_title = front.metric.title if up == "accuracy" else _axis_title(up, y_by, y_axis)
    against = NAMES[metric] if metric in ("ram", "macs") else NAMES[metric].lower()
    return Chart(
        metric=metric,
        up=up,
        canvas=canvas,
        title=f"{y_title if up == 'accuracy' else NAMES[up]} against {against}",
        x_title=_axis_title(metric, by, x_axis),
        y_title=y_title,
        x_ticks=_ticks(x_axis, at_x, by),
        y_ticks=_ticks(y_axis, at_y, y_by),
        line=line,
        area=_area(corners, canvas, up),
        marks=marks,
        labels=_place_labels(marks, corners, canvas, y_title),
        limits=tuple(limits),
        x_axis=x_axis,
        y_axis=y_axis,
        unit=by,
        y_unit=y_by,
    )


def _limit(front: Front, metric: Metric) -> float | None:
    """The limit that was asked for on a metric."""
    budget = front.budget
    limits: dict[Metric, float | None] = {
        "latency": budget.latency_s,
        "size": budget.flash_bytes,
        "ram": budget.ram_bytes,
        "macs": budget.macs * front.baseline.macs if budget.macs is not None else None,
    }
    return limits.get(metric)


def _near(limit: float | None, spread: Sequence[float]) -> bool:
    return limit is not None and min(spread) / 4 <= limit <= max(spread) * 4


def _y_axis(front: Front, up: Metric, values: Sequence[float]) -> axes.Axis:
    if up != "accuracy":
        return axes.positive_axis(values)
    # Every known accuracy, also of points that this plot lacks: all plots then have the same y axis.
    known = [c.accuracy for c in ordered(front) if c.accuracy is not None]
    return axes.linear_axis([v for a in known for v in (a.low, a.value, a.high)], 0.0, front.metric.ceiling)


def _axis_title(metric: Metric, by: words.Unit, axis: axes.Axis) -> str:
    scale = ", logarithmic" if axis.log else ""
    return f"{NAMES[metric]} ({by.symbol}{scale})" if by.symbol else f"{NAMES[metric]}{scale}"


def _ticks(axis: axes.Axis, at: Callable[[float], float], by: words.Unit) -> tuple[Tick, ...]:
    labels = axes.tick_labels(axis.ticks)
    return tuple(Tick(at(tick * by.size), label) for tick, label in zip(axis.ticks, labels, strict=True))


def _area(corners: Sequence[tuple[float, float]], canvas: Canvas, up: Metric) -> str:
    """What the front beats: below and to the right of it, or above where less is better."""
    if not corners:
        return ""
    right = canvas.width - canvas.right
    edge = canvas.height - canvas.bottom if up == "accuracy" else canvas.top
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    return f"M{corners[0][0]:.1f} {edge}L{steps}L{right} {corners[-1][1]:.1f}L{right} {edge}Z"


def _classes(point: Point) -> str:
    roles = [
        ("base", point.baseline),
        ("front", point.on_front),
        ("best", point.best),
        ("other", not (point.baseline or point.on_front or point.best)),
    ]
    return " ".join([point.kind, *(name for name, is_it in roles if is_it)])


Box = tuple[float, float, float, float]

_LEFT_OUT = 40.0
"""What a name without a place costs, beside the costs of places."""

_FEW = 12
"""Of so many names each is tried as the first to take a place."""

_STRUCK, _CROSSED = 24, 3
"""What it costs a name that the front's line goes through it, which any other place avoids, or a faint interval."""


def _place_labels(
    marks: Sequence[Mark], corners: Sequence[tuple[float, float]], canvas: Canvas, y_title: str
) -> tuple[Label, ...]:
    """Names beside their points, the most telling first; one that finds no free place is left out, for
    the tooltip and the table have it too."""
    dots: list[Box] = [(m.x - 7, m.y - 7, m.x + 7, m.y + 7) for m in marks]
    taken = list(dots)
    if canvas.top >= _TITLE:  # the y axis's title stands above the plot
        taken.append((0.0, 0.0, _CHARACTER * len(y_title), _TITLE - 10.0))
    soft: list[tuple[Box, int]] = [((m.x - 2, m.y_high, m.x + 2, m.y_low), _CROSSED) for m in marks]
    soft += [((m.x_low, m.y - 2, m.x_high, m.y + 2), _CROSSED) for m in marks]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        soft.append(((min(x0, x1) - 2, min(y0, y1) - 2, max(x0, x1) + 2, max(y0, y1) + 2), _STRUCK))
    named = [m for m in marks if canvas.label_all or m.point.best or m.point.baseline or m.point.on_front]
    named.sort(key=lambda m: (not m.point.best, not m.point.baseline, not m.point.on_front, m.index))

    def placed(order: Sequence[Mark]) -> tuple[float, tuple[Label, ...]]:
        """The cost of places taken in this order, and the labels."""
        full, labels, total = list(taken), [], 0.0
        for mark in order:
            text = words.shorten(mark.point.id, 21)
            spot = _free_spot(mark, _CHARACTER * len(text), dots, full, soft, canvas)
            if spot is None:
                total += _LEFT_OUT
                continue
            cost, box, x, y, anchor = spot
            full.append(box)
            total += cost
            labels.append(Label(x, y, anchor, text, mark.classes))
        return total, tuple(labels)

    # One that comes first may take the only place of another: so of a few names each is tried as the first.
    firsts = range(len(named) if len(named) <= _FEW else 1)
    orders = ([named[i], *named[:i], *named[i + 1 :]] for i in firsts)
    return min(map(placed, orders), key=lambda each: each[0], default=(0.0, ()))[1]


def _free_spot(
    mark: Mark, width: float, dots: Sequence[Box], taken: Sequence[Box], soft: Sequence[tuple[Box, int]], canvas: Canvas
) -> tuple[float, Box, float, float, str] | None:
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
            crossed = sum(cost for other, cost in soft if _overlap(box, other))
            # A name must be read with its own point: one that comes near another point is misread.
            near = any(_overlap((box[0] - 10, box[1] - 6, box[2] + 10, box[3] + 6), other) for other in others)
            options.append((crossed + 8 * near + preference, box, x, y, anchor))
    if not options:
        return None
    return min(options, key=lambda option: option[0])


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
