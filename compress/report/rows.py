"""A front as rows of text, the same for the page, the terminal and Markdown.

Measured and predicted latency are two columns everywhere; a dash stands where one isn't known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from compress.report import words
from compress.report.facts import RunFacts
from compress.report.points import ordered, unit
from compress.results import Artifact, Candidate, Front, Measurement
from compress.types import Note


@dataclass(frozen=True)
class Row:
    """The figures of one candidate (or of one artifact of it) as text; ``index`` 0 is the baseline.

    ``error`` and ``measured_detail`` qualify the two latencies and are empty where there is none.
    """

    index: int
    id: str
    baseline: bool
    on_front: bool
    best: bool
    accuracy: str
    interval: str
    ssim: str
    accuracy_detail: str
    measured_on: str
    measured: str
    measured_detail: str
    predicted: str
    error: str
    size: str
    size_share: str
    ram: str
    macs: str
    macs_share: str
    params: str
    params_share: str
    weight_bits: str
    activation_bits: str


@dataclass(frozen=True)
class ArtifactRow:
    """One file that ships."""

    candidate: str
    runtime: str
    path: str
    size: str
    sha256: str
    accuracy: str
    measured: str
    predicted: str
    ram: str
    instructions: str
    checked: str


@dataclass(frozen=True)
class Skipped:
    """Something that wasn't made or was left alone, why, and for which candidates."""

    what: str
    where: tuple[str, ...]
    why: str
    candidates: str


def rows(front: Front) -> tuple[Row, ...]:
    """The baseline, then every candidate, fastest first."""
    latency, files = unit(front, "latency"), unit(front, "size")
    memory = words.byte_unit(c.best.ram_bytes for c in ordered(front))
    on_front = {c.id for c in front.on_front()}
    best = front.best() if front.candidates else None
    base = front.baseline
    return tuple(
        Row(
            index=index,
            id=c.id,
            baseline=index == 0,
            on_front=index > 0 and c.id in on_front,
            best=index > 0 and best is not None and c.id == best.id,
            accuracy=words.accuracy_text(c.accuracy),
            interval=words.interval_text(c.accuracy),
            ssim=words.ssim_text(c.accuracy),
            accuracy_detail=words.accuracy_detail(c.accuracy),
            measured_on=words.runtime(c.accuracy.measured_on) if c.accuracy else words.DASH,
            measured=latency.text(c.best.measurement.latency_s if c.best.measurement else None),
            measured_detail=_measured_detail(c.best.measurement, latency),
            predicted=latency.text(c.best.estimate.latency_s if c.best.estimate else None),
            error=f"± {100 * c.best.estimate.error:.0f}%" if c.best.estimate else "",
            size=files.text(c.best.bytes),
            size_share=words.share(c.best.bytes, base.best.bytes),
            ram=memory.text(c.best.ram_bytes),
            macs=words.count(c.macs),
            macs_share=words.share(c.macs, base.macs),
            params=words.count(c.params),
            params_share=words.share(c.params, base.params),
            weight_bits=words.bits(c.weight_bits),
            activation_bits=words.bits(c.activation_bits),
        )
        for index, c in enumerate(ordered(front))
    )


@dataclass(frozen=True)
class RecallRow:
    """Recall of one class: of the float network, of a candidate, and of how many inputs."""

    name: str
    protected: bool
    before: str
    after: str
    n: str


MOST_CLASSES = 20
"""With more classes than this, only the protected ones are listed."""


def recalls(front: Front, candidate: Candidate) -> tuple[RecallRow, ...]:
    """Recall by class beside the float network's; empty where no class is protected."""
    old, new = front.baseline.best.recall, candidate.best.recall
    if old is None or new is None or not new.protected:
        return ()
    listed = zip(new.classes, old.percent, new.percent, new.n, strict=True)
    return tuple(
        RecallRow(name, name in new.protected, _recall(before), _recall(after), words.count(n))
        for name, before, after, n in listed
        if name in new.protected or len(new.classes) <= MOST_CLASSES
    )


def recall_sentence(front: Front, candidate: Candidate) -> str | None:
    """Recall of the protected classes in a sentence; None where no class is protected."""
    said = [f"{row.name} {row.before} → {row.after}" for row in recalls(front, candidate) if row.protected]
    return f"Recall of the protected classes, float → {candidate.id}: {', '.join(said)}." if said else None


