"""``front.svg``: the front as a static picture for a README, the same bytes for the same front."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from compress.report import axes
from compress.report.chart import Canvas, Chart, lay_out
from compress.report.points import Point, front_line
from compress.results import Front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _SOFT, _LINE = "#18202a", "#566270", "#e2e6eb"
_COLOURS = {"base": "#18202a", "best": "#b8500b", "front": "#0b63b0", "other": "#8b96a3"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "compress",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9.0,
    "axes.edgecolor": "#c3cad3",
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": False,
}


_WIDTH, _HEIGHT, _FONT = 9.2, 4.2, 9.0
# The panels in pixels of the page's plots, whose text is 13 pixels high: so the same layout serves both.
_SCALE = 72 * 13 / _FONT
_PANEL = Canvas(
    width=round(4.45 * _SCALE),
    height=round(3.7 * _SCALE),
    left=52,
    right=10,
    top=14,
    bottom=54,
    ticks=7,
    label_all=False,
)


def front_svg(front: Front) -> str:
    """Accuracy against latency and against file size, side by side, on white.

    Measured latencies are filled marks, predicted ones hollow with their error. Text stays text. A pure
    function: no date, fixed ids.

    Args:
        front: what was found; a front without any known pair of figures gives empty axes.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    charts = [lay_out(front, "latency", _PANEL), lay_out(front, "size", _PANEL)]
    style: Any = {**mpl.rcParamsDefault, **_STYLE}  # a user's matplotlibrc must not change the bytes
    with mpl.rc_context(style):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), facecolor="white")
        FigureCanvasSVG(figure)
        for number, (chart, name) in enumerate(zip(charts, ("Latency", "File size"), strict=True)):
            panel = figure.add_axes(_rectangle(0.12 + 4.6 * number))
            if number == 0:
                panel.set_ylabel(front.metric.title)
            if chart is None:
                panel.set(xlabel=f"{name} (unknown)", xticks=[], yticks=[])
            else:
                _draw(panel, chart)
        _legend(figure, [mark.point for chart in charts if chart is not None for mark in chart.marks])
        text = io.StringIO()
        title = f"{front.model} on {front.target}"
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _rectangle(left_inches: float) -> tuple[float, float, float, float]:
    """A panel's data area as fractions of the figure: left, bottom, width, height."""
    left = left_inches + _PANEL.left / _SCALE
    bottom = _HEIGHT - (_PANEL.height - _PANEL.bottom) / _SCALE
    return (
        left / _WIDTH,
        bottom / _HEIGHT,
        _PANEL.plot_width / _SCALE / _WIDTH,
        _PANEL.plot_height / _SCALE / _HEIGHT,
    )


def _role(point: Point) -> str:
    if point.baseline:
        return "base"
    return "best" if point.best else "front" if point.on_front else "other"


def _draw(panel: Axes, chart: Chart) -> None:
    panel.set_xlabel(chart.x_title)
    panel.grid(axis="y", color=_LINE, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", length=0)
    x, y, size = chart.x_axis, chart.y_axis, chart.unit.size
    panel.set(xscale="log" if x.log else "linear", xlim=(x.low, x.high), ylim=(y.low, y.high))
    panel.set_xticks(x.ticks, axes.tick_labels(x.ticks))
    panel.set_xticks([], minor=True)
    panel.set_yticks(y.ticks, axes.tick_labels(y.ticks))
    corners = front_line([mark.point for mark in chart.marks])
    line = [x / size for x, _ in corners], [y for _, y in corners]
    panel.plot(*line, color=_COLOURS["front"], linewidth=1.4, zorder=2)
    for mark in chart.marks:
        _draw_point(panel, mark.point, size)
    for label in chart.labels:
        role = next(name for name in ("best", "base", "front", "other") if name in label.classes.split())
        panel.text(
            (label.x - _PANEL.left) / _PANEL.plot_width,
            1 - (label.y - _PANEL.top) / _PANEL.plot_height,
            label.text.replace("$", r"\$"),  # matplotlib would read it as a formula
            transform=panel.transAxes,
            ha={"start": "left", "middle": "center", "end": "right"}[label.anchor],
            color=_COLOURS[role],
            fontweight="bold" if role == "best" else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4},
            zorder=6,
        )


def _draw_point(panel: Axes, point: Point, size: float) -> None:
    role = _role(point)
    colour, x, y = _COLOURS[role], point.x / size, point.y
    faint: dict[str, Any] = {"color": colour, "linewidth": 0.9, "alpha": 0.3 if role == "other" else 0.45, "zorder": 3}
    panel.plot([x, x], [point.y_low, point.y_high], **faint)
    if point.x_high > point.x_low:
        panel.plot([point.x_low / size, point.x_high / size], [y, y], marker="|", markersize=5, **faint)
    if point.measured_x is not None:
        also = point.measured_x / size
        panel.plot([x, also], [y, y], color=colour, linewidth=0.9, linestyle=":", zorder=3)
        panel.plot([also], [y], color=colour, marker="o", markersize=3.5, linestyle="none", zorder=3)
    if role == "best":
        panel.plot(
            [x], [y], marker="o", markersize=12, markerfacecolor="none", markeredgecolor=colour, zorder=5, clip_on=False
        )
    panel.plot([x], [y], **_marker(role, point.kind == "predicted"), zorder=5 if role == "best" else 4, clip_on=False)


def _marker(role: str, hollow: bool) -> dict[str, Any]:
    colour = _COLOURS[role]
    return {
        "marker": "D" if role == "base" else "o",
        "markersize": 5.5 if role in ("base", "other") else 6.5,
        "markerfacecolor": "white" if hollow else colour,
        "markeredgecolor": colour if hollow else "white",
        "markeredgewidth": 1.5 if hollow else 0.8,
        "linestyle": "none",
    }


def _legend(figure: Any, drawn: list[Point]) -> None:
    from matplotlib.lines import Line2D

    roles = {_role(point) for point in drawn}
    predicted = any(point.kind == "predicted" for point in drawn)
    names = [("base", "float baseline"), ("best", "best"), ("front", "front"), ("other", "dominated")]
    handles = [Line2D([], [], label=text, **_marker(role, False)) for role, text in names if role in roles]
    if predicted:
        handles.append(Line2D([], [], label="predicted, with its error", **_marker("front", True)))
    if any(point.measured_x is not None for point in drawn):
        also: dict[str, Any] = {"color": _SOFT, "marker": "o", "markersize": 3.5, "linestyle": ":"}
        handles.append(Line2D([], [], label="measured too", **also))
    handles.append(Line2D([], [], color=_SOFT, alpha=0.6, linewidth=1, label="95% interval"))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, labelcolor=_SOFT)
