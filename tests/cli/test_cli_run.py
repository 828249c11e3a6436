"""The main job from the command line: what it prints, writes and returns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_calls import QUICK, Call, Finished


def test_a_run_ends_with_its_folder_and_prints_the_front_and_what_to_type_next(finished: Finished) -> None:
    out = finished.ended.out
    assert {path.name for path in finished.path.iterdir()} == {
        "run.json", "front.json", "front.svg", "report.html", "candidates", "bundle",
    }  # fmt: skip
    for candidate in finished.front["candidates"]:
        assert candidate["id"] in out
    assert "report.html" in out
    assert out.rstrip().splitlines()[-3:] == [
        "  compress explain run",
        "  compress verify run/bundle",
        "  compress profile run/bundle",
    ]


def test_progress_goes_to_the_error_stream_in_plain_lines(finished: Finished) -> None:
    lines = finished.ended.err.splitlines()
    ids = ["float", *(c["id"] for c in finished.front["candidates"])]
    made = [line for line in lines if line.split()[0] in ids]
    assert [line.split()[0] for line in made] == ids
    for line, candidate in zip(made, [finished.front["baseline"], *finished.front["candidates"]], strict=True):
        assert f"{candidate['accuracy']['value']:.1f}%" in line
        assert line.endswith("MACs")
    assert "\x1b" not in finished.ended.err + finished.ended.out


def test_run_json_says_what_was_typed(finished: Finished) -> None:
    document = json.loads((finished.path / "run.json").read_text())
    assert document["command"].startswith("compress --model resnet --epochs 0 --samples 64 --target cpu")
    asked = document["configuration"]["asked"]
    assert asked == {
        "model": "resnet",
        "data": "digits",
        "target": "cpu",
        "weights": None,
        "mean": None,
        "std": None,
        "protect_classes": None,
    }


@pytest.mark.slow
def test_json_is_front_json_and_nothing_else(compress: Call, tmp_path: Path) -> None:
    ended = compress(*QUICK, "--target", "jetson", "--candidates", 1, "--json")
    assert ended.status == 0
    assert ended.json == json.loads((tmp_path / "runs/resnet-jetson-orin-nano/front.json").read_text())
    assert ended.json["target"] == "jetson-orin-nano"
    assert "float" in ended.err


@pytest.mark.slow
def test_a_budget_out_of_reach_is_exit_3_with_the_front_written_and_the_nearest_named(
    compress: Call, tmp_path: Path
) -> None:
    ended = compress(*QUICK, "--target", "cpu", "--candidates", 2, "--latency", "1ns", "--json", "-q", "--out", "r")
    front = json.loads((tmp_path / "r/front.json").read_text())
    assert ended.status == 3
    assert ended.json == front
    assert front["best"] is None
    assert not (tmp_path / "r/bundle").exists()
    # The nearest is the one of least latency, the only limit.
    nearest = min(front["candidates"], key=lambda c: c["latency"]["measured_s"])
    assert ended.err.count("\n") == 1
    assert ended.err.startswith(f"error: no candidate meets latency ≤ 1.00 ns; nearest: {nearest['id']} (latency ")
    assert "the limit); relax the budget" in ended.err


def test_the_excess_of_every_limit_is_named() -> None:
    from compress.cli.job import unreachable
    from compress.results import Accuracy, Artifact, Candidate, Dataset, Estimate, Front
    from compress.types import Budget, Plan

    def candidate(name: str, size: int, value: float, macs: int) -> Candidate:
        accuracy = Accuracy(value, value - 1, value + 1, 100, "onnxruntime")
        artifact = Artifact("p", "onnxruntime", "", "", size, accuracy, Estimate(2e-3, 2048, size, (), 0.5), None, 2048)
        return Candidate(name, Plan(), (artifact,), (), macs, macs, 8.0, 8.0)

    budget = Budget(flash_bytes=1000, max_accuracy_drop=1.0, ram_bytes=1024)
    front = Front(
        "m", "t", Dataset("d", "", 100), candidate("float", 4096, 90, 100), (candidate("a", 1500, 86.5, 50),), budget
    )
    error = unreachable(front)
    assert error.exit_code == 3
    assert error.budget == "RAM ≤ 1.0 KiB and file ≤ 1,000 B and accuracy drop ≤ 1 point"
    assert error.nearest == (
        "a (RAM 2.0 KiB, 2.0\N{MULTIPLICATION SIGN} the limit, flash 1.5 KiB, 50% over, "
        "accuracy drop 3.50 points, 2.50 over)"
    )


def test_a_finished_run_is_never_overwritten_unasked(inside: Call, finished: Finished) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")}
    ended = inside(*QUICK, "--target", "cpu", "--out", finished.path, "-q")
    assert ended.status == 2
    assert "it already holds a finished run; choose another --out" in ended.error
    assert {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")} == before


def test_resuming_a_finished_run_prints_it_again_and_changes_nothing(inside: Call, finished: Finished) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")}
    ended = inside("--resume", "--out", finished.path, "--json", "-q")
    assert (ended.status, ended.err) == (0, "")
    assert ended.json == finished.front
    ended = inside("--resume", "--out", finished.path, "--seed", "5", "-q")
    assert ended.status == 2
    assert "its finished run has --seed 0, not 5; choose another --out" in ended.error
    assert {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")} == before


@pytest.mark.parametrize(
    ("target", "next_ones"),
    [
        ("cpu", ["compress explain 'a run'", "compress verify 'a run/bundle'", "compress profile 'a run/bundle'"]),
        (
            "raspberry-pi-5",
            [
                "compress explain 'a run'",
                "compress verify 'a run/bundle'",
                "scp -r 'a run/bundle' USER@DEVICE:",
                "ssh USER@DEVICE python3 bundle/run.py --time",
            ],
        ),
        ("cortex-m7", ["compress explain 'a run'", "compress verify 'a run/bundle'"]),
    ],
)
def test_what_to_type_next_depends_on_where_the_bundle_can_run(
    finished: Finished, target: str, next_ones: list[str]
) -> None:
    from compress import targets
    from compress.cli.job import next_commands
    from compress.results import Front

    front = Front.from_document(finished.front)
    assert list(next_commands(front, Path("a run"), targets.load(target))) == next_ones


@pytest.mark.slow
def test_a_network_of_the_users_own_prints_to_the_error_stream_only(compress: Call, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    print('hello from the file')\n"
        # Sequential calls its argument `input`, like a builtin of Python.
        "    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)\n"
        "    return nn.Sequential(*layers)\n"
    )
    ended = compress(
        "--model", "net.py:make", "--data", "digits", "--target", "cpu", "--prune", "none", "--candidates", 1,
        "--quantize", "uniform", "--samples", 64, "--json",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert ended.json["model"] == "net.py:make"
    assert "hello from the file" in ended.err


def test_report_draws_the_same_report_again(inside: Call, finished: Finished, tmp_path: Path) -> None:
    run = shutil.copytree(finished.path, tmp_path / "run")
    drawn = {name: (run / name).read_bytes() for name in ("report.html", "front.svg")}
    for name in drawn:
        (run / name).unlink()
    ended = inside("report", "run", "--json")
    assert ended.status == 0
    assert ended.json["written"] == ["run/report.html", "run/front.svg"]
    assert ended.json["front"] == finished.front
    assert ended.json["headline"]
    assert [each["candidate"] for each in ended.json["explanations"]] == [c["id"] for c in finished.front["candidates"]]
    assert {name: (run / name).read_bytes() for name in drawn} == drawn


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"schema": 1}', b'{"schema": 9}', b"\xff\xfe"])
@pytest.mark.parametrize("name", ["front.json", "run.json"])
def test_report_and_resume_of_a_damaged_run_are_one_line(
    inside: Call, finished: Finished, tmp_path: Path, name: str, damage: bytes
) -> None:
    run = shutil.copytree(finished.path, tmp_path / "run")
    (run / name).write_bytes(damage)
    for arguments in (["report", "run"], ["--resume", "--out", "run", "-q"]):
        ended = inside(*arguments)
        assert ended.status == 2
        assert name in ended.error
