"""An explanation as rows and sentences, the same for the page, the terminal, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.explanation import Explanation, LayerWork, Reason, Remedy, Why
from compress.report import gains, words
from compress.results import Candidate, Front
from compress.serial import to_json

MEANING: Mapping[Why, str] = {
    "launch-bound": "starting the operator takes longer than its work",
    "memory-bound": "moving its weights and activations takes longer than computing",
    "compute-bound": "arithmetic takes the longest: fewer MACs make it faster",
    "misaligned": "kernels fill its channels up to a multiple that it doesn't have",
    "unfused": "it runs by itself, where it usually goes with the layer in front of it",
    "no fast kernel": "the device has no faster kernel for its bits",
    "float island": "it stays in float32 among integer layers",
    "dominated": "it kept its MACs, and now holds up the others",
}


@dataclass(frozen=True)
class LayerRow:
    """One layer as text; ``share`` is its percentage of the time, and of the float network's where that is known."""

    name: str
    kind: str
    macs: str
    macs_before: str
    bytes: str
    intensity: str
    ridge: str
    precision: str
    time: str
    before: str
    share: float
    share_text: str
    share_before: float | None
    whys: tuple[Why, ...]
    bound: Why
    padded: str


@dataclass(frozen=True)
class Grouped:
    """One kind of reason: its layers, their share of the time, and the sentence of the one that takes longest."""

    why: Why
    layers: tuple[str, ...]
    share: str
    text: str
    meaning: str


@dataclass(frozen=True)
class View:
    """All that is shown of one candidate's explanation; ``largest`` is the largest percentage that is drawn."""

    candidate: str
    known: str
    rows: tuple[LayerRow, ...]
    rest: str | None
    reasons: tuple[Grouped, ...]
    remedies: tuple[str, ...]
    measured: bool
    has_before: bool
    largest: float


def view(front: Front, candidate: Candidate) -> View | None:
    """What is shown of a candidate; None where nothing was recorded."""
    found = candidate.explanation
    if found is None or not found.layers:
        return None
    unit = words.latency_unit([found.total_s, *(layer.time_s for layer in found.layers if layer.time_s)])
    whys: dict[str, list[Why]] = {}
    for reason in found.reasons:
        whys.setdefault(reason.layer, []).append(reason.why)
    rows = tuple(_row(layer, found, unit, tuple(whys.get(layer.name, ()))) for layer in found.layers)
    return View(
        candidate.id,
        known_sentence(candidate, found),
        rows,
        _rest(found, unit),
        grouped(found.reasons),
        tuple(remedy_sentence(remedy) for remedy in remedies(front, candidate)),
        found.measured is not None,
        any(layer.before_s is not None for layer in found.layers),
        max(max(row.share, row.share_before or 0.0) for row in rows) or 1.0,
    )


def known_sentence(candidate: Candidate, found: Explanation) -> str:
    """How the layers' times are known, in a sentence or two."""
    measured = found.measured
    if measured is None:
        half = f"± {100 * found.error:.0f}%"
        return f"Times by layer are predicted by the target's latency model ({half} on the whole), not measured."
    said = (
        f"Times by layer are measured: {words.runtime(measured.runtime)}'s own clock, {measured.runs} runs on "
        f"{measured.device}."
    )
    if measured.noisy:
        said += " The machine was busy meanwhile: explain again when it is idle."
    if candidate.best.runtime != measured.runtime:
        said += (
            f" The file that counts runs by {words.runtime(candidate.best.runtime)}, which gives no times by layer; "
            f"these are of the same network's ONNX file."
        )
    return said


def _row(layer: LayerWork, found: Explanation, unit: words.Unit, whys: tuple[Why, ...]) -> LayerRow:
    total = found.total_s
    all_before = sum((each.before_s or 0.0 for each in found.layers), start=0.0)
    share = layer.time_s / total if total else 0.0
    was = layer.before_s
    return LayerRow(
        name=layer.name,
        kind=layer.kind,
        macs=words.count(layer.macs) if layer.macs else words.DASH,
        macs_before=words.count(layer.macs_before) if layer.macs_before else words.DASH,
        bytes=words.size(layer.bytes),
        intensity=number(layer.intensity) if layer.macs else words.DASH,
        ridge=number(layer.ridge) if layer.macs else words.DASH,
        precision=str(layer.precision) + (f" as {layer.computed_as}" if layer.computed_as != layer.precision else ""),
        time=_time(layer.time_s, found, unit),
        before=_time(was, found, unit),
        share=100 * share,
        share_text=words.percent(share, 1 if share < 0.1 else 0),
        share_before=100 * was / all_before if was is not None and all_before else None,
        whys=whys,
        bound=layer.bound,
        padded=words.times(layer.padded_macs / layer.macs) if layer.macs else words.DASH,
    )


