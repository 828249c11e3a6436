"""``compress calibrate``, and runs that predict by what it found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import compress
from compress.calibration import Calibration
from compress.errors import BadInput, RunFolderError
from compress.profiling import calibrating, calibrations
from compress.results import Front
from compress.serial import from_json, to_json
from compress.targets import load
from tests.graph.networks import images
from tests.profiling.synthetic import Synthetic, calibration
from tests.small_jobs import network


@pytest.mark.slow
def test_it_times_fits_keeps_and_shows_its_error(inside, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(calibrating, "Here", lambda target: Synthetic(0.1))
    ended = inside("calibrate", "cpu")
    assert ended.status == 0
    assert "unseen" in ended.out or "weren't fitted" in ended.out
    assert "calibrate: onnxruntime, float" in ended.err
    ended = inside("calibrate", "cpu", "--json")
    path = Path(ended.json["path"])
    held = from_json(Calibration, json.loads(path.read_text()))
    assert (held.digest(), to_json(held)) == (ended.json["sha256"], ended.json["calibration"])
    assert path.is_relative_to(tmp_path / "data")


@pytest.mark.slow
def test_an_interruption_leaves_no_half_file_and_the_old_one_as_it_was(inside, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = calibrations.save(load("cpu"), calibration())
    before = path.read_bytes()

    class Stopped(Synthetic):
        def measure(self, drawn, runtime, tell):
            if runtime == "tvm":
                raise KeyboardInterrupt
            return super().measure(drawn, runtime, tell)

    monkeypatch.setattr(calibrating, "Here", lambda target: Stopped())
    ended = inside("calibrate", "cpu")
    assert ended.status == 130
    assert [each.read_bytes() for each in path.parent.iterdir()] == [before]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("calibrate",), "missing TARGET"),
        (("calibrate", "nothing"), "unknown target 'nothing'"),
        (("calibrate", "raspberry-pi-4"), "add --device ssh://USER@HOST"),
        (("calibrate", "raspberry-pi-4", "--device", "local"), "isn't it; add --device ssh://USER@HOST"),
        (("calibrate", "cpu", "--device", "qemu"), "and cpu is none"),
        (("calibrate", "cpu", "--device", "ssh://pi@host"), "leave --device out"),
        (("calibrate", "cortex-m4", "--device", "ssh://pi@host"), "leave --device out"),
        (("calibrate", "raspberry-pi-4", "--device", "rpc://host:9190/pi"), "give --device ssh://USER@HOST"),
        (("calibrate", "raspberry-pi-4", "--device", "telnet"), "telnet"),
        (("calibrate", "jetson"), "compress profile BUNDLE --device ssh://USER@HOST measures them there"),
        (
            ("-q", "--model", "resnet", "--target", "cpu", "--calibration", "no.json"),
            "make it again: compress calibrate",
        ),
    ],
)
def test_bad_input_is_one_line_with_a_way_out(inside, tmp_path, arguments, said) -> None:
    ended = inside(*arguments)
    assert ended.status == 2
    assert said in ended.error
    assert list(tmp_path.iterdir()) == []


def labelled():
    return images(40), torch.arange(40) % 5


def short(out: Path, **more) -> Front:
    settings = {"prune": "none", "quantize": "uniform", "candidates": 1, "epochs": 0, "samples": 16, **more}
    return compress.run(network(), labelled(), target="cpu", out=out, **settings)


def test_a_run_predicts_by_the_calibration_that_holds_and_keeps_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    held = calibration()
    calibrations.save(load("cpu"), held)
    out = tmp_path / "run"
    front = short(out)
    for candidate in (front.baseline, *front.candidates):
        for artifact in candidate.artifacts:
            assert artifact.estimate.calibration == held.digest()
            assert artifact.estimate.error == 0.25
    document = json.loads((out / "front.json").read_text())
    assert document["candidates"][0]["latency"]["calibration"] == held.digest()
    run = json.loads((out / "run.json").read_text())
    assert run["configuration"]["calibration"] == held.digest()
    assert from_json(Calibration, json.loads((out / "calibration.json").read_text())) == held
    assert held.digest()[:12] in (out / "report.html").read_text()

    # What has been measured since plays no part in a run that goes on; another one, if it is named, is refused.
    newer = replace(held, date="2026-11-28 03:00:00 +0000")
    calibrations.save(load("cpu"), newer)
    assert short(out, resume=True).candidates[0].best.estimate.calibration == held.digest()
    other = tmp_path / "other.json"
    other.write_text(json.dumps(to_json(newer)))
    with pytest.raises(RunFolderError, match="calibration"):
        short(out, resume=True, calibration=other)


def test_a_run_says_why_a_calibration_is_not_used_and_predicts_without_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    target = load("cpu")
    path = calibrations.save(target, replace(calibration(), device="another machine"))
    front = short(tmp_path / "run")
    assert front.candidates[0].best.estimate.calibration is None
    assert front.candidates[0].best.estimate.error == target.prediction_error
    assert "made on another device" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "calibration.json").exists()
    with pytest.raises(BadInput, match="made on another device"):
        short(tmp_path / "run2", calibration=path)
    assert not (tmp_path / "run2").exists()
