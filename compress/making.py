"""Candidates of a job, from wherever they can be had: the run folder, the cache, this process or others."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from compress.building import Unfit
from compress.cache import Cache
from compress.errors import BadInput, CheckFailed
from compress.export import bundle
from compress.export.manifest import read_manifest
from compress.forecast import Forecast, forecasts
from compress.identity import candidate_key, forecasts_key, sensitivity_key
from compress.job import Job
from compress.results import Candidate
from compress.runfolder import RunFolder
from compress.search import Outcome, Proposal, Search
from compress.serial import from_json, to_json, write_json
from compress.types import LayerSensitivity, Record
from compress.watch import Watcher
from compress.work import Report, Task, make, result_of
from compress.workers import Pool

BASELINE = "float"
T = TypeVar("T")


class WorkerBug(RuntimeError):
    """An error in a worker that is nobody's input, with its traceback."""


@dataclass
class Maker:
    """Makes what a search proposes, in a run folder.

    Attributes:
        job: what was asked for.
        folder: where candidates come.
        watcher: told how it goes on.
        pool: who makes them; None for this process.
        cache: where they may be from, and are kept; None for nowhere.
        ran: told of each thing made: the stages that were run.
        said: what was out of the ordinary.
        outcomes: of the float network and of what was proposed.
        searched_s: seconds that proposing took.
    """

    job: Job
    folder: RunFolder
    watcher: Watcher
    pool: Pool | None = None
    cache: Cache | None = None
    said: list[str] = field(default_factory=list)
    ran: list[Record] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    searched_s: float = 0.0
    _sensitivity: tuple[LayerSensitivity, ...] | None = None

    def search(self, search: Search) -> list[Candidate | Unfit]:
        """The float network and all that ``search`` proposes, in the order in which it did.

        It ends early where there is no code for an operator of the network, as the others hold the same ones.
        """
        there = [name for name in self.folder.names() if finished(self.folder, name) is not None]
        self.watcher.begin(search.most + 1, len(there))
        found: dict[str, Candidate | Unfit] = {}
        proposals = self._proposed(search)
        tasks = [Task(BASELINE, self.job.first), *self._tasks(proposals, found)]
        asked: dict[str, Proposal] = {}
        while tasks and not _hopeless(found):
            asked.update((proposal.id, proposal) for proposal in proposals)
            self._round(tasks, found)
            self.outcomes += [_outcome(asked.get(task.name), found[task.name]) for task in tasks if task.name in found]
            proposals = self._proposed(search)
            tasks = self._tasks(proposals, found)
        self.folder.tidy()
        return list(found.values())

    def _proposed(self, search: Search) -> tuple[Proposal, ...]:
        start = time.perf_counter()
        proposals = search.propose(tuple(self.outcomes))
        self.searched_s += time.perf_counter() - start
        return proposals

    def _tasks(self, proposals: Sequence[Proposal], found: Mapping[str, object]) -> list[Task]:
        fresh = {each.id: Task(each.id, self.job.stages(each)) for each in proposals if each.id not in found}
        return list(fresh.values())

    def _round(self, tasks: Sequence[Task], found: dict[str, Candidate | Unfit]) -> None:
        """Add what became of each task to ``found``, in their order, up to the one that shows that all are hopeless."""
        elsewhere: dict[str, Candidate | Unfit] = {}
        if self.pool is not None:
            had = {task.name: self._had(task) for task in tasks}
            elsewhere = {name: result for name, result in had.items() if result is not None}
            missing = [task for task in tasks if task.name not in elsewhere]
            elsewhere.update(self._made_there(missing, self.pool) if missing else {})
        for task in tasks:
            found[task.name] = elsewhere.get(task.name) or self._had(task) or self._made_here(task)
            if _hopeless(found):
                break

    def _had(self, task: Task) -> Candidate | Unfit | None:
        """A candidate that is in the run folder already, or in the cache."""
        document = finished(self.folder, task.name)
        if document is None:
            document = self._cached(task)
        if document is None:
            return None
        return self._told(result_of(document, self.folder.candidate(task.name)))

    def _cached(self, task: Task) -> dict[str, Any] | None:
        key = candidate_key(self.job, task.name, task.stages) if self.cache is not None else None
        if self.cache is None or key is None:
            return None
        place = self.folder.begin(task.name)
        if not self.cache.take(key, place, self._say):
            shutil.rmtree(place.parent, ignore_errors=True)
            return None
        self.folder.adopt(place)
        return finished(self.folder, task.name)

    def _made_here(self, task: Task) -> Candidate | Unfit:
        self.watcher.candidate(task.name)
        with self.folder.building(task.name) as place:
            self.ran += make(self.job, task, place, self.cache, self.watcher.message, self._say)
        return self._taken(task)

    def _made_there(self, tasks: Sequence[Task], pool: Pool) -> dict[str, Candidate | Unfit]:
        waiting = [task.name for task in tasks]
        found: dict[str, Candidate | Unfit] = {}
        self.watcher.candidate(waiting[0])
        self.watcher.message(f"made by {pool.words}")
        for task, place, report in pool.made(tasks, self.folder):
            self._check(report)
            self.ran += report.ran
            self.folder.adopt(place)
            waiting.remove(task.name)
            found[task.name] = self._taken(task)
            if waiting:
                self.watcher.candidate(waiting[0])
                self.watcher.message(f"made by {pool.words}, {len(waiting)} to come")
        return found

    def _check(self, report: Report) -> None:
        for text in report.said:
            self._say(text)
        if report.problem is not None:
            raise BadInput(report.problem)
        if report.bug is not None:
            raise WorkerBug(report.bug)

    def _taken(self, task: Task) -> Candidate | Unfit:
        """A candidate that has just come to its place; it is kept for later runs."""
        place = self.folder.candidate(task.name)
        document = self.folder.finished(task.name)
        assert document is not None
        key = candidate_key(self.job, task.name, task.stages) if self.cache is not None else None
        if self.cache is not None and key is not None:
            about = {"model": self.job.name, "target": self.job.target.name, "candidate": task.name}
            self.cache.keep(key, "candidate", about, place, self._say)
        return self._told(result_of(document, place))

    def _told(self, result: Candidate | Unfit) -> Candidate | Unfit:
        if isinstance(result, Unfit):
            self.watcher.dropped(result.id, result.reason)
        else:
            self.watcher.finished(result)
        return result

    def _say(self, text: str) -> None:
        self.said.append(text)
        self.watcher.said(text)

    def sensitivity(self) -> tuple[LayerSensitivity, ...]:
        """That of the uncompressed network's layers, from the cache where it is known."""
        if self._sensitivity is None:
            key = sensitivity_key(self.job) if self.cache is not None and self.job.chooses_by_sensitivity else None

            def find() -> tuple[LayerSensitivity, ...]:
                return self.job.sensitivity(self.watcher.message)

            self._sensitivity = self._known(key, "sensitivity", tuple[LayerSensitivity, ...], find)
        return self._sensitivity

    def forecasts(self, least: tuple[float, float]) -> tuple[Forecast, ...]:
        """What is expected of all that can be proposed, from the cache where it is known.

        Args:
            least: the smallest fractions of multiply-accumulates and parameters that pruning reaches.
        """
        key = forecasts_key(self.job) if self.cache is not None else None

        def find() -> tuple[Forecast, ...]:
            return forecasts(self.job, least, self.sensitivity(), self.watcher.message)

        return self._known(key, "forecasts", tuple[Forecast, ...], find)

    def _known(self, key: str | None, kind: str, form: type[T], find: Callable[[], T]) -> T:
        """What the cache holds under ``key``, else what ``find`` gives, which is kept there."""
        if self.cache is None or key is None:
            return find()
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{kind}.json"
            if self.cache.take(key, path.parent, self._say):
                return from_json(form, json.loads(path.read_text(encoding="utf-8")))
            found = find()
            write_json(path, to_json(found))
            about = {"model": self.job.name, "data": self.job.data.name}
            self.cache.keep(key, kind, about, path.parent, self._say)
        return found


def finished(folder: RunFolder, name: str) -> dict[str, Any] | None:
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


def _hopeless(found: Mapping[str, Candidate | Unfit]) -> bool:
    """Whether there is no code for a candidate's operators and none but the float network was made."""
    made = [each.id for each in found.values() if isinstance(each, Candidate)]
    return made == [BASELINE] and any(isinstance(each, Unfit) and each.uncompiled for each in found.values())


def _outcome(proposal: Proposal | None, result: Candidate | Unfit) -> Outcome:
    """What a search may know of a result: nothing that this run timed."""
    if isinstance(result, Unfit):
        return Outcome(proposal, None, result.reason)
    artifacts = tuple(replace(each, measurement=None) for each in result.artifacts)
    records = tuple(replace(record, seconds=0.0) for record in result.records)
    return Outcome(proposal, replace(result, artifacts=artifacts, records=records, folder=None))


__all__ = ["BASELINE", "Maker", "WorkerBug", "finished"]
