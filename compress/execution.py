"""Do a job in a run folder: make the candidates that aren't there yet, time them all, write what was found."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from compress import __version__
from compress.building import Unfit, build
from compress.errors import BadInput, CheckFailed
from compress.export import bundle
from compress.export.manifest import read_manifest
from compress.job import Assessment, Job, assess
from compress.profiling import artifacts, session, timer
from compress.report.facts import RunFacts
from compress.results import Artifact, Candidate, Dataset, Front, Measurement, candidate_from_document
from compress.runfolder import CANDIDATE, SCHEMA, RunFolder, disk_errors
from compress.search import Proposal
from compress.serial import from_json, to_json, write_atomic, write_json
from compress.types import LayerSensitivity, Note, Record, State
from compress.watch import Watcher

BASELINE = "float"
PACKAGES = ("torch", "onnx", "onnxruntime", "apache-tvm", "brevitas", "numpy", "scikit-learn")


@dataclass
class _Clock:
    """Wall time by phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    mark: float = field(default_factory=time.perf_counter)

    def lap(self, phase: str, stages: Iterable[Record] = ()) -> None:
        """Count the time since the last lap: the stages' to them, the rest to ``phase``."""
        now = time.perf_counter()
        rest, self.mark = now - self.mark, now
        for record in stages:
            self.add(record.stage, record.seconds)
            rest -= record.seconds
        self.add(phase, rest)

    def add(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + max(0.0, seconds)

    def phases(self) -> tuple[tuple[str, float], ...]:
        return tuple((phase, round(seconds, 2)) for phase, seconds in self.seconds.items())


def execute(
    job: Job,
    proposals: tuple[Proposal, ...],
    folder: RunFolder,
    configuration: Mapping[str, Any],
    command: str,
    watcher: Watcher,
    loading_s: float = 0.0,
) -> Front:
    """Make the candidates, measure them and write the folder's documents.

    Candidates that the folder holds from an earlier, interrupted run are taken as they are; their
    latencies are measured again, so that all are measured side by side.

    Raises:
        BadInput: not one candidate fits the target.
        RunFolderError: the disk is full or can't be written; what is finished stays.
    """
    clock = _Clock()
    clock.add("load and check", loading_s)
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    with disk_errors(folder.path):
        folder.write_run(configuration, "running", command=command, started=started, versions=versions())
        candidates, unfit = _candidates(job, proposals, folder, watcher, clock)
        baseline, made = candidates[0], candidates[1:]
        if not made:
            shutil.rmtree(folder.path)  # bad input leaves nothing behind
            reason = unfit[0].reason if unfit else "there is none"
            if unfit and unfit[0].uncompiled:
                raise BadInput(f"no code for {job.target.name}: {reason}")
            raise BadInput(f"no candidate fits {job.target.name}: {reason}; choose a larger target")
        if job.target.host:
            watcher.phase("measure latency, all candidates in turns")
            baseline, *made = _measured([baseline, *made], folder)
            clock.lap("measure latency")
        elif job.runtime is None:
            baseline, *made = _of_one_runtime([baseline, *made], job.target.runtimes)
        front = Front(
            model=job.name,
            target=job.target.name,
            dataset=Dataset(job.data.name, job.data.sha256, job.data.evaluate.n),
            baseline=baseline,
            candidates=tuple(made),
            budget=job.budget,
        )
        sensitivity = job.sensitivity(watcher.message)
        clock.lap("sensitivity")
        watcher.phase("write the report")
        _write(job, front, unfit, sensitivity, folder, configuration, command, started, clock)
    return front


def _candidates(
    job: Job, proposals: tuple[Proposal, ...], folder: RunFolder, watcher: Watcher, clock: _Clock
) -> tuple[list[Candidate], list[Unfit]]:
    names = [BASELINE, *(proposal.id for proposal in proposals)]
    stages = {proposal.id: job.stages(proposal) for proposal in proposals}
    documents = {name: _finished(folder, name) for name in names}
    watcher.begin(len(names), sum(document is not None for document in documents.values()))
    reference: Assessment = assess(State(job.model), job.target, job.example)
    made: list[Candidate] = []
    unfit: list[Unfit] = []
    clock.lap("load and check")
    for name in names:
        document = documents[name]
        if document is None:
            watcher.candidate(name)
            with folder.building(name) as path:
                result = build(job, name, stages.get(name, ()), path, reference, watcher.message)
                if isinstance(result, Unfit):
                    write_json(path / CANDIDATE, {"schema": SCHEMA, "unfit": to_json(result)})
            clock.lap("export and evaluate", result.records if isinstance(result, Candidate) else ())
        elif "unfit" in document:
            result = from_json(Unfit, document["unfit"])
        else:
            result = replace(candidate_from_document(document["candidate"]), folder=str(folder.candidate(name)))
        if isinstance(result, Unfit):
            unfit.append(result)
            watcher.dropped(name, result.reason)
            if result.uncompiled and len(made) == 1:
                break  # the others hold the same operators
        else:
            made.append(result)
            watcher.finished(result)
    return made, unfit


def _finished(folder: RunFolder, name: str) -> dict[str, Any] | None:
    """The document of a finished candidate; None if it isn't finished, or has lost or changed a file since."""
    document, path = folder.finished(name), folder.candidate(name)
    if document is None or "unfit" in document:
        return document
    compared = (each.get("at_8_bits") for each in document["candidate"]["artifacts"])
    if any(each is not None and not (folder.path / each["path"]).is_file() for each in compared):
        return None
    try:
        return None if bundle.damage(path, read_manifest(path)) else document
    except CheckFailed:
        return None


def _measured(candidates: list[Candidate], folder: RunFolder) -> list[Candidate]:
    """Every candidate with the measured latency of its artifacts that run on this machine."""
    with artifacts.timed_jobs(folder.path, candidates) as (jobs, conditions):
        found: Mapping[str, Measurement] = timer.interleaved(jobs, session.machine(), {})

    def measurement(path: str) -> Measurement | None:
        if path not in found:
            return None
        return replace(found[path], conditions={**conditions[path], **found[path].conditions})

    def with_measurement(artifact: Artifact) -> Artifact:
        eight = artifact.at_8_bits
        if eight is not None:
            eight = replace(eight, measurement=measurement(eight.path))
        return replace(artifact, measurement=measurement(artifact.path), at_8_bits=eight)

    return [replace(c, artifacts=tuple(with_measurement(a) for a in c.artifacts)) for c in candidates]


def _of_one_runtime(candidates: list[Candidate], runtimes: tuple[str, ...]) -> list[Candidate]:
    """The candidates with the figures of one runtime, the target's first one of which all have an artifact.

    Where nothing is measured, the float network's file in one runtime says nothing about another's.
    """
    having = [{artifact.runtime for artifact in candidate.artifacts} for candidate in candidates]
    shared = [runtime for runtime in runtimes if all(runtime in each for each in having)]
    return [replace(candidate, runtime=shared[0]) for candidate in candidates] if shared else candidates


def _write(
    job: Job,
    front: Front,
    unfit: list[Unfit],
    sensitivity: tuple[LayerSensitivity, ...],
    folder: RunFolder,
    configuration: Mapping[str, Any],
    command: str,
    started: str,
    clock: _Clock,
) -> None:
    best = front.best()
    if best is not None:
        bundle.copy(folder.candidate(best.id), folder.path / "bundle")
    else:
        shutil.rmtree(folder.path / "bundle", ignore_errors=True)
    notes = job.notes + tuple(Note(each.id, "candidate", f"dropped: {each.reason}") for each in unfit)
    relative = folder.path.as_posix()
    commands = (f"compress verify {relative}/bundle",) if best is not None else ()
    facts = RunFacts(
        command=command,
        versions=versions(),
        seed=job.seed,
        started=started,
        seconds=clock.phases(),
        machine=session.machine(),
        target_title=job.target.title,
        model=job.name,
        notes=notes,
        next_commands=commands,
        sensitivity=sensitivity,
    )
    write_json(folder.path / "front.json", front.document())
    write_documents(folder.path, front, facts)
    # A report can't know how long its own drawing takes; run.json, which is written after it, does. The facts stay
    # those that were drawn, so that the report can be drawn again.
    clock.lap("report and bundle")
    folder.write_run(
        configuration,
        "finished",
        command=command,
        started=started,
        versions=versions(),
        facts=to_json(facts),
        seconds=clock.phases(),
    )


def write_documents(folder: Path, front: Front, facts: RunFacts) -> None:
    """``report.html`` and ``front.svg`` of a front."""
    from compress.report.html import render
    from compress.report.plot import front_svg

    write_atomic(folder / "report.html", render(front, facts).encode())
    write_atomic(folder / "front.svg", front_svg(front).encode())


def versions() -> dict[str, str]:
    """The versions of what shapes a result."""
    found = {"compress": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
