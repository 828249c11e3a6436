"""A measurement from a device into the front, the candidate's file and the report of the run that the bundle is of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import RunFolderError
from compress.export.manifest import Manifest, read_manifest, sha256
from compress.finished import FRONT, read_finished, replaced
from compress.results import Accuracy, Artifact, Candidate, Front, Measurement, candidate_document
from compress.runfolder import CANDIDATE, SCHEMA, disk_errors, read_run
from compress.serial import to_json, write_json

if TYPE_CHECKING:
    from compress.profiling.remote import Remote
    from compress.report.facts import RunFacts

MEASUREMENTS = "measurements.json"
TYPED = "engine"
"""Where a bundle has the file that an engine is built from."""


def document(found: Remote) -> dict[str, Any]:
    """What ``--json`` prints: the profile, beside the prediction once it is home."""
    from compress.profiling import local

    extra = {k: found.measured[k] for k in ("latency_p99_s", "gpu_s", "gpu_p90_s", "accuracy") if k in found.measured}
    return {
        **local.document(found.profile),
        **extra,
        "probe": dict(found.probe),
        "predicted_s": predicted(found),
        "reconnections": found.reconnections,
    }


def predicted(found: Remote) -> float | None:
    """The seconds that the run predicted for this bundle; None outside of a run."""
    value = found.measured.get("predicted_s")
    return float(value) if value is not None else None


def bring(bundle: Path, found: Remote) -> str:
    """Put a measurement where it belongs, and say where that is.

    The raw words of the device are appended to the candidate's ``measurements.json``. The artifact of that runtime
    gets the measurement, if the golden inputs gave the right outputs; an engine, which only the device could build,
    becomes an artifact once its accuracy was measured there too.

    Raises:
        RunFolderError: the disk is full or can't be written, or ``measurements.json`` is damaged.
    """
    if found.profile.latency_s is None:
        return "printed only: it was emulated, so there is no latency"
    if not found.profile.golden_equal:
        return "printed only: the golden inputs give other outputs there"
    run, name = place_of(bundle)
    if run is None or name is None:
        return "printed only: the bundle isn't in the folder of a run"
    try:
        front, facts = read_finished(run, read_run(run))
    except RunFolderError as error:
        return f"printed only: {error.sentence}"
    everyone = (front.baseline, *front.candidates)
    candidate = next((each for each in everyone if each.id == name), None)
    if candidate is None:
        return f"printed only: the run's front has no candidate {name}"
    folder = run / "candidates" / name
    estimate = candidate.best.estimate
    if isinstance(found.measured, dict) and estimate is not None:
        found.measured["predicted_s"] = estimate.latency_s
    changed = measured(candidate, found, read_manifest(bundle))
    with disk_errors(run):
        _append(folder, found)
        if changed is None:
            return (
                f"in {folder / MEASUREMENTS}: the front takes an engine with its "
                f"accuracy, and the data isn't on this machine"
            )
    return keep(run, front, facts, [changed])


def keep(run: Path, front: Front, facts: RunFacts, changed: Sequence[Candidate]) -> str:
    """Write candidates of which more is known into the front and their own files, draw the report, and say where.

    Raises:
        RunFolderError: the disk is full or can't be written.
    """
    from compress.execution import write_documents

    for each in changed:
        front = replaced(front, each)
    with disk_errors(run):
        write_json(run / FRONT, front.document())
        for each in changed:
            document = {"schema": SCHEMA, "candidate": candidate_document(each, on_front=False)}
            write_json(run / "candidates" / each.id / CANDIDATE, document)
        write_documents(run, front, facts)
    return f"in {run / FRONT} and {run / 'report.html'}"


def place_of(bundle: Path) -> tuple[Path | None, str | None]:
    """The run folder that a bundle is in, and its candidate's id."""
    path = bundle.resolve()
    if path.parent.name == "candidates" and (path.parent.parent / FRONT).is_file():
        return path.parent.parent, path.name
    if (path.parent / FRONT).is_file():
        manifest = path / "manifest.json"
        for other in sorted((path.parent / "candidates").glob("*/manifest.json")):
            if manifest.is_file() and sha256(other) == sha256(manifest):
                return path.parent, other.parent.name
    return None, None


def measured(candidate: Candidate, found: Remote, manifest: Manifest) -> Candidate | None:
    """The candidate with the measurement; None if its runtime has no artifact and no accuracy came along."""
    profile = found.profile
    assert profile.latency_s is not None
    assert profile.latency_p90_s is not None
    conditions = {k: v for k, v in profile.conditions.items() if k not in ("runs", "clocks", "clocks_after")}
    measurement = Measurement(
        profile.latency_s, profile.latency_p90_s, int(found.measured["runs"]), profile.device, conditions
    )
    have = {artifact.runtime: artifact for artifact in candidate.artifacts}
    if profile.runtime in have:
        artifacts = tuple(
            replace(a, measurement=measurement) if a.runtime == profile.runtime else a for a in candidate.artifacts
        )
        return replace(candidate, artifacts=artifacts)
    accuracy = found.measured.get("accuracy")
    if accuracy is None:
        return None
    path = f"{TYPED}/model.onnx"
    entry = next(each for each in manifest.files if each.path == path)
    artifact = Artifact(
        path=f"candidates/{candidate.id}/{path}",
        runtime=profile.runtime,
        plan_digest=candidate.plan.digest(),
        sha256=entry.sha256,
        bytes=profile.flash_bytes,
        accuracy=Accuracy.from_counts(round(accuracy["value"] * accuracy["n"] / 100), accuracy["n"], profile.runtime),
        estimate=candidate.best.estimate,
        measurement=measurement,
        ram_bytes=profile.arena_bytes,
        checked="built, checked and measured on the device from this file",
    )
    rest = tuple(each for each in candidate.unavailable if each.runtime != profile.runtime)
    return replace(candidate, artifacts=(*candidate.artifacts, artifact), unavailable=rest)


def _append(folder: Path, found: Remote) -> None:
    path = folder / MEASUREMENTS
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except ValueError:
        earlier = None
    if not isinstance(earlier, list):
        raise RunFolderError(str(folder), f"{MEASUREMENTS} holds no list", "move it away, and measure again")
    entry = {"profile": to_json(found.profile), "probe": to_json(found.probe), "measured": to_json(found.measured)}
    write_json(path, [*earlier, entry])


__all__ = ["MEASUREMENTS", "bring", "document", "keep", "measured", "place_of"]
