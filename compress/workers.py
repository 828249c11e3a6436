"""Where candidates are made beside this process: in others of this machine, or by a Dask cluster.

Both give back candidates as they are finished. A worker that dies costs what it was doing, which another one does
again; what comes out is the same. Nothing is timed there.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from compress.errors import MissingExtra, WorkersUnusable
from compress.identity import fingerprint
from compress.job import Job
from compress.making_options import MakingOptions
from compress.runfolder import RunFolder
from compress.work import (
    Packed,
    Report,
    Task,
    begin_process,
    differences,
    packed,
    receive,
    work_and_send,
    work_here,
)

TRIES = 3
"""Times that workers may die without anything being finished in between."""
CONNECT_S = 10.0
PATIENCE_S = 30.0
"""How long a cluster may be without a worker."""
_POLL_S = 0.5
_LOUD = ("distributed", "tornado", "asyncio")


class Pool(Protocol):
    """Makes candidates elsewhere."""

    def made(self, tasks: Sequence[Task], folder: RunFolder) -> Iterator[tuple[Task, Path, Report]]:
        """Each task with the folder that it was made in, of :meth:`~compress.runfolder.RunFolder.begin`, as they end.

        Raises:
            WorkersUnusable: there is nobody left to do them.
        """

    @property
    def words(self) -> str:
        """Who makes them, for people."""

    def __enter__(self) -> Self:
        """Open it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything that it does."""


def pool_for(job: Job, how: MakingOptions) -> Pool | None:
    """What makes the candidates of ``job``; None for this process.

    Raises:
        MissingExtra: ``--workers`` without dask.
        WorkersUnusable: the cluster can't be reached, or isn't like this machine.
        BadInput: the job can't be sent.
    """
    if how.workers is not None:
        return Cluster(how.workers, packed(job, how.cache))
    if how.processes > 1:
        return Processes(how.processes, packed(job, how.cache))
    return None


class Processes:
    """Processes of this machine, which write into the run folder."""

    def __init__(self, count: int, given: Packed) -> None:
        self.count, self.given = count, given
        self._executor: Any = None

    @property
    def words(self) -> str:
        """See :class:`Pool`."""
        return f"{self.count} processes"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def made(self, tasks: Sequence[Task], folder: RunFolder) -> Iterator[tuple[Task, Path, Report]]:
        """See :class:`Pool`."""
        from loky.process_executor import BrokenProcessPool

        waiting, died = {task.name: task for task in tasks}, 0
        while waiting:
            begun: dict[Any, tuple[Task, Path]] = {}
            try:
                for task in waiting.values():
                    place = folder.begin(task.name)
                    begun[self._open().submit(work_here, task, str(place))] = task, place
                for future in as_completed(begun):
                    report = future.result()
                    task, place = begun[future]
                    del waiting[task.name]
                    died = 0
                    yield task, place, report
            except BrokenProcessPool:
                self._end()
                died += 1
                for task, place in begun.values():
                    if task.name in waiting:
                        shutil.rmtree(place.parent, ignore_errors=True)
                if died == TRIES:
                    raise WorkersUnusable(
                        f"--processes {self.count}",
                        f"{TRIES} times a process died (of too little memory?) while it made "
                        f"{' or '.join(sorted(waiting)[: self.count])}",
                        "go on with fewer processes and --resume",
                    ) from None

    def _open(self) -> Any:
        from loky import ProcessPoolExecutor

        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                max_workers=self.count, initializer=begin_process, initargs=(self.given,)
            )
        return self._executor

    def _end(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=True)
            self._executor = None


class Cluster:
    """The workers of a Dask scheduler; they are sent the job and send back files.

    Args:
        address: of the scheduler: ``tcp://host:8786``, or ``tls://``.
        given: the job.
    """

    def __init__(self, address: str, given: Packed) -> None:
        self.address, self.given = address, given
        self.client = _client(address)
        try:
            self._look_at_workers()
        except BaseException:
            self.client.close(timeout=1)
            raise
        self._job: Any = None

    @property
    def words(self) -> str:
        """See :class:`Pool`."""
        return f"the workers of {self.address}"

    @property
    def option(self) -> str:
        """How it was asked for."""
        return f"--workers {self.address}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        from contextlib import suppress

        with suppress(Exception):  # whatever a cluster that is gone leads to
            self.client.close(timeout=1)

    def made(self, tasks: Sequence[Task], folder: RunFolder) -> Iterator[tuple[Task, Path, Report]]:
        """See :class:`Pool`."""
        # A task that holds the job can be done again when the worker that has its result dies; scattered data can't.
        if self._job is None:
            self._job = self.client.submit(_itself, self.given, pure=False)
        futures = {self.client.submit(work_and_send, self._job, task, pure=False): task for task in tasks}
        seen = time.monotonic()
        while futures:
            done = [future for future in futures if future.done()]
            for future in done:
                task = futures.pop(future)
                report, files = self._result(future, task)
                place = folder.begin(task.name)
                receive(files, place)
                yield task, place, report
            if done:
                continue
            if self._workers():
                seen = time.monotonic()
            elif time.monotonic() - seen > PATIENCE_S:
                raise self._lost(f"it has had no worker for {PATIENCE_S:g} s")
            time.sleep(_POLL_S)

    def _result(self, future: Any, task: Task) -> tuple[Report, dict[str, bytes]]:
        if future.status in ("cancelled", "lost"):
            raise self._lost("the cluster has vanished")
        if future.status == "error":
            from distributed.scheduler import KilledWorker

            error = future.exception()
            if isinstance(error, KilledWorker):
                raise WorkersUnusable(
                    self.option,
                    f"every worker that made {task.name} died (of too little memory?)",
                    "give workers more memory, then go on with --resume",
                )
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise WorkersUnusable(
                self.option, f"{task.name} can't be made there ({said})", "install there what this machine has"
            )
        report, files = future.result()
        return report, files

    def _workers(self) -> dict[str, Any]:
        """Workers that are connected."""
        try:
            if self.client.status != "running":
                raise self._lost("the cluster has vanished")
            found: dict[str, Any] = self.client.nthreads()
        except (OSError, TimeoutError) as error:
            raise self._lost("the cluster has vanished") from error
        return found

    def _lost(self, problem: str) -> WorkersUnusable:
        return WorkersUnusable(
            self.option,
            problem,
            "what is finished is kept: go on with --resume, with workers that are there or without",
        )

    def _look_at_workers(self) -> None:
        end = time.monotonic() + CONNECT_S
        while not self._workers():
            if time.monotonic() > end:
                raise WorkersUnusable(self.option, "it has no worker", f"start one: dask worker {self.address}")
            time.sleep(_POLL_S)
        try:
            found = self.client.run(fingerprint)
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise WorkersUnusable(
                self.option, f"its workers can't run compress ({said})", "install this version of compress there"
            ) from error
        for worker, there in sorted(found.items()):
            wrong = differences(there, self.given.fingerprint)
            if wrong is not None:
                raise WorkersUnusable(
                    self.option,
                    f"its worker {worker} isn't like this machine: {wrong}",
                    "set it up alike, or leave it out",
                )


def _client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise MissingExtra("distributed", "cluster", "--workers") from None
    # What its parts log of a cluster that has vanished would stand around the one line that says so.
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in _LOUD]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return Client(address, timeout=CONNECT_S, set_as_default=False, name="compress")
    except (OSError, TimeoutError):
        raise WorkersUnusable(
            f"--workers {address}", "nobody answers there", "start a scheduler, dask scheduler, and give its address"
        ) from None
    except Exception as error:  # another version's scheduler, or another kind of server
        said = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise WorkersUnusable(
            f"--workers {address}", f"no Dask scheduler answers there ({said})", "give the address of one"
        ) from None


def _itself(given: Packed) -> Packed:
    return given


__all__ = ["Cluster", "Pool", "Processes", "pool_for"]
