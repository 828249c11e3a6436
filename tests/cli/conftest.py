"""The command as a user runs it, in a process of its own, and inside the test's process where that is equal."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_calls import QUICK, Call, Ended, Finished, command, environment
from filelock import FileLock


@pytest.fixture
def compress(tmp_path: Path) -> Call:
    """Run the command in a process of its own, in an empty folder."""

    def call(*arguments: object, cwd: Path | None = None, **more: str) -> Ended:
        done = subprocess.run(
            command(*arguments),
            cwd=cwd or tmp_path,
            env=environment(**more),
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Run the command in this process, in an empty folder: the same but for loading torch each time."""
    from compress.cli import interrupts, shell

    monkeypatch.chdir(tmp_path)
    # A command that is interrupted ignores what comes after; later tests' processes would inherit that.
    handlers = {number: signal.getsignal(number) for number in interrupts.SIGNALS}

    def call(*arguments: object) -> Ended:
        capfd.readouterr()
        status = shell.run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Ended(status, out, err)

    yield call
    logging.disable(logging.NOTSET)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run of two candidates, for all processes of a test run; tests copy what they change."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "finished"
    with FileLock(f"{folder}.lock"):
        ended = folder / "ended.json"
        if not ended.is_file():
            folder.mkdir(exist_ok=True)
            arguments = command(*QUICK, "--target", "cpu", "--candidates", 2, "--out", "run")
            done = subprocess.run(arguments, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            ended.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
        return Finished(folder / "run", Ended(*json.loads(ended.read_text())))
