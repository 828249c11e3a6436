"""A real Dask cluster on this machine, a scheduler and two workers, of which some die on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from compress import workers
from compress.errors import BadInput, WorkersUnusable
from compress.results import Candidate
from compress.runfolder import MAKING
from tests.conftest import REPOSITORY
from tests.small_jobs import Log, run, substance

pytest.importorskip("distributed")


@dataclass
class Local:
    """A cluster's processes."""

    folder: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    address: str = ""

    def start(self, program: str, *arguments: object) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", f"distributed.cli.{program}", "--no-dashboard", *map(str, arguments)]
        with (self.folder / f"{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        self.started.append(process)
        return process

    def scheduler(self) -> subprocess.Popen[bytes]:
        file = self.folder / "scheduler.json"
        process = self.start("dask_scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", file)
        end = time.monotonic() + 120
        while not file.is_file() or not file.read_text().endswith("}"):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        self.address = json.loads(file.read_text())["address"]
        return process

    def worker(self) -> subprocess.Popen[bytes]:
        # Without a nanny, which would start it again.
        return self.start(
            "dask_worker", self.address, "--nthreads", 1, "--no-nanny", "--local-directory", self.folder / "dask"
        )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Local]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    local = Local(folder)
    local.scheduler()
    yield local
    for process in local.started:
        process.kill()
        process.wait()


class Kill(Log):
    """Kills something when the first candidate that was compressed is there."""

    def __init__(self, local: Local, what: str) -> None:
        super().__init__()
        self.local, self.what, self.killed = local, what, 0

    def finished(self, candidate: Candidate) -> None:
        self.made.append(candidate.id)
        if self.killed or candidate.id == "float":
            return
        if self.what == "scheduler":
            self.killed = self.local.started[0].pid
        else:
            self.killed = self._busy()
        os.kill(self.killed, signal.SIGKILL)

    def _busy(self) -> int:
        """The process of a worker that is at a candidate at this moment."""
        from distributed import Client

        with Client(self.local.address, set_as_default=False) as client:
            busy = next(address for address, tasks in client.processing().items() if tasks)
            (process,) = client.run(os.getpid, workers=[busy]).values()
        return int(process)


@pytest.mark.slow
def test_a_cluster_one_of_whose_two_workers_is_killed_makes_the_same(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CONNECT_S", 120.0)
    for _ in range(2):
        cluster.worker()
    watcher = Kill(cluster, "worker")
    front = run(tmp_path / "run", workers=cluster.address, watcher=watcher, candidates=4)
    dead = [process.pid for process in cluster.started[1:] if process.poll() is not None]
    assert dead == [watcher.killed]
    assert substance(front) == substance(run(tmp_path / "here", candidates=4))
    assert not (tmp_path / "run" / MAKING).exists()


@pytest.mark.slow
def test_where_a_cluster_vanishes_what_is_finished_is_kept_and_the_run_goes_on_without(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CONNECT_S", 120.0)
    cluster.worker()
    watcher = Kill(cluster, "scheduler")
    out = tmp_path / "run"
    with pytest.raises(WorkersUnusable) as raised:
        run(out, workers=cluster.address, watcher=watcher, candidates=3)
    assert raised.value.sentence == (
        f"--workers {cluster.address}: the cluster has vanished; what is finished is kept: "
        "go on with --resume, with workers that are there or without"
    )
    kept = {path: path.stat().st_mtime_ns for path in out.glob("candidates/*/candidate.json")}
    assert {path.parent.name for path in kept} == set(watcher.made)
    resumed = Log()
    front = run(out, resume=True, watcher=resumed, candidates=3)
    assert not set(resumed.begun) & set(watcher.made)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert substance(front) == substance(run(tmp_path / "here", candidates=3))


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("tcp://127.0.0.1:1", "nobody answers there; start a scheduler, dask scheduler, and give its address"),
        ("tcp://localhost:1", "nobody answers there"),
        ("nonsense://host:1", "it is no address of a Dask scheduler; give one such as tcp://host:8786"),
        ("tcp://127.0.0.1:port", "it is no address of a Dask scheduler"),
        ("tcp://127.0.0.1:70000", "it is no address of a Dask scheduler"),
        ("somewhere", "it is no address of a Dask scheduler"),
        ("", "it is no address of a Dask scheduler"),
    ],
)
def test_an_address_where_nobody_is_leaves_nothing_written(tmp_path, monkeypatch, address, problem):
    monkeypatch.setattr(workers, "CONNECT_S", 0.5)
    with pytest.raises(WorkersUnusable) as raised:
        run(tmp_path / "run", workers=address)
    assert raised.value.sentence.startswith(f"--workers {address}: {problem}")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_cluster_without_workers_is_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CONNECT_S", 3.0)
    with pytest.raises(WorkersUnusable, match="it has no worker; start one: dask worker tcp://127.0.0.1"):
        run(tmp_path / "run", workers=cluster.address)
    assert not (tmp_path / "run").exists()


def test_machines_that_would_make_other_candidates_are_told_apart():
    from compress.identity import fingerprint
    from compress.work import differences

    here = fingerprint()
    assert differences(dict(here), here) is None
    assert differences({**here, "torch": "1.0"}, here) == f"torch 1.0, here {here['torch']}"
    assert differences({**here, "source of compress": "x"}, here) == "another state of compress is installed there"
    assert differences(
        {**here, "compilers and emulators": {}}, {**here, "compilers and emulators": {"gcc": ["a", 1]}}
    ) == ("gcc is another or missing")


def test_what_a_worker_sends_stays_in_its_folder(tmp_path):
    from compress.work import receive

    (tmp_path / "a").mkdir()
    receive({"model.onnx": b"1", "library/x.c": b"2"}, tmp_path / "a")
    assert (tmp_path / "a" / "library" / "x.c").read_bytes() == b"2"
    for name in ("../escaped", "/escaped", "library/../../escaped"):
        with pytest.raises(BadInput, match="escaped"):
            receive({name: b"3"}, tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
