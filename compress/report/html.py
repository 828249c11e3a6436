"""``report.html``: one page without a single outside reference, from a front and the run's facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compress.report import beside, chart, explanation, gains, layers, narrow, runs, searching, sensitivity, words
from compress.report import rows as tables
from compress.report.facts import RunFacts
from compress.report.points import METRICS, NAMES, Metric, ordered
from compress.results import Candidate, Front
from compress.types import Record

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True)
class Figure:
    """One of the figures under the headline: what it is now, what it was, and how it is known."""

    name: str
    value: str
    unit: str
    known: str
    before: str
    left: float | None


@dataclass(frozen=True)
class StageRow:
    """One stage of a candidate as text."""

    stage: str
    settings: str
    seconds: str
    macs: str
    params: str
    weight_bits: str


@dataclass(frozen=True)
class Panel:
    """All that is shown of one candidate below the table."""

    row: tables.Row
    picture: layers.Picture | None
    explained: explanation.View | None
    candidate: Candidate
    stages: tuple[StageRow, ...]
    artifacts: tuple[tables.ArtifactRow, ...]
    why: str | None
    narrow: str | None
    chosen: bool


def render(front: Front, facts: RunFacts) -> str:
    """The whole page.

    A pure function: equal arguments give equal bytes. Every name in ``front`` and ``facts`` is escaped.

    Args:
        front: what was found.
        facts: the circumstances of the run.
    """
    template = _environment().get_template("report.html.j2")
    return template.render(_page(front, facts)) + "\n"


def render_two(both: runs.Beside) -> str:
    """The page of two runs, as self-contained as :func:`render`'s."""
    charts: list[dict[str, Any]] = []
    metrics: tuple[Metric, ...] = ("latency", "size")
    for metric in metrics:
        together = both.merged if both.latencies or metric != "latency" else None
        fronts = [("", together)] if together else [(side.name, side.front) for side in (both.first, both.second)]
        for name, front in fronts:
            drawn = _chart(front, metric, "accuracy")
            if drawn is not None:
                against = f"{drawn['up_name']} against {drawn['name'].lower()}"
                caption = f"{name}: {against}" if name else f"Both runs: {against}"
                charts.append({**drawn, "caption": caption, **({} if name else _by_run(drawn))})
    sides = [(side, gains.headline(side.front), gains.choice(side.front)) for side in (both.first, both.second)]
    template = _environment().get_template("two.html.j2")
    page = {"both": both, "charts": charts, "sides": sides}
    return template.render(page | {"style": _asset("report.css"), "script": _asset("report.js")}) + "\n"


def _by_run(drawn: Mapping[str, Any]) -> dict[str, Any]:
    """A plot of both runs, whose marks and labels know which of them they are of."""

    def told(each: Any, name: str) -> Any:
        run = "one" if name.startswith(runs.FIRST) else "two" if name.startswith(runs.SECOND) else ""
        return replace(each, classes=f"{each.classes} {run}".strip())

    def by_run(plot: chart.Chart) -> chart.Chart:
        marks = tuple(told(mark, mark.point.id) for mark in plot.marks)
        return replace(plot, marks=marks, labels=tuple(told(label, label.text) for label in plot.labels))

    return {"wide": by_run(drawn["wide"]), "narrow": by_run(drawn["narrow"])}