def _recall(percent: float | None) -> str:
    return words.DASH if percent is None else f"{percent:.1f}%"


def _measured_detail(measurement: Measurement | None, by: words.Unit) -> str:
    if measurement is None:
        return ""
    return f"p90 {by.number(measurement.latency_p90_s)}, {measurement.runs:,} runs"


def artifacts(front: Front, candidate: Candidate) -> tuple[ArtifactRow, ...]:
    """Every file of one candidate."""
    latency, files = unit(front, "latency"), unit(front, "size")

    def row(artifact: Artifact) -> ArtifactRow:
        predicted = words.DASH
        if artifact.estimate is not None:
            predicted = f"{latency.text(artifact.estimate.latency_s)} ± {100 * artifact.estimate.error:.0f}%"
        return ArtifactRow(
            candidate=candidate.id,
            runtime=words.runtime(artifact.runtime),
            path=artifact.path,
            size=files.text(artifact.bytes),
            sha256=artifact.sha256,
            accuracy=words.accuracy_text(artifact.accuracy),
            measured=latency.text(artifact.measurement.latency_s if artifact.measurement else None),
            predicted=predicted,
            ram=words.size(artifact.ram_bytes),
            instructions=_instructions(artifact),
            checked=artifact.checked or "",
        )

    return tuple(row(artifact) for artifact in candidate.artifacts)


def unavailable(front: Front) -> tuple[Skipped, ...]:
    """The runtimes of which no artifact could be made, each reason once."""
    found: dict[tuple[str, str], list[str]] = {}
    for candidate in (front.baseline, *front.candidates):
        for missing in candidate.unavailable:
            found.setdefault((missing.runtime, missing.reason), []).append(candidate.id)
    return tuple(Skipped(words.runtime(name), (), reason, _which(front, ids)) for (name, reason), ids in found.items())


def notes(front: Front, facts: RunFacts) -> tuple[Skipped, ...]:
    """What stages and the run left alone or approximated, equal reasons together."""
    found: dict[tuple[str, str], tuple[dict[str, None], dict[str, None]]] = {}

    def add(note: Note, candidate: str | None) -> None:
        places, ids = found.setdefault((note.what, note.why), ({}, {}))
        if note.where:
            places[note.where] = None
        if candidate is not None:
            ids[candidate] = None

    for note in facts.notes:
        add(note, None)
    for candidate in (front.baseline, *front.candidates):
        for record in candidate.records:
            for note in record.notes:
                add(note, candidate.id)
    return tuple(
        Skipped(what, tuple(places), why, _which(front, list(ids)) if ids else "the whole run")
        for (what, why), (places, ids) in found.items()
    )


def _which(front: Front, ids: list[str]) -> str:
    compressed = {c.id for c in front.candidates}
    if compressed and compressed <= set(ids):
        return "every candidate"
    return ", ".join(ids)


def conditions(front: Front) -> tuple[str, ...]:
    """On which device and under which conditions latencies were measured, each combination once."""
    found: dict[str, None] = {}
    for artifact in _all_artifacts(front):
        measurement = artifact.measurement
        if measurement is not None:
            settings = [f"{key.replace('_', ' ')} {_value(value)}" for key, value in measurement.conditions.items()]
            found[", ".join([measurement.device, *settings])] = None
    return tuple(found)


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _instructions(artifact: Artifact) -> str:
    """Those that were counted; else predicted ones with their error."""
    estimate = artifact.estimate
    if artifact.instructions is not None or estimate is None or estimate.instructions_error is None:
        return words.count(artifact.instructions)
    return f"{words.count(estimate.instructions)} ± {100 * estimate.instructions_error:.0f}%, predicted"


def within_error(front: Front) -> tuple[int, int]:
    """How many of the artifacts that were both predicted and measured lie within the predicted range,
    and how many there are."""
    both = [(a.estimate, a.measurement) for a in _all_artifacts(front)]
    known = [(e, m) for e, m in both if e is not None and m is not None]
    return sum(abs(m.latency_s - e.latency_s) <= e.error * e.latency_s for e, m in known), len(known)


def _all_artifacts(front: Front) -> Iterable[Artifact]:
    return (a for candidate in (front.baseline, *front.candidates) for a in candidate.artifacts)
