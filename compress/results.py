"""What was found: accuracies, predictions and measurements (two types, so that neither can be
printed as the other), artifacts, candidates and the front.

``Front.document()`` is ``front.json``; ``Front.from_document`` reads it back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from compress.serial import from_json, to_json
from compress.types import Budget, Plan, Record

SCHEMA = 1
DEFAULT_DROP = 1.0
"""Points of accuracy (percent, or dB) that a candidate may lose where the user named no limit."""
Metric = Literal["top1_percent", "psnr_db"]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy of one artifact on the evaluation data.

    Attributes:
        value: top-1 in percent, or PSNR in dB.
        low, high: its 95% confidence interval.
        n: how many inputs.
        measured_on: the runtime that gave it: ``onnxruntime``, ``tvm``, ``tensorrt``, or ``torch``
            (a simulation).
        metric: what ``value`` is.
    """

    value: float
    low: float
    high: float
    n: int
    measured_on: str
    metric: Metric = "top1_percent"

    @classmethod
    def from_counts(cls, correct: int, n: int, measured_on: str) -> Accuracy:
        """Top-1 with Wilson's score interval at 95% (Wilson 1927), in percent."""
        z = 1.959963984540054
        p = correct / n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return cls(100 * p, 100 * max(0.0, centre - half), 100 * min(1.0, centre + half), n, measured_on)


@dataclass(frozen=True, slots=True)
class ClassRecall:
    """Of each class's ``n`` evaluation inputs the ``percent`` that an artifact finds, None of none."""

    classes: tuple[str, ...]
    percent: tuple[float | None, ...]
    n: tuple[int, ...]
    protected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One operator's share of an estimate: name, multiply-accumulates, weight bytes, seconds, and
    what bounds it (``"compute"``, ``"memory"`` or ``"launch"``)."""

    name: str
    macs: int
    weight_bytes: int
    latency_s: float
    bound: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """A prediction. ``error`` is the relative half-width of ``latency_s``: 0.5 means plus or minus half."""

    latency_s: float
    ram_bytes: int
    flash_bytes: int
    per_layer: tuple[LayerCost, ...]
    error: float


@dataclass(frozen=True)
class Measurement:
    """A latency that was measured on the artifact itself.

    Attributes:
        latency_s: median seconds for one input.
        latency_p90_s: 90th percentile.
        runs: timed runs behind both.
        device: the machine it ran on.
        conditions: threads, batch, load and whatever else a reader needs to compare.
    """

    latency_s: float
    latency_p90_s: float
    runs: int
    device: str
    conditions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A runtime whose artifact couldn't be made, and why. Reports must show it."""

    runtime: str
    reason: str


@dataclass(frozen=True)
class Artifact:
    """A file that ships, and what is known of it.

    Attributes:
        path: relative to the run folder.
        bytes: what it takes of the device's flash or disk.
        checked: what was checked of compiled code, and where; None where there was nothing to check.
        instructions: for one input, counted by an emulator: no time.
    """

    path: str
    runtime: str
    plan_digest: str
    sha256: str
    bytes: int
    accuracy: Accuracy | None
    estimate: Estimate | None
    measurement: Measurement | None
    ram_bytes: int | None
    recall: ClassRecall | None = None
    checked: str | None = None
    instructions: int | None = None

    @property
    def latency_s(self) -> float | None:
        """Measured seconds if there are any, else predicted ones."""
        if self.measurement is not None:
            return self.measurement.latency_s
        return self.estimate.latency_s if self.estimate is not None else None


@dataclass(frozen=True, slots=True)
class LayerFact:
    """What one convolution or linear layer became, for the report's picture."""

    name: str
    kind: str
    channels: int
    channels_before: int
    weight_bits: int
    activation_bits: int
    params: int
    macs: int
    macs_before: int


@dataclass(frozen=True)
class Candidate:
    """One compressed network with its artifacts. Its own figures are those of :attr:`best`.

    ``folder`` is where its files lie on this machine; it is not written to ``front.json``.
    """

    id: str
    plan: Plan
    artifacts: tuple[Artifact, ...]
    unavailable: tuple[Unavailable, ...]
    macs: int
    params: int
    weight_bits: float
    activation_bits: float
    layers: tuple[LayerFact, ...] = ()
    records: tuple[Record, ...] = ()
    runtime: str | None = None
    folder: str | None = field(default=None, compare=False)

    @property
    def bit_operations(self) -> int | None:
        """Multiply-accumulates times weight bits times activation bits, over its layers; None if unknown."""
        return sum(each.macs * each.weight_bits * each.activation_bits for each in self.layers) or None

    @property
    def best(self) -> Artifact:
        """The artifact of the runtime that was asked for, else the fastest one, measured before predicted."""
        chosen = [a for a in self.artifacts if self.runtime in (None, a.runtime)] or list(self.artifacts)
        return min(chosen, key=lambda a: (a.measurement is None, a.latency_s if a.latency_s is not None else math.inf))

    @property
    def accuracy(self) -> Accuracy | None:
        """Accuracy of the best artifact; None where it isn't known."""
        return self.best.accuracy

    @property
    def value(self) -> float:
        """Accuracy as a number; minus infinity where it isn't known."""
        return self.accuracy.value if self.accuracy is not None else -math.inf


