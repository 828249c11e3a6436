"""What was gained, in words: the headline of every report, and why a smaller network isn't faster.

A speed-up compares two measurements from the same device, or else two predictions; a measurement is
never set against a prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from compress.report import words
from compress.results import Artifact, Candidate, EightBits, Front

LatencyKind = Literal["measured", "predicted"]

# Below these the difference isn't worth a sentence: timers and models are no finer.
_SAME = 1.05
_FEWER_MACS = 1.3

_BOUNDS = {
    "launch": "the fixed cost of starting each operator, which doesn't shrink with the network",
    "memory": "moving weights and activations",
    "compute": "arithmetic",
}


@dataclass(frozen=True)
class Gain:
    """A candidate against the float baseline.

    Attributes:
        size, macs: baseline over candidate; above 1 is smaller.
        speed: baseline's latency over the candidate's; None where the two can't be compared.
        kind: whether ``speed`` compares measurements or predictions.
        accuracy: candidate minus baseline, in points or dB; None where either isn't known.
    """

    size: float
    macs: float
    speed: float | None
    kind: LatencyKind | None
    accuracy: float | None


def latencies(old: Artifact | EightBits, new: Artifact) -> tuple[float, float, LatencyKind] | None:
    """Seconds of both, and how they are known: measured on one device, or else predicted; None where neither holds."""
    if old.measurement and new.measurement and old.measurement.device == new.measurement.device:
        return old.measurement.latency_s, new.measurement.latency_s, "measured"
    if old.estimate and new.estimate:
        return old.estimate.latency_s, new.estimate.latency_s, "predicted"
    return None


def compare(baseline: Candidate, candidate: Candidate) -> Gain:
    """What ``candidate`` gains over ``baseline``."""
    old, new = baseline.best, candidate.best
    speed: float | None = None
    kind: LatencyKind | None = None
    both = latencies(old, new)
    if both is not None:
        speed, kind = both[0] / both[1], both[2]
    accuracy = new.accuracy.value - old.accuracy.value if old.accuracy and new.accuracy else None
    return Gain(old.bytes / new.bytes, baseline.macs / max(1, candidate.macs), speed, kind, accuracy)


def ratio_text(ratio: float, better: str, worse: str) -> str:
    """A ratio above 1 as so many times ``better``, below 1 as ``worse``; none where the two are nearly equal."""
    if ratio >= _SAME:
        return f"{words.times(ratio)} {better}"
    return f"{words.times(1 / ratio)} {worse}" if ratio <= 1 / _SAME else f"no {better}"


def parts(front: Front, candidate: Candidate) -> tuple[str, ...]:
    """The headline's clauses for ``candidate``: size, speed with how it is known, accuracy."""
    gain = compare(front.baseline, candidate)
    found = [ratio_text(gain.size, "smaller", "larger")]
    if gain.speed is None:
        found.append("speed unknown")
    else:
        found.append(f"{ratio_text(gain.speed, 'faster', 'slower')} ({gain.kind})")
    found.append(_accuracy_clause(front.baseline, candidate, gain))
    return tuple(found)


def _accuracy_clause(baseline: Candidate, candidate: Candidate, gain: Gain) -> str:
    accuracy, reference = candidate.accuracy, baseline.accuracy
    if accuracy is None or reference is None or gain.accuracy is None:
        return "accuracy unknown"
    # The difference of the figures as printed, so that a reader who subtracts finds the same.
    decimals = words.accuracy_decimals(accuracy)
    difference = round(round(accuracy.value, decimals) - round(reference.value, decimals), decimals)
    simulated = " (simulated)" if accuracy.measured_on == "torch" else ""
    if difference == 0:
        return f"the same {accuracy.kind.name} as the float network{simulated}"
    amount = words.points(difference, accuracy)
    how = accuracy.kind.more if difference > 0 else accuracy.kind.less
    return f"{amount} {how} than the float network{simulated}"


