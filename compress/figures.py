"""What is known of one file that ships: accuracy, and latency as a prediction or as a measurement.

These two are different types, so that neither can be printed as the other. ``artifact_document`` is an artifact as
``front.json`` has it, ``artifact_from_document`` reads it back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compress.metric import Metric, MetricName, by_key
from compress.serial import from_json, to_json


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy of one artifact on the evaluation data.

    Attributes:
        value: top-1 in percent, or PSNR in dB.
        low, high: its 95% confidence interval.
        n: how many inputs.
        measured_on: the runtime that gave it: ``onnxruntime``, ``tvm``, ``tensorrt``, or ``torch``
            (a simulation).
        metric: what ``value`` is; ``kind`` says all about it.
        ssim: mean structural similarity beside a PSNR, in [-1, 1]; None elsewhere and for tiny images.
    """

    value: float
    low: float
    high: float
    n: int
    measured_on: str
    metric: MetricName = "top1_percent"
    ssim: float | None = None

    @property
    def kind(self) -> Metric:
        """What is measured."""
        return by_key(self.metric)

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
    """A prediction.

    Attributes:
        latency_s: seconds for one input.
        ram_bytes, flash_bytes: peak working memory, size of the shipped file.
        per_layer: each operator's share of the seconds.
        error: relative half-width of ``latency_s``: 0.5 means plus or minus half. Of a calibrated prediction the one
            that held for nine of ten networks which the calibration hadn't seen.
        calibration: SHA-256 of the calibration that predicted; None where it rests on the target's numbers alone.
        instructions, instructions_error: for one input, and their relative half-width; None where none were counted for
            a calibration.
    """

    latency_s: float
    ram_bytes: int
    flash_bytes: int
    per_layer: tuple[LayerCost, ...]
    error: float
    calibration: str | None = None
    instructions: int | None = None
    instructions_error: float | None = None

    @property
    def interval_s(self) -> tuple[float, float]:
        """The seconds between which a measurement is to be expected."""
        return self.latency_s * max(0.0, 1 - self.error), self.latency_s * (1 + self.error)


@dataclass(frozen=True)
class Measurement:
    """A latency that was measured on the artifact itself.

    Attributes:
        latency_s: median seconds for one input.
        latency_p90_s: 90th percentile.
        runs: timed runs behind both.
        device: the machine it ran on.
        conditions: threads, batch, load and whatever else a reader needs to compare.
        low_s, high_s: a 95% interval of the median; None where it isn't known.
    """

    latency_s: float
    latency_p90_s: float
    runs: int
    device: str
    conditions: Mapping[str, Any] = field(default_factory=dict)
    low_s: float | None = None
    high_s: float | None = None


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A runtime whose artifact couldn't be made, and why. Reports must show it."""

    runtime: str
    reason: str


@dataclass(frozen=True, slots=True)
class EightBits:
    """What an artifact with weights narrower than 8 bits is compared with: the same network's with 8-bit ones.

    Attributes:
        path: relative to the run folder; it doesn't ship.
        bytes: what it takes of the device's flash or disk.
        estimate, measurement, instructions: as an :class:`Artifact`'s.
    """

    path: str
    bytes: int
    estimate: Estimate | None
    measurement: Measurement | None
    instructions: int | None


@dataclass(frozen=True)
class Artifact:
    """A file that ships, and what is known of it.

    Attributes:
        path: relative to the run folder.
        bytes: what it takes of the device's flash or disk.
        checked: what was checked of compiled code, and where; None where there was nothing to check.
        instructions: for one input, counted by an emulator: no time.
        at_8_bits: what narrow weights are compared with; None where none is narrower than 8 bits.
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
    at_8_bits: EightBits | None = None

    @property
    def latency_s(self) -> float | None:
        """Measured seconds if there are any, else predicted ones."""
        if self.measurement is not None:
            return self.measurement.latency_s
        return self.estimate.latency_s if self.estimate is not None else None


def latency_document(estimate: Estimate | None, measurement: Measurement | None) -> dict[str, Any]:
    """Predicted and measured latency side by side, null where unknown."""
    return {
        "predicted_s": estimate.latency_s if estimate else None,
        "error": estimate.error if estimate else None,
        "calibration": estimate.calibration if estimate else None,
        "measured_s": measurement.latency_s if measurement else None,
        "device": measurement.device if measurement else None,
        "measured_p90_s": measurement.latency_p90_s if measurement else None,
        "measured_low_s": measurement.low_s if measurement else None,
        "measured_high_s": measurement.high_s if measurement else None,
        "runs": measurement.runs if measurement else None,
        "conditions": dict(measurement.conditions) if measurement else None,
    }


def artifact_document(artifact: Artifact) -> dict[str, Any]:
    """One artifact as ``front.json`` has it."""
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
        "at_8_bits": None if artifact.at_8_bits is None else _eight_bits_document(artifact.at_8_bits),
    }


def _eight_bits_document(eight: EightBits) -> dict[str, Any]:
    return {
        "path": eight.path,
        "bytes": eight.bytes,
        "latency": latency_document(eight.estimate, eight.measurement),
        "instructions": eight.instructions,
        "estimate": to_json(eight.estimate),
    }


def artifact_from_document(document: Mapping[str, Any], digest: str) -> Artifact:
    """One artifact of ``front.json``; ``digest`` is its candidate's plan's."""
    accuracy, recall, eight = document["accuracy"], document.get("recall"), document.get("at_8_bits")
    return Artifact(
        path=document["path"],
        runtime=document["runtime"],
        plan_digest=digest,
        sha256=document["sha256"],
        bytes=document["bytes"],
        accuracy=from_json(Accuracy, accuracy) if accuracy is not None else None,
        estimate=_estimate(document),
        measurement=_measurement(document),
        ram_bytes=document["ram_bytes"],
        recall=from_json(ClassRecall, recall) if recall is not None else None,
        checked=document.get("checked"),
        instructions=document.get("instructions"),
        at_8_bits=None if eight is None else _eight_bits_from_document(eight),
    )


def _eight_bits_from_document(document: Mapping[str, Any]) -> EightBits:
    found = _estimate(document), _measurement(document)
    return EightBits(document["path"], document["bytes"], *found, document["instructions"])


def _estimate(document: Mapping[str, Any]) -> Estimate | None:
    return from_json(Estimate, document["estimate"]) if document["estimate"] is not None else None


def _measurement(document: Mapping[str, Any]) -> Measurement | None:
    latency = document["latency"]
    if latency["measured_s"] is None:
        return None
    return Measurement(
        latency["measured_s"],
        latency["measured_p90_s"],
        latency["runs"],
        latency["device"],
        latency["conditions"],
        latency.get("measured_low_s"),
        latency.get("measured_high_s"),
    )