@dataclass(frozen=True, slots=True)
class Dataset:
    """The evaluation data by name and digest."""

    name: str
    sha256: str
    n_eval: int


@dataclass(frozen=True)
class Front:
    """Candidates of one run beside the float baseline. A value: adding gives a new front."""

    model: str
    target: str
    dataset: Dataset
    baseline: Candidate
    candidates: tuple[Candidate, ...] = ()
    budget: Budget = Budget()

    def with_candidate(self, candidate: Candidate) -> Front:
        """A new front that has ``candidate``, in place of one of the same id if there is one."""
        others = tuple(c for c in self.candidates if c.id != candidate.id)
        return replace(self, candidates=(*others, candidate))

    @property
    def all_measured(self) -> bool:
        """True if every candidate has a measured latency, so that measured ones are compared."""
        return bool(self.candidates) and all(c.best.measurement is not None for c in self.candidates)

    def latency_s(self, candidate: Candidate) -> float:
        """The latency by which candidates are compared: measured if all have one, else predicted."""
        best = candidate.best
        if self.all_measured and best.measurement is not None:
            return best.measurement.latency_s
        return best.estimate.latency_s if best.estimate is not None else math.inf

    def on_front(self) -> tuple[Candidate, ...]:
        """The candidates undominated in accuracy against latency, ties broken by flash, fastest first."""
        ordered = sorted(self.candidates, key=lambda c: (self.latency_s(c), -c.value, c.best.bytes, c.id))
        front: list[Candidate] = []
        for candidate in ordered:
            if not front or candidate.value > front[-1].value:
                front.append(candidate)
        return tuple(front)

    def violations(self, candidate: Candidate, budget: Budget | None = None) -> dict[str, float]:
        """By how much each limit is exceeded, relative to the limit (points for accuracy); empty if none is."""
        budget = budget or self.budget
        over: dict[str, float] = {}
        limits: list[tuple[str, float | None, float | None]] = [
            ("latency", self.latency_s(candidate), budget.latency_s),
            ("RAM", candidate.best.ram_bytes, budget.ram_bytes),
            ("flash", candidate.best.bytes, budget.flash_bytes),
            ("MACs", candidate.macs / self.baseline.macs, budget.macs and budget.macs * 1.02),
            ("parameters", candidate.params / self.baseline.params, budget.params and budget.params * 1.02),
            ("average weight bits", candidate.weight_bits, budget.weight_bits),
            ("activation bits", candidate.activation_bits, budget.activation_bits),
            ("bit operations", candidate.bit_operations, budget.bit_operations),
        ]
        for name, value, limit in limits:
            if value is not None and limit is not None and value > limit * (1 + 1e-9):
                over[name] = value / limit - 1
        if budget.max_accuracy_drop is not None:
            drop = self.baseline.value - candidate.value
            if drop > budget.max_accuracy_drop + 1e-9:
                over["accuracy drop"] = drop - budget.max_accuracy_drop
        return over

    def best(self, budget: Budget | None = None) -> Candidate | None:
        """The candidate to ship under ``budget`` (the run's own by default); None if none meets it.

        Of those that meet it, the fastest whose accuracy is within the allowed drop; where no drop
        was given, the fastest within :data:`DEFAULT_DROP` points of the float network, or if none is
        so near, the most accurate. Ties go to the more accurate, then to the smaller.
        """
        budget = budget or self.budget
        fitting = [c for c in self.candidates if not self.violations(c, budget)]
        if not fitting:
            return None
        near = [c for c in fitting if self.baseline.value - c.value <= DEFAULT_DROP + 1e-9]
        if budget.max_accuracy_drop is not None or near:
            pool = fitting if budget.max_accuracy_drop is not None else near
            return min(pool, key=lambda c: (self.latency_s(c), -c.value, c.best.bytes, c.id))
        return min(fitting, key=lambda c: (-c.value, self.latency_s(c), c.best.bytes, c.id))

    def nearest(self, budget: Budget | None = None) -> Candidate:
        """The candidate that exceeds the budget least (largest excess first)."""
        return min(self.candidates, key=lambda c: (max(self.violations(c, budget).values(), default=0.0), c.id))

    def document(self) -> dict[str, Any]:
        """``front.json``: every key always present, null where unknown."""
        front = {c.id for c in self.on_front()}
        best = self.best() if self.candidates else None
        return {
            "schema": SCHEMA,
            "model": self.model,
            "target": self.target,
            "dataset": to_json(self.dataset),
            "budget": to_json(self.budget),
            "baseline": candidate_document(self.baseline, False),
            "candidates": [candidate_document(c, c.id in front) for c in self.candidates],
            "best": best.id if best else None,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Front:
        """The front that :meth:`document` was made from.

        Raises:
            ValueError: the document has another schema number.
        """
        if document.get("schema") != SCHEMA:
            raise ValueError(f"front.json has schema {document.get('schema')!r}, this version reads {SCHEMA}")
        return cls(
            model=document["model"],
            target=document["target"],
            dataset=from_json(Dataset, document["dataset"]),
            baseline=candidate_from_document(document["baseline"]),
            candidates=tuple(candidate_from_document(c) for c in document["candidates"]),
            budget=from_json(Budget, document["budget"]),
        )


def latency_document(estimate: Estimate | None, measurement: Measurement | None) -> dict[str, Any]:
    """Predicted and measured latency side by side, null where unknown."""
    return {
        "predicted_s": estimate.latency_s if estimate else None,
        "error": estimate.error if estimate else None,
        "measured_s": measurement.latency_s if measurement else None,
        "device": measurement.device if measurement else None,
        "measured_p90_s": measurement.latency_p90_s if measurement else None,
        "runs": measurement.runs if measurement else None,
        "conditions": dict(measurement.conditions) if measurement else None,
    }


def candidate_document(candidate: Candidate, on_front: bool) -> dict[str, Any]:
    """One candidate as ``front.json`` has it."""
    best = candidate.best
    return {
        "id": candidate.id,
        "plan_digest": candidate.plan.digest(),
        "accuracy": to_json(best.accuracy),
        "latency": latency_document(best.estimate, best.measurement),
        "ram_bytes": best.ram_bytes,
        "flash_bytes": best.bytes,
        "macs": candidate.macs,
        "params": candidate.params,
        "weight_bits": candidate.weight_bits,
        "activation_bits": candidate.activation_bits,
        "on_front": on_front,
        "artifacts": [_artifact_document(a) for a in candidate.artifacts],
        "unavailable": to_json(candidate.unavailable),
        "runtime": candidate.runtime,
        "plan": to_json(candidate.plan),
        "layers": to_json(candidate.layers),
        "records": to_json(candidate.records),
    }


def candidate_from_document(document: Mapping[str, Any]) -> Candidate:
    """One candidate of ``front.json``."""
    digest = document["plan_digest"]
    return Candidate(
        id=document["id"],
        plan=from_json(Plan, document["plan"]),
        artifacts=tuple(_artifact_from_document(a, digest) for a in document["artifacts"]),
        unavailable=from_json(tuple[Unavailable, ...], document["unavailable"]),
        macs=document["macs"],
        params=document["params"],
        weight_bits=document["weight_bits"],
        activation_bits=document["activation_bits"],
        layers=from_json(tuple[LayerFact, ...], document["layers"]),
        records=from_json(tuple[Record, ...], document["records"]),
        runtime=document["runtime"],
    )


def _artifact_document(artifact: Artifact) -> dict[str, Any]:
    return {
        "runtime": artifact.runtime,
        "path": artifact.path,
        "sha256": artifact.sha256,
        "bytes": artifact.bytes,
        "accuracy": to_json(artifact.accuracy),
        "latency": latency_document(artifact.estimate, artifact.measurement),
        "ram_bytes": artifact.ram_bytes,
        "estimate": to_json(artifact.estimate),
        "recall": to_json(artifact.recall),
        "checked": artifact.checked,
        "instructions": artifact.instructions,
    }


def _artifact_from_document(document: Mapping[str, Any], digest: str) -> Artifact:
    latency = document["latency"]
    measurement = None
    if latency["measured_s"] is not None:
        measurement = Measurement(
            latency["measured_s"], latency["measured_p90_s"], latency["runs"], latency["device"], latency["conditions"]
        )
    estimate, accuracy, recall = document["estimate"], document["accuracy"], document.get("recall")
    return Artifact(
        path=document["path"],
        runtime=document["runtime"],
        plan_digest=digest,
        sha256=document["sha256"],
        bytes=document["bytes"],
        accuracy=from_json(Accuracy, accuracy) if accuracy is not None else None,
        estimate=from_json(Estimate, estimate) if estimate is not None else None,
        measurement=measurement,
        ram_bytes=document["ram_bytes"],
        recall=from_json(ClassRecall, recall) if recall is not None else None,
        checked=document.get("checked"),
        instructions=document.get("instructions"),
    )
