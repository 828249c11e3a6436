"""The main job for every target that ships."""

from __future__ import annotations

import torch
from torch import nn

import compress
from compress import targets
from compress.export import bundle
from compress.export.manifest import read_manifest
from tests.graph.networks import build, images
from tests.rosters import some


class Small(nn.Sequential):
    """As little as can be pruned and quantized: nine jobs trace it over and over."""

    def __init__(self) -> None:
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), *pooled, nn.Linear(8, 5))


QUICK = ("cortex-m7", "jetson-orin-nano", "raspberry-pi-4")
"""One of each kind beside this machine, whose jobs other tests run; the others' runs are slow tests."""


@some("target", targets.names(), quick=QUICK)
def test_the_job_runs_for_every_target_and_its_bundle_names_it(target, tmp_path):
    data = (images(40), torch.arange(40) % 5)
    out = tmp_path / "run"
    half = compress.Budget(macs=0.5)
    front = compress.run(build(Small), data, target=target, budget=half, out=out, candidates=1, epochs=0, samples=16)
    device = targets.load(target)
    [candidate] = front.candidates
    assert candidate.macs <= front.baseline.macs / 2
    assert candidate.weight_bits <= 8
    manifest = read_manifest(out / "bundle")
    assert (manifest.target, front.target) == (target, target)
    assert bundle.damage(out / "bundle", manifest) == []
    # Every runtime of the target has given a file or says why not.
    assert {*manifest.runtimes, *manifest.unavailable} == set(device.runtimes)
    assert all((out / "bundle" / name).is_file() for name in manifest.runtimes.values())
    # What was measured was measured here; another device's latency is only ever predicted.
    assert front.all_measured == device.host
