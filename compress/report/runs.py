"""Two runs side by side: what can be compared, what can't and why, and what was asked for differently.

Accuracies compare on the same evaluation data, latencies on the same target: measured ones on one machine, else
predicted ones. Shares of the float network compare where both runs began with the same network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from compress.report import explanation, gains, words
from compress.report.facts import RunFacts
from compress.results import Candidate, Front
from compress.serial import to_json


@dataclass(frozen=True)
class Side:
    """One of the runs: its folder as it was typed, what it found, and its circumstances."""

    name: str
    front: Front
    facts: RunFacts


@dataclass(frozen=True)
class Row:
    """One figure of both runs, and the second's beside the first's; a dash where the two can't be compared."""

    name: str
    first: str
    second: str
    difference: str


@dataclass(frozen=True)
class Beside:
    """Two runs.

    Attributes:
        rows: the figures of the candidates that the two reports are about.
        shared: of candidates that have the same id in both.
        settings: what was asked for, or run with, differently.
        notes: what isn't compared, and why.
        merged: both fronts as one, for one plot; None where accuracies don't compare.
        latencies: whether latencies compare too.
    """

    first: Side
    second: Side
    rows: tuple[Row, ...]
    shared: tuple[Row, ...]
    settings: tuple[Row, ...]
    notes: tuple[str, ...]
    merged: Front | None
    latencies: bool


FIRST, SECOND = "1 · ", "2 · "
"""In front of a candidate's id in a plot of both runs."""


def beside(first: Side, second: Side) -> Beside:
    """Set two runs side by side."""
    a, b = first.front, second.front
    accuracy, latency, notes = _comparable(a, b)
    one, other = gains.subject(a), gains.subject(b)
    rows: tuple[Row, ...] = ()
    if one is not None and other is not None:
        rows = (
            Row("best candidate" if a.best() and b.best() else "nearest candidate", one.id, other.id, words.DASH),
            *_figures(one, other, accuracy, latency, (a, b)),
        )
    return Beside(
        first,
        second,
        rows,
        _shared(a, b),
        _settings(first, second),
        notes,
        _merged(a, b) if accuracy else None,
        latency,
    )


def same_network(a: Front, b: Front) -> bool:
    """Whether both runs began with a network of the same name and size."""
    return (a.model, a.baseline.macs, a.baseline.params) == (b.model, b.baseline.macs, b.baseline.params)


def _comparable(a: Front, b: Front) -> tuple[bool, bool, tuple[str, ...]]:
    """Whether accuracies compare, whether latencies do, and why not."""
    notes = []
    data = (a.dataset.sha256, a.dataset.n_eval) == (b.dataset.sha256, b.dataset.n_eval)
    metric = {c.accuracy.metric for c in (a.baseline, b.baseline) if c.accuracy is not None}
    if not data:
        notes.append(
            f"accuracies: the first run was evaluated on {_data(a)}, the second on {_data(b)}; what each lost beside "
            "its own float network still says something"
        )
    if not same_network(a, b):
        notes.append(
            f"shares of the float network: the first began with {a.model} ({words.count(a.baseline.macs)} MACs), the "
            f"second with {b.model} ({words.count(b.baseline.macs)})"
        )
    target = a.target == b.target
    if not target:
        notes.append(f"latencies: the first run is for {a.target}, the second for {b.target}")
    elif a.all_measured and b.all_measured and _devices(a) != _devices(b):
        target = False
        notes.append(
            f"latencies: the first run's were measured on {', '.join(sorted(_devices(a)))}, the second's on "
            f"{', '.join(sorted(_devices(b)))}"
        )
    elif a.all_measured and b.all_measured:
        notes.append(
            "small differences of measured latencies: each run was measured at its own time; within a run all "
            "candidates were timed in turns"
        )
    return data and len(metric) < 2, target, tuple(notes)


def _data(front: Front) -> str:
    return f"{front.dataset.name} ({front.dataset.n_eval} inputs, {front.dataset.sha256[:8]})"


def _devices(front: Front) -> set[str]:
    everyone = (front.baseline, *front.candidates)
    return {c.best.measurement.device for c in everyone if c.best.measurement is not None}