def subject(front: Front) -> Candidate | None:
    """The candidate that a report is about: the best, else the nearest to the budget, else none."""
    if not front.candidates:
        return None
    return front.best() or front.nearest()


def clauses(front: Front) -> tuple[str, ...]:
    """The headline's clauses: what the best candidate gains, or that there is none."""
    best = front.best() if front.candidates else None
    if best is not None:
        return parts(front, best)
    return ("No candidate meets the budget" if front.candidates else "No candidate was made",)


def headline(front: Front) -> str:
    """What the run gained, in one sentence without a full stop."""
    return ", ".join(clauses(front))


def choice(front: Front) -> str:
    """Why the best candidate was chosen, or which one comes nearest and by how much it misses."""
    if not front.candidates:
        return "The run ended without a candidate; what was skipped and why stands below."
    best = front.best()
    if best is None:
        nearest = front.nearest()
        over = "; ".join(_excess(name, by, nearest) for name, by in front.violations(nearest).items())
        return f"{nearest.id} comes nearest: {over}."
    asked = front.budget.max_accuracy_drop
    within = asked if asked is not None else front.metric.drop
    amount = front.metric.difference(within)
    if asked is not None or front.baseline.value - best.value <= within + 1e-9:
        meets = "that meets the limits, " if words.budget_text(replace(front.budget, max_accuracy_drop=None)) else ""
        return f"{best.id} is the fastest candidate {meets}within {amount} of the float network."
    return f"{best.id} is the most accurate candidate; none is within {amount} of the float network."


def _excess(name: str, by: float, candidate: Candidate) -> str:
    if name == "accuracy drop" and candidate.accuracy is not None:
        return f"{words.points(by, candidate.accuracy)} more {candidate.accuracy.kind.name} lost than allowed"
    return f"{name} is {words.percent(by)} over the limit" if by != float("inf") else f"{name} isn't known"


def bound_shares(candidate: Candidate) -> tuple[tuple[str, float], ...]:
    """Share of the predicted latency by what bounds it, largest first; empty without a prediction by layer."""
    estimate = candidate.best.estimate
    if estimate is None:
        return ()
    total = sum(layer.latency_s for layer in estimate.per_layer)
    if total <= 0:
        return ()
    by_bound: dict[str, float] = {}
    for layer in estimate.per_layer:
        by_bound[layer.bound] = by_bound.get(layer.bound, 0.0) + layer.latency_s / total
    return tuple(sorted(by_bound.items(), key=lambda item: (-item[1], item[0])))


def why_not_faster(front: Front, candidate: Candidate) -> str | None:
    """Why the speed-up stays behind the fewer MACs, in one or two sentences; None where it doesn't.

    Only what the latency model says is given as a cause, and it is named as a prediction.
    """
    gain = compare(front.baseline, candidate)
    if gain.speed is None:
        return None
    smaller = gain.macs >= _FEWER_MACS or gain.size >= _FEWER_MACS
    if not (smaller and gain.speed < _SAME) and not (gain.macs >= _FEWER_MACS and gain.speed < 0.75 * gain.macs):
        return None
    macs = f"{words.times(gain.macs)} fewer MACs" if gain.macs >= _FEWER_MACS else "It is smaller"
    fact = f"{macs}, but {ratio_text(gain.speed, 'faster', 'slower')} ({gain.kind})"
    if gain.macs >= _FEWER_MACS and gain.speed >= _SAME:
        fact = f"{macs}, but only {ratio_text(gain.speed, 'faster', 'slower')} ({gain.kind})"
    shares = [(bound, part) for bound, part in bound_shares(candidate) if part >= 0.05]
    if not shares:
        return f"{fact}. There is no prediction by layer that could say why."
    listed = ", ".join(f"{words.percent(part)} is {_BOUNDS.get(bound, bound)}" for bound, part in shares)
    return f"{fact}. Of its predicted time, {listed}."
