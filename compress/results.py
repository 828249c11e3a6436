"""What was found: candidates with their artifacts, and the front.

``Front.document()`` is ``front.json``; ``Front.from_document`` reads it back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from compress.explanation import Explanation
from compress.figures import (
    Accuracy,
    Artifact,
    ClassRecall,
    EightBits,
    Estimate,
    LayerCost,
    Measurement,
    Unavailable,
    artifact_document,
    artifact_from_document,
    latency_document,
)
from compress.metric import TOP1, Metric
from compress.serial import from_json, to_json
from compress.types import Budget, Plan, Record

SCHEMA = 1


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

    ``explanation`` says where its time goes, layer by layer, and why; None where nobody recorded it. ``folder`` is
    where its files lie on this machine; it is not written to ``front.json``.
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
    explanation: Explanation | None = None

    @property
    def bit_operations(self) -> int | None:
        """Multiply-accumulates times weight bits times activation bits, over its layers; None if unknown."""
        return sum(each.macs * each.weight_bits * each.activation_bits for each in self.layers) or None

    @property
    def considered(self) -> tuple[Artifact, ...]:
        """The artifact of the runtime that was asked for, else all."""
        return tuple(a for a in self.artifacts if self.runtime in (None, a.runtime)) or self.artifacts

    @property
    def best(self) -> Artifact:
        """The fastest of :attr:`considered`, measured before predicted."""
        return min(
            self.considered, key=lambda a: (a.measurement is None, a.latency_s if a.latency_s is not None else math.inf)
        )

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
    def metric(self) -> Metric:
        """What accuracy is here: the float network's metric, else that of the first file that has one."""
        known = (c.accuracy for c in (self.baseline, *self.candidates))
        return next((accuracy.kind for accuracy in known if accuracy is not None), TOP1)

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
        """By how much each limit is exceeded, relative to the limit (points or dB for accuracy); empty if none is."""
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
        was given, the fastest within the metric's own ``drop`` of the float network, or if none is
        so near, the most accurate. Ties go to the more accurate, then to the smaller.
        """
        budget = budget or self.budget
        fitting = [c for c in self.candidates if not self.violations(c, budget)]
        if not fitting:
            return None
        near = [c for c in fitting if self.baseline.value - c.value <= self.metric.drop + 1e-9]
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
        "artifacts": [artifact_document(a) for a in candidate.artifacts],
        "unavailable": to_json(candidate.unavailable),
        "runtime": candidate.runtime,
        "plan": to_json(candidate.plan),
        "layers": to_json(candidate.layers),
        "records": to_json(candidate.records),
        "explanation": to_json(candidate.explanation),
    }


def candidate_from_document(document: Mapping[str, Any]) -> Candidate:
    """One candidate of ``front.json``."""
    digest, explained = document["plan_digest"], document.get("explanation")
    return Candidate(
        id=document["id"],
        plan=from_json(Plan, document["plan"]),
        artifacts=tuple(artifact_from_document(a, digest) for a in document["artifacts"]),
        unavailable=from_json(tuple[Unavailable, ...], document["unavailable"]),
        macs=document["macs"],
        params=document["params"],
        weight_bits=document["weight_bits"],
        activation_bits=document["activation_bits"],
        layers=from_json(tuple[LayerFact, ...], document["layers"]),
        records=from_json(tuple[Record, ...], document["records"]),
        runtime=document["runtime"],
        explanation=from_json(Explanation, explained) if explained is not None else None,
    )


__all__ = [
    "SCHEMA",
    "Accuracy",
    "Artifact",
    "Candidate",
    "ClassRecall",
    "Dataset",
    "EightBits",
    "Estimate",
    "Front",
    "LayerCost",
    "LayerFact",
    "Measurement",
    "Unavailable",
    "candidate_document",
    "candidate_from_document",
]