def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("compress.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _page(front: Front, facts: RunFacts) -> dict[str, Any]:
    subject = gains.subject(front)
    listed = tables.rows(front)
    shown = [c for c in ordered(front) if c is not front.baseline]
    within, both = tables.within_error(front)
    accuracy = next((c.accuracy for c in ordered(front) if c.accuracy is not None), None)
    total = sum(seconds for _, seconds in facts.seconds)
    charts = _charts(front)
    return {
        "facts": facts,
        "front": front,
        "headline": gains.headline(front),
        "clauses": gains.clauses(front),
        "met": bool(front.candidates) and front.best() is not None,
        "choice": gains.choice(front),
        "why": gains.why_not_faster(front, subject) if subject else None,
        "subject": subject,
        "figures": _figures(front, subject) if subject else (),
        "charts": charts,
        "legend": _legend(front, charts),
        "side_by_side": beside.candidates(front),
        "rows": listed,
        "panels": tuple(
            Panel(
                row=next(row for row in listed if row.id == c.id and not row.baseline),
                picture=layers.picture(c.layers, _times(c)),
                explained=explanation.view(front, c),
                candidate=c,
                stages=tuple(_stage(record) for record in c.records),
                artifacts=tables.artifacts(front, c),
                why=gains.why_not_faster(front, c),
                narrow=narrow.against_8_bits(front, c),
                chosen=subject is not None and c.id == subject.id,
            )
            for c in shown
        ),
        "recalls": tables.recalls(front, subject) if subject else (),
        **sensitivity.section(front, facts.sensitivity),
        **searching.section(front, facts.search),
        "unavailable": tables.unavailable(front),
        "notes": tables.notes(front, facts),
        "phases": tuple(
            (n, words.seconds(s), words.share(s, total), s / total if total else 0) for n, s in facts.seconds
        ),
        "total": words.seconds(total),
        "budget": words.budget_text(front.budget, front.metric),
        "conditions": tables.conditions(front),
        "within": within,
        "both": both,
        "accuracy": accuracy,
        "any_measured": any(row.measured != words.DASH for row in listed),
        "any_predicted": any(row.predicted != words.DASH for row in listed),
        "simulated": any(c.accuracy is not None and c.accuracy.measured_on == "torch" for c in ordered(front)),
        "compared_by": "measured" if front.all_measured else "predicted",
        "track": {
            **layers.TRACKS,
            "kept_height": layers.KEPT_HEIGHT,
            "cell": layers.CELL_HEIGHT,
            "macs_height": layers.MACS_HEIGHT,
            "time": layers.TIME_TOP,
            "time_height": layers.TIME_HEIGHT,
        },
        "gutter": layers.GUTTER,
        "explained_by": _explained_by(shown),
        "words": words,
        "style": _asset("report.css"),
        "script": _asset("report.js"),
    }


def _asset(name: str) -> Any:
    """A style sheet or script of this package, which is trusted and goes into the page as it is."""
    from importlib.resources import files

    from markupsafe import Markup

    return Markup((files("compress.report") / "templates" / name).read_text(encoding="utf-8"))


def _charts(front: Front) -> tuple[dict[str, Any], ...]:
    """The plots of any two figures that are known, accuracy's first."""
    laid_out: list[dict[str, Any]] = []
    for i, up in enumerate(METRICS):
        for metric in METRICS[i + 1 :]:
            drawn = _chart(front, metric, up)
            if drawn is not None:
                laid_out.append({**drawn, "first": up not in {each["up"] for each in laid_out}})
    return tuple(laid_out)


def _chart(front: Front, metric: Metric, up: Metric) -> dict[str, Any] | None:
    wide = chart.lay_out(front, metric, chart.WIDE, up)
    narrow = chart.lay_out(front, metric, chart.NARROW, up)
    if wide is None or narrow is None:
        return None
    return {
        "metric": metric,
        "up": up,
        "key": metric if up == "accuracy" else f"{up}-{metric}",
        "name": NAMES[metric],
        "up_name": front.metric.heading if up == "accuracy" else NAMES[up],
        "wide": wide,
        "narrow": narrow,
    }


def _bar(front: Front) -> str:
    """What the bars of measured latencies reach over; see :func:`compress.report.points.interval`."""
    known = [c.best.measurement for c in ordered(front) if c.best.measurement is not None]
    without = [each for each in known if each.low_s is None or each.high_s is None]
    if not without:
        return "95% interval of the median"
    return "median to 90th percentile" if len(without) == len(known) else "95% interval of the median, or up to p90"


def _legend(front: Front, charts: Sequence[Mapping[str, Any]]) -> dict[str, bool | str]:
    """Which keys the plots need, and what the bars of measured latencies say."""
    marks = [mark for drawn in charts for mark in drawn["wide"].marks]
    timed = [mark for drawn in charts if drawn["metric"] == "latency" for mark in drawn["wide"].marks]
    return {
        "measured": any(mark.point.kind == "measured" for mark in timed),
        "bar": _bar(front) if any(m.point.kind == "measured" and m.point.x_high > m.point.x_low for m in timed) else "",
        "predicted": any(mark.point.kind == "predicted" for mark in marks),
        "also": any(mark.measured_x is not None for mark in marks),
        "line": any(drawn["wide"].line for drawn in charts),
        "dominated": any("other" in mark.classes.split() for mark in marks),
    }


def _explained_by(candidates: Sequence[Candidate]) -> str:
    """How times by layer are known; empty where there are none."""
    found = [c.explanation for c in candidates if c.explanation is not None]
    measured = [each.measured for each in found if each.measured is not None]
    if not found:
        return ""
    if not measured:
        return "Predicted by the target's latency model."
    whole = "Measured" if len(measured) == len(found) else f"Measured for {len(measured)} of {len(found)} candidates"
    return f"{whole} by {words.runtime(measured[0].runtime)}'s own clock on {measured[0].device}, else predicted."


def _times(candidate: Candidate) -> layers.Times | None:
    """Seconds of the float network's layers and of these, where both are known in the same way."""
    found = candidate.explanation
    if found is None:
        return None
    return {each.name: (each.before_s, each.time_s) for each in found.layers if each.before_s is not None} or None


def _figures(front: Front, candidate: Candidate) -> tuple[Figure, ...]:
    old, new = front.baseline, candidate
    found = []
    if new.accuracy is not None:
        found.append(
            Figure(
                new.accuracy.kind.heading,
                f"{new.accuracy.value:.{words.accuracy_decimals(new.accuracy)}f}",
                new.accuracy.kind.symbol,
                f"95% interval {words.interval_text(new.accuracy)}",
                words.accuracy_text(old.accuracy),
                None,
            )
        )
    gain = gains.compare(old, new)
    latency = _latency_figure(front, candidate, gain)
    if latency is not None:
        found.append(latency)
    found.append(
        _quantity("File", words.size(new.best.bytes), words.size(old.best.bytes), new.best.bytes, old.best.bytes)
    )
    if new.best.ram_bytes is not None:
        found.append(
            _quantity(
                "RAM",
                words.size(new.best.ram_bytes),
                words.size(old.best.ram_bytes),
                new.best.ram_bytes,
                old.best.ram_bytes,
            )
        )
    found.append(_quantity("MACs", words.count(new.macs), words.count(old.macs), new.macs, old.macs))
    return tuple(found)


def _quantity(name: str, now: str, before: str, value: float, reference: float | None, known: str = "") -> Figure:
    number, _, symbol = now.partition(" ")
    left = value / reference if reference else None
    return Figure(
        name, number, symbol, known or (f"{words.share(value, reference)} of float" if reference else ""), before, left
    )


def _latency_figure(front: Front, candidate: Candidate, gain: gains.Gain) -> Figure | None:
    old, new = front.baseline.best, candidate.best
    if new.measurement is not None:
        reference = old.measurement.latency_s if old.measurement and gain.kind == "measured" else None
        now = new.measurement.latency_s
        return _quantity("Latency", words.seconds(now), words.seconds(reference), now, reference, "measured")
    if new.estimate is not None:
        reference = old.estimate.latency_s if old.estimate else None
        now = new.estimate.latency_s
        known = f"predicted, ± {100 * new.estimate.error:.0f}%"
        return _quantity("Latency", words.seconds(now), words.seconds(reference), now, reference, known)
    return None


def _stage(record: Record) -> StageRow:
    before, after = record.before, record.after

    def change(old: str, new: str) -> str:
        return f"{old} → {new}" if old != new else new

    return StageRow(
        stage=record.stage,
        settings=_settings(record.settings),
        seconds=words.seconds(record.seconds),
        macs=change(words.count(before.macs), words.count(after.macs)),
        params=change(words.count(before.params), words.count(after.params)),
        weight_bits=change(words.bits(before.weight_bits), words.bits(after.weight_bits)),
    )


def _settings(settings: Mapping[str, Any]) -> str:
    """Names and values; of a setting that is a record, its own that were given."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return f"({_settings({name: inner for name, inner in value.items() if inner not in (None, [], ())})})"
        if isinstance(value, (list, tuple)):  # what was a tuple comes back from front.json as a list
            return " ".join(map(str, value)) or "none"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name.replace('_', ' ')} {text(value)}" for name, value in settings.items() if value is not None)
