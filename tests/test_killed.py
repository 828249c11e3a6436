"""Nothing is lost at any kill: a job of seconds is killed again and again and comes to the same results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY
from tests.small_jobs import Log, run, substance


@pytest.mark.slow
def test_a_job_that_is_killed_twenty_times_comes_to_the_same_candidates(tmp_path):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "COMPRESS_CACHE_BYTES": str(10**9),
    }
    command = [sys.executable, "-m", "tests.killed_jobs", str(tmp_path), "20", "7"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] == 20
    assert len(found["reference"]) == 3
    assert len(found["results"]) >= 1
    assert all(result == found["reference"] for result in found["results"])
    assert found["lost"] == []
    assert found["left"] == []


@pytest.mark.slow
def test_processes_end_with_the_one_that_was_killed_and_the_run_goes_on(tmp_path):
    import psutil

    out = tmp_path / "run"
    program = f"from pathlib import Path; from tests.small_jobs import run; run(Path({str(out)!r}), processes=2)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    owner = subprocess.Popen([sys.executable, "-c", program], env=environment)
    end = time.monotonic() + 600
    while not list(out.glob("candidates/*/candidate.json")):
        assert owner.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    helpers = psutil.Process(owner.pid).children(recursive=True)
    owner.kill()
    owner.wait()
    assert len(helpers) >= 2
    _, alive = psutil.wait_procs(helpers, timeout=60)
    assert alive == []
    kept = {path: path.stat().st_mtime_ns for path in out.glob("candidates/*/candidate.json")}
    resumed = Log()
    front = run(out, resume=True, watcher=resumed)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not {path.parent.name for path in kept} & set(resumed.begun)
    assert substance(front) == substance(run(tmp_path / "here"))
