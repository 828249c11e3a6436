"""A disk that really is full: a small file system in memory, which root may mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_calls import QUICK, Call

JOB = (*QUICK, "--target", "cortex-m7", "--candidates", "1")
FULL = "output folder disk/run: the disk is full; free some space, then go on with --resume"


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mount isn't allowed here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system as large as the test's parameter says."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-o", f"size={request.param}", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


# One disk has no room at all; the other is full in the middle, as the float network alone takes 0.9 MB.
@pytest.mark.parametrize("disk", ["4k", "1m"], indirect=True)
@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_space(inside: Call, disk: Path) -> None:
    ended = inside(*JOB, "--out", "disk/run", "-q")
    assert ended.status == 2
    assert ended.error == FULL
    mount("-o", "remount,size=64m", "tmpfs", str(disk))
    finished = {path: path.stat().st_mtime_ns for path in disk.rglob("candidate.json")}
    again = inside(*JOB, "--out", "disk/run", "--resume", "-q")
    assert again.status == 0, again.err
    assert (disk / "run" / "bundle" / "manifest.json").is_file()
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