def _time(seconds: float | None, found: Explanation, unit: words.Unit) -> str:
    """A time; of what the runtime computes with another layer, so that its clock has none, that it is fused."""
    return "fused" if seconds == 0 and found.measured is not None else unit.text(seconds)


def number(value: float) -> str:
    """A ratio with two digits."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _rest(found: Explanation, unit: words.Unit) -> str | None:
    measured = found.measured
    if measured is None or measured.rest_s <= 0:
        return None
    share = words.percent(measured.rest_s / found.total_s) if found.total_s else words.DASH
    return (
        f"Besides the layers, {words.runtime(measured.runtime)} takes {unit.text(measured.rest_s)} ({share}) for "
        f"{', '.join(measured.rest)}."
    )


def grouped(reasons: Sequence[Reason]) -> tuple[Grouped, ...]:
    """The reasons by their kind, the kind with the largest share first."""
    kinds: dict[Why, list[Reason]] = {}
    for reason in reasons:
        kinds.setdefault(reason.why, []).append(reason)
    ordered = sorted(kinds.items(), key=lambda item: (-sum(r.share for r in item[1]), item[0]))
    return tuple(
        Grouped(
            why,
            tuple(reason.layer for reason in those),
            words.percent(min(1.0, sum(reason.share for reason in those))),
            those[0].text,
            MEANING[why],
        )
        for why, those in ordered
    )


def remedies(front: Front, candidate: Candidate) -> tuple[Remedy, ...]:
    """What would help a candidate: what its explanation names, and another runtime where one was measured faster."""
    found = candidate.explanation.remedies if candidate.explanation is not None else ()
    best = candidate.best
    faster = []
    for artifact in candidate.artifacts:
        both = gains.latencies(best, artifact)
        if artifact.runtime == best.runtime or both is None or both[2] != "measured":
            continue
        if both[0] >= 1.05 * both[1]:
            text = f"run it by {words.runtime(artifact.runtime)} (--runtime {artifact.runtime})"
            faster.append(Remedy("", "runtime", text, both[0] - both[1], 1 - both[1] / both[0], "measured"))
    return (*sorted(faster, key=lambda remedy: -remedy.saves_s), *found)


def remedy_sentence(remedy: Remedy) -> str:
    """A remedy with what it saves."""
    where = f"{remedy.layer}: " if remedy.layer else ""
    saves = f"{words.seconds(remedy.saves_s)} less, {words.percent(remedy.saves)} of the time"
    return f"{where}{remedy.text}: {saves} ({remedy.known})"


def document(front: Front, candidate: Candidate) -> dict[str, Any]:
    """A candidate's explanation as JSON: every recorded number, and what is derived from them."""
    found = candidate.explanation
    if found is None:
        return {"candidate": candidate.id, "known": None, "layers": [], "reasons": [], "remedies": []}
    total = found.total_s

    def layer(each: LayerWork) -> dict[str, Any]:
        return {
            **to_json(each),
            "time_s": each.time_s,
            "share": each.time_s / total if total else 0.0,
            "intensity_macs_per_byte": each.intensity,
            "ridge_macs_per_byte": each.ridge,
            "bound": each.bound,
            "reasons": [reason.why for reason in found.reasons if reason.layer == each.name],
        }

    return {
        "candidate": candidate.id,
        "target": front.target,
        "known": found.known,
        "total_s": total,
        "error": found.error if found.measured is None else None,
        "channel_multiple": found.channel_multiple,
        "measured": to_json(found.measured),
        "layers": [layer(each) for each in found.layers],
        "reasons": to_json(found.reasons),
        "remedies": to_json(remedies(front, candidate)),
    }


__all__ = ["MEANING", "Grouped", "LayerRow", "View", "document", "grouped", "remedies", "remedy_sentence", "view"]