def _figures(
    one: Candidate, other: Candidate, accuracy: bool, latency: bool, fronts: tuple[Front, Front]
) -> tuple[Row, ...]:
    def ratio(x: float | None, y: float | None, better: str, worse: str, known: bool = True) -> str:
        return gains.ratio_text(x / y, better, worse) if x and y and known else words.DASH

    a, b = one.best, other.best
    lost = [
        c.accuracy.value - f.baseline.accuracy.value
        if c.accuracy is not None and f.baseline.accuracy is not None
        else None
        for c, f in zip((one, other), fronts, strict=True)
    ]
    measured = [words.seconds(x.measurement.latency_s if x.measurement else None) for x in (a, b)]
    predicted = [
        f"{words.seconds(x.estimate.latency_s)} ± {100 * x.estimate.error:.0f}%" if x.estimate else words.DASH
        for x in (a, b)
    ]
    beside_float = [words.DASH if d is None else _points(d, c) for d, c in zip(lost, (one, other), strict=True)]
    shares = [words.share(c.macs, f.baseline.macs) for c, f in zip((one, other), fronts, strict=True)]
    gained = words.DASH
    if accuracy and a.accuracy is not None and b.accuracy is not None:
        gained = _points(b.accuracy.value - a.accuracy.value, other)
    both_measured = latency and fronts[0].all_measured and fronts[1].all_measured
    faster = ratio(
        a.measurement.latency_s if a.measurement else None,
        b.measurement.latency_s if b.measurement else None,
        "faster",
        "slower",
        both_measured,
    )
    sooner = ratio(
        a.estimate.latency_s if a.estimate else None,
        b.estimate.latency_s if b.estimate else None,
        "faster",
        "slower",
        fronts[0].target == fronts[1].target,
    )
    params = words.count(one.params), words.count(other.params)
    rows = [
        Row(fronts[0].metric.name, _accuracy(one), _accuracy(other), gained),
        Row("beside its float network", beside_float[0], beside_float[1], words.DASH),
        Row("latency, measured", measured[0], measured[1], faster),
        Row("latency, predicted", predicted[0], predicted[1], sooner),
        Row("file", words.size(a.bytes), words.size(b.bytes), ratio(a.bytes, b.bytes, "smaller", "larger")),
        Row("RAM", words.size(a.ram_bytes), words.size(b.ram_bytes), ratio(a.ram_bytes, b.ram_bytes, "less", "more")),
        Row("MACs", words.count(one.macs), words.count(other.macs), ratio(one.macs, other.macs, "fewer", "more")),
        Row("of its float network's MACs", shares[0], shares[1], words.DASH),
        Row("parameters", params[0], params[1], ratio(one.params, other.params, "fewer", "more")),
        Row("weight bits", words.bits(one.weight_bits), words.bits(other.weight_bits), words.DASH),
        Row("runs by", words.runtime(a.runtime), words.runtime(b.runtime), words.DASH),
    ]
    return tuple(row for row in rows if (row.first, row.second) != (words.DASH, words.DASH))


def _accuracy(candidate: Candidate) -> str:
    if candidate.accuracy is None:
        return words.DASH
    return f"{words.accuracy_text(candidate.accuracy)} ({words.accuracy_detail(candidate.accuracy)})"


def _points(difference: float, candidate: Candidate) -> str:
    assert candidate.accuracy is not None
    text = words.points(difference, candidate.accuracy)
    return f"{words.MINUS if difference < 0 else '+'}{text}" if float(text.split()[0]) else "the same"


def _shared(a: Front, b: Front) -> tuple[Row, ...]:
    """Accuracy and latency of the candidates of one id; the same network where their plans are equal."""
    if not same_network(a, b):
        return ()
    others = {candidate.id: candidate for candidate in b.candidates}
    rows = []
    for one in a.candidates:
        other = others.get(one.id)
        if other is None:
            continue
        said = "the same plan" if one.plan.digest() == other.plan.digest() else "other channels or bits"
        figures = [
            f"{words.accuracy_text(c.accuracy)}, {words.seconds(f.latency_s(c))}" for f, c in ((a, one), (b, other))
        ]
        rows.append(Row(one.id, figures[0], figures[1], said))
    return tuple(rows)


def _settings(first: Side, second: Side) -> tuple[Row, ...]:
    """What was asked for, and run with, where the two differ."""

    def asked(side: Side) -> dict[str, str]:
        front, facts = side.front, side.facts
        return {
            "network": front.model,
            "target": front.target,
            "data": _data(front),
            "limits": ", ".join(words.budget_text(front.budget)) or "none",
            "seed": str(facts.seed),
            "candidates": str(len(front.candidates)),
            "machine": facts.machine,
            "wall time": words.seconds(sum(seconds for _, seconds in facts.seconds)),
            **{f"version of {name}": version for name, version in facts.versions.items()},
            "command": facts.command,
        }

    one, other = asked(first), asked(second)
    names = dict.fromkeys((*one, *other))
    return tuple(
        Row(name, one.get(name, words.DASH), other.get(name, words.DASH), "")
        for name in names
        if one.get(name) != other.get(name)
    )


def _merged(a: Front, b: Front) -> Front:
    def named(front: Front, prefix: str) -> tuple[Candidate, ...]:
        return tuple(replace(c, id=f"{prefix}{c.id}") for c in front.candidates)

    return replace(
        a,
        candidates=(*named(a, FIRST), *named(b, SECOND)),
        budget=a.budget if a.budget == b.budget else type(a.budget)(),
    )


def document(both: Beside) -> dict[str, Any]:
    """Two runs as JSON."""

    def side(each: Side) -> dict[str, Any]:
        subject = gains.subject(each.front)
        return {
            "run": each.name,
            "headline": gains.headline(each.front),
            "subject": subject.id if subject is not None else None,
            "front": each.front.document(),
            "explanation": explanation.document(each.front, subject) if subject is not None else None,
        }

    return {
        "runs": [side(both.first), side(both.second)],
        "rows": to_json(both.rows),
        "shared": to_json(both.shared),
        "settings": to_json(both.settings),
        "not_compared": list(both.notes),
    }


__all__ = ["FIRST", "SECOND", "Beside", "Row", "Side", "beside", "document", "same_network"]
