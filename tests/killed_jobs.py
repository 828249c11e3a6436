"""A program that kills a job at random moments and resumes it; a test runs it and reads what it prints.

Torch is imported once; every run is a fork of this process, which computes nothing itself: it has no threads to lose.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from tests.small_jobs import run, substance


def begun(folder: Path) -> int:
    """A process that does the job in ``folder`` or goes on with it, and writes what came out beside the folder."""
    process = os.fork()
    if process:
        return process
    try:
        os.environ["XDG_CACHE_HOME"] = str(folder.with_suffix(".cache"))
        found = substance(run(folder, resume=folder.exists(), cache=True))
        folder.with_suffix(".json").write_text(json.dumps(found))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def ended(process: int, within_s: float) -> bool:
    """Whether the process ends by itself within the time; else it is killed.

    Raises:
        RuntimeError: it ended with an error.
    """
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            if status:
                raise RuntimeError(f"the job ended with status {status}")
            return True
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def main(scratch: Path, kills: int, seed: int) -> None:
    """Print the results of an undisturbed job, and of those that were killed so many times altogether."""
    moments = random.Random(seed)
    reference = scratch / "reference"
    start = time.monotonic()
    assert ended(begun(reference), 3600.0)
    whole_s = time.monotonic() - start
    results, lost, number, killed = [], [], 0, 0
    while killed < kills or (scratch / f"job{number}").exists():
        folder = scratch / f"job{number}"
        before = {path: path.stat().st_mtime_ns for path in folder.glob("candidates/*/candidate.json")}
        start, fresh = time.monotonic(), not folder.exists()
        through = ended(begun(folder), whole_s * moments.random() if killed < kills else 3600.0)
        # What was finished before a kill is there after the next start, and wasn't made again.
        lost += [str(path) for path, when in before.items() if not path.exists() or path.stat().st_mtime_ns != when]
        killed += not through
        if through and fresh:
            whole_s = time.monotonic() - start  # the machine may have become faster or slower
        if through:
            results.append(json.loads(folder.with_suffix(".json").read_text()))
            number += 1
    print(
        json.dumps(
            {
                "reference": json.loads(reference.with_suffix(".json").read_text()),
                "results": results,
                "killed": killed,
                "lost": lost,
                "left": sorted(path.name for path in scratch.glob("job*/.making")),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
