"""A run that is stopped goes on where it was: Ctrl-C, a termination, a kill, a moment while torch is loaded."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cli_calls import QUICK, Call, Finished, command, environment

JOB = (*QUICK, "--target", "cpu", "--candidates", "2")


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that are started in the background have it ignored, and hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the process has written ``path``."""
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def finished_candidates(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.glob("candidates/*/candidate.json")}


def substance(front: Any) -> list[tuple[str, str, float, str]]:
    """What doesn't depend on this run's timings."""
    candidates = [front["baseline"], *front["candidates"]]
    return [(c["id"], c["plan_digest"], c["accuracy"]["value"], c["artifacts"][0]["sha256"]) for c in candidates]


@pytest.mark.slow
def test_ctrl_c_gives_the_command_that_goes_on_and_repeats_nothing(
    compress: Call, finished: Finished, tmp_path: Path
) -> None:
    process = begin(tmp_path, *JOB, "--out", "my run")
    wait_for(tmp_path / "my run/candidates/float/candidate.json", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "error: interrupted; go on with: compress --resume --out 'my run'"
    assert "Traceback" not in err
    before = finished_candidates(tmp_path / "my run")
    assert 1 <= len(before) < 3
    assert json.loads((tmp_path / "my run/run.json").read_text())["status"] == "running"

    clash = compress("--resume", "--out", "my run", "--macs", "0.25", "-q")
    assert clash.status == 2
    assert clash.error == (
        "output folder my run: its run has macs None, not 0.25; resume with the same options, or choose another --out"
    )

    ended = compress(*shlex.split(err.splitlines()[-1].partition("go on with: compress ")[2]))
    assert ended.status == 0, ended.err
    after = finished_candidates(tmp_path / "my run")
    assert {path: after[path] for path in before} == before
    assert len(after) == 3
    restored = {line.split()[0] for line in ended.err.splitlines() if line.endswith(", from before")}
    assert restored == {path.parent.name for path in before}
    front = json.loads((tmp_path / "my run/front.json").read_text())
    assert substance(front) == substance(finished.front)
    command_line = json.loads((tmp_path / "my run/run.json").read_text())["command"]
    assert command_line == shlex.join(["compress", *JOB, "--out", "my run"])


@pytest.mark.slow
def test_a_killed_run_is_found_and_goes_on(compress: Call, finished: Finished, tmp_path: Path) -> None:
    process = begin(tmp_path, *JOB)
    run = tmp_path / "runs/resnet-cpu"
    first = finished.front["candidates"][0]["id"]
    wait_for(run / "candidates/float/candidate.json", process)
    wait_for(run / "candidates" / first, process)
    process.kill()
    process.communicate(timeout=60)
    before = finished_candidates(run)
    refused = compress(*JOB, "--out", "runs/resnet-cpu", "-q")
    assert refused.status == 2
    assert "it holds an unfinished run; add --resume to go on with it" in refused.error
    # Nothing but the model and the target is typed: everything else is known.
    ended = compress("--resume", "--model", "resnet", "--target", "cpu", "--json")
    assert ended.status == 0, ended.err
    assert ended.err.splitlines().count("1 of 3 candidates are there from before") == int(len(before) == 1)
    after = finished_candidates(run)
    assert {path: after[path] for path in before} == before
    assert substance(ended.json) == substance(finished.front)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_an_interrupt_while_torch_is_loaded_writes_nothing_and_names_the_same_command(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = begin(tmp_path, *JOB, "--out", "r")
    assert process.stderr is not None
    assert process.stderr.readline() == "load PyTorch\n"
    time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == f"error: interrupted; go on with: {shlex.join(['compress', *JOB, '--out', 'r'])}"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_a_library_turned_into_another_error_is_still_one(
    inside: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.cli import interrupts

    def swallowed() -> None:
        try:
            interrupts._stop(signal.SIGINT, None)
        except KeyboardInterrupt:
            raise ImportError("a module failed to load") from None

    monkeypatch.setattr(interrupts, "_came", False)
    monkeypatch.setattr(interrupts, "ignore", lambda: None)
    monkeypatch.setattr("compress.cli.lists.devices.names", swallowed)
    ended = inside("targets")
    assert ended.status == 130
    assert ended.error == "interrupted; go on with: compress targets"


def test_where_a_library_swallowed_it_the_next_word_of_progress_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.cli import interrupts
    from compress.cli.progress import Lines

    lines = Lines(None, verbose=False)
    lines.message("still quiet")
    monkeypatch.setattr(interrupts, "_came", True)
    with pytest.raises(KeyboardInterrupt):
        lines.message("next")
