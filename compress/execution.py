"""Do a job in a run folder: make the candidates that aren't there yet, time them all, write what was found."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.building import Unfit
from compress.cache import Cache
from compress.errors import BadInput
from compress.export import bundle
from compress.identity import versions
from compress.job import Job
from compress.making import Maker
from compress.profiling import artifacts, session, timer
from compress.report.facts import RunFacts
from compress.results import Artifact, Candidate, Dataset, Front, Measurement
from compress.runfolder import RunFolder, disk_errors
from compress.search import Account, Search
from compress.serial import to_json, write_atomic, write_json
from compress.types import LayerSensitivity, Note, Record
from compress.watch import Watcher
from compress.workers import Pool

Searching = Callable[[Maker], Search]
"""Gives what proposes the candidates that a maker makes."""


@dataclass
class _Clock:
    """Wall time by phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    mark: float = field(default_factory=time.perf_counter)

    def lap(self, phase: str, stages: Iterable[Record] = (), searched_s: float = 0.0) -> None:
        """Count the time since the last lap: the stages' to them, the search's to it, the rest to ``phase``."""
        now = time.perf_counter()
        rest, self.mark = now - self.mark - searched_s, now
        if searched_s:
            self.add("search", searched_s)
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
    searching: Searching,
    folder: RunFolder,
    configuration: Mapping[str, Any],
    command: str,
    watcher: Watcher,
    loading_s: float = 0.0,
    pool: Pool | None = None,
    kept: Cache | None = None,
) -> Front:
    """Make the candidates, measure them and write the folder's documents.

    Candidates that the folder holds from an earlier, interrupted run are taken as they are; latencies are measured on
    this machine, all side by side, when the last candidate is there.

    Args:
        job: what was asked for.
        searching: gives what proposes the candidates, for who makes them.
        folder: of the run.
        configuration: what ``run.json`` says of the job.
        command: how it was asked for.
        watcher: told how it goes on.
        loading_s: what loading and checking took.
        pool: who makes the candidates; None for this process.
        kept: the cache; None for none.

    Raises:
        BadInput: not one candidate fits the target.
        RunFolderError: the disk is full or can't be written; what is finished stays.
        WorkersUnusable: the workers have vanished; what is finished stays.
    """
    clock = _Clock()
    clock.add("load and check", loading_s)
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    maker = Maker(job, folder, watcher, pool, kept)
    with disk_errors(folder.path):
        folder.tidy()
        folder.write_run(configuration, "running", command=command, started=started, versions=versions())
        search = searching(maker)
        results = maker.search(search)
        if pool is None:
            clock.lap("export and evaluate", maker.ran, maker.searched_s)
        else:
            clock.lap("candidates, made elsewhere", searched_s=maker.searched_s)
        unfit = [each for each in results if isinstance(each, Unfit)]
        baseline, *made = [each for each in results if isinstance(each, Candidate)]
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
        sensitivity = maker.sensitivity()
        clock.lap("sensitivity")
        watcher.phase("write the report")
        notes = (
            *job.notes,
            *(Note(each.id, "candidate", f"dropped: {each.reason}") for each in unfit),
            *(Note("", "cache", text) for text in maker.said),
        )
        account = search.account(maker.outcomes)
        _write(job, front, notes, sensitivity, account, folder, configuration, command, started, clock)
    return front


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
    notes: tuple[Note, ...],
    sensitivity: tuple[LayerSensitivity, ...],
    account: Account | None,
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
        search=account,
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
