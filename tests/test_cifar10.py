"""The published CIFAR-10 networks through the main job, on the 10,000 test images."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_resnet20_keeps_its_accuracy_in_8_bits(shared_data, cifar10_dir, tmp_path):
    weights = next((shared_data / "weights" / "cifar10-akamaster").glob("resnet20*"))
    options = "--prune none --quantize uniform --weight-bits 8 --epochs 0 --target cpu --json -q --out run"
    what = ["--model", "resnet20", "--weights", str(weights), "--data", f"cifar10:{cifar10_dir}"]
    command = [sys.executable, "-m", "compress", *what, *options.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    front = json.loads(done.stdout)
    assert front["dataset"]["n_eval"] == 10_000
    assert front["baseline"]["accuracy"]["value"] == 91.73
    (candidate,) = front["candidates"]
    found = {artifact["runtime"]: artifact["accuracy"]["value"] for artifact in candidate["artifacts"]}
    assert found["onnxruntime"] >= 91.6
    assert abs(found.get("tvm", found["onnxruntime"]) - found["onnxruntime"]) <= 0.1
    file = next(artifact for artifact in candidate["artifacts"] if artifact["runtime"] == "onnxruntime")
    whole = next(artifact for artifact in front["baseline"]["artifacts"] if artifact["runtime"] == "onnxruntime")
    assert file["bytes"] < 0.4 * whole["bytes"]
    assert candidate["latency"]["measured_s"] > 0
