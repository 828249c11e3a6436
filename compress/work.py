"""One candidate as a piece of work that any process can do: what it is given, what it gives back.

A candidate depends on its job and its stages alone, so it comes out the same wherever it is made, as long as the
machines are alike (:func:`compress.identity.fingerprint`) and compute with the same number of threads.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress import cache
from compress.allocator import keep_freed_memory
from compress.building import Unfit, build
from compress.cache import Cache
from compress.errors import BadInput, CompressError, WorkersUnusable
from compress.identity import fingerprint
from compress.job import Job, reference
from compress.kept_networks import KeptNetworks
from compress.results import Candidate, candidate_from_document
from compress.runfolder import CANDIDATE, SCHEMA, disk_errors
from compress.serial import from_json, to_json, write_json
from compress.types import Progress, Record, Stage

_WATCH_S = 0.5
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class Task:
    """A candidate to make: its id, and its stages; none for the float network."""

    name: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says of a task; the candidate's files come beside.

    Attributes:
        ran: what was really run: stages that were known from before are left out.
        said: see :meth:`compress.watch.Watcher.said`.
        problem: the sentence of an error that the user can mend; None without one.
        bug: the traceback of any other one.
    """

    ran: tuple[Record, ...] = ()
    said: tuple[str, ...] = ()
    problem: str | None = None
    bug: str | None = None


def make(
    job: Job, task: Task, folder: Path, kept: Cache | None, progress: Progress, said: Progress
) -> tuple[Record, ...]:
    """Make a candidate in the empty ``folder``, which bears its name; the stages that were run.

    Afterwards the folder is a bundle with its ``candidate.json``; that of a candidate which can't run on the target
    says why.
    """
    known = KeptNetworks(job, task.stages, kept, said)
    compared = reference(job) if task.stages != job.first else None
    result = build(job, task.name, task.stages, folder, compared, progress, known)
    if isinstance(result, Unfit):
        write_json(folder / CANDIDATE, {"schema": SCHEMA, "unfit": to_json(result)})
        return tuple(known.ran)
    return (*known.ran, *result.records[len(task.stages) :])


def result_of(document: dict[str, Any], folder: Path) -> Candidate | Unfit:
    """What a ``candidate.json`` says."""
    if "unfit" in document:
        return from_json(Unfit, document["unfit"])
    return replace(candidate_from_document(document["candidate"]), folder=str(folder))


@dataclass(frozen=True, slots=True)
class Packed:
    """A job on its way to other processes of the same user's.

    Attributes:
        job: pickled, classes of the user's files by value.
        threads: that torch computes with.
        fingerprint: of the machine that owns the run.
        cached: whether workers keep networks in their user's cache.
    """

    job: bytes
    threads: int
    fingerprint: dict[str, Any]
    cached: bool


def packed(job: Job, cached: bool) -> Packed:
    """A job to be sent.

    Raises:
        BadInput: the network or the data can't be.
    """
    import cloudpickle
    import torch

    for name, module in list(sys.modules.items()):
        if name.startswith("_compress_user_"):
            cloudpickle.register_pickle_by_value(module)
    try:
        content = cloudpickle.dumps(replace(job, shared={}))
    except Exception as error:  # the user's objects may raise anything
        said = " ".join(str(error).split())[:160]
        raise BadInput(
            f"{job.name} or its data can't be sent to other processes ({type(error).__name__}: {said}); "
            "leave --processes and --workers out"
        ) from error
    return Packed(content, torch.get_num_threads(), fingerprint(), cached)


def differences(there: dict[str, Any], here: dict[str, Any]) -> str | None:
    """In what two machines differ; None if they make equal candidates."""
    for name, value in here.items():
        if there.get(name) == value:
            continue
        if isinstance(value, dict):
            other = there.get(name) or {}
            one = next(key for key in {**value, **other} if other.get(key) != value.get(key))
            return f"{one} is another or missing"
        if name == "source of compress":
            return "another state of compress is installed there"
        return f"{name} {there.get(name)}, here {value}"
    return None


class Process:
    """What a worker process holds: what it was given, and the job that it unpacked last."""

    given: Packed | None = None
    content: bytes | None = None
    job: Job | None = None

    @classmethod
    def unpacked(cls, given: Packed) -> Job:
        """The job, which is unpacked once a process; what its candidates share stays with it."""
        import pickle

        if cls.job is None or cls.content != given.job:
            cls.job, cls.content = pickle.loads(given.job), given.job
        return cls.job


def work(given: Packed, task: Task, folder: Path) -> Report:
    """Make a candidate in a worker process; every error becomes a part of the report."""
    import torch

    said: list[str] = []
    try:
        with _one_at_a_time, disk_errors(folder):
            wrong = differences(fingerprint(), given.fingerprint)
            if wrong is not None:
                return Report(problem=f"a worker isn't like this machine: {wrong}; set it up alike, or leave it out")
            job = Process.unpacked(given)
            if job.device != "cpu" and not torch.cuda.is_available():
                return Report(problem="a worker has no GPU, and this machine computes on its own; leave it out")
            # A thread's own setting: the one that just serves may be new.
            torch.set_num_threads(given.threads)
            kept = cache.users() if given.cached else None
            return Report(make(job, task, folder, kept, lambda message: None, said.append), tuple(said))
    except CompressError as error:
        return Report(said=tuple(said), problem=error.sentence)
    except Exception as error:
        lines = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Report(said=tuple(said), bug=f"{task.name}: {lines}\n{traceback.format_exc()}")


def work_and_send(given: Packed, task: Task) -> tuple[Report, dict[str, bytes]]:
    """Make a candidate on a machine that shares no disk with the owner's: the files come back by name."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / task.name
        folder.mkdir()
        report = work(given, task, folder)
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return report, files if report.problem is None and report.bug is None else {}


def receive(files: dict[str, bytes], folder: Path) -> None:
    """Write the files that a worker sent to ``folder``.

    Raises:
        WorkersUnusable: one would lie outside.
    """
    for name, content in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise WorkersUnusable("--workers", f"a worker sent a file called {name}", "use workers of your own only")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def begin_process(given: Packed) -> None:
    """Prepare a process of this machine for :func:`work_here`."""
    import logging
    import signal
    import warnings

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the owner ends its processes
    keep_freed_memory()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sys.stdout = sys.stderr
    Process.given = given
    threading.Thread(target=_end_with_owner, args=(os.getppid(),), daemon=True).start()


def work_here(task: Task, folder: str) -> Report:
    """:func:`work` in a process of this machine."""
    assert Process.given is not None
    return work(Process.given, task, Path(folder))


def _end_with_owner(owner: int) -> None:
    """End this process when the owner was killed: nobody waits for it any more."""
    while os.getppid() == owner:
        time.sleep(_WATCH_S)
    os._exit(1)


__all__ = [
    "Packed",
    "Report",
    "Task",
    "begin_process",
    "differences",
    "make",
    "packed",
    "receive",
    "result_of",
    "work",
    "work_and_send",
    "work_here",
]
