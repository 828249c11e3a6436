"""Nothing is lost at any kill: a job of seconds is killed again and again and comes to the same results."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


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
