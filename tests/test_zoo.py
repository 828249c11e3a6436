"""``timm:`` and ``torchvision:`` names, with the packages themselves, where they are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

LOAD = """
import json, sys
import torch
try:
    import torchvision
except RuntimeError:
    # A torchvision built for another torch finds its own operators missing. Two declarations are all that its
    # networks need; none of them calls these.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from compress import models
from compress.graph.trace import trace
made = models.load(sys.argv[1], weights="random")
x = torch.zeros(2, *made.input_shape)
print(json.dumps({
    "parameters": sum(p.numel() for p in made.model.parameters()),
    "outputs": list(made.model(x).shape),
    "input_shape": made.input_shape, "mean": made.mean, "std": made.std, "classes": made.num_classes,
    "notes": len(trace(made.model, (x,)).notes),
}))
"""


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_network_of_another_package_loads_and_traces(package, tmp_path):
    for needed in {"torchvision", package}:
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} isn't installed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", LOAD, f"{package}:resnet18"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    # He et al., Deep Residual Learning, CVPR 2016: eleven million parameters, 224 x 224 ImageNet images.
    assert json.loads(done.stdout) == {
        "parameters": 11_689_512,
        "outputs": [2, 1000],
        "input_shape": [3, 224, 224],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "classes": 1000,
        "notes": 0,
    }
