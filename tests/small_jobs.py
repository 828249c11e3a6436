"""A job of seconds: two convolutions for a device that takes ONNX files; and what must not change of its results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import compress
from compress import targets
from compress.results import Front
from compress.types import Target
from compress.watch import Silent


class Two(nn.Sequential):
    """Two convolutions with batch norms, of which channels can go."""

    def __init__(self) -> None:
        layers = (nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return Two().eval()


def data(seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(seed)), torch.arange(40) % 5


def device(name: str = "raspberry-pi-4", **changes: Any) -> Target:
    """A device whose artifacts are ONNX files alone."""
    return replace(targets.load(name), runtimes=("onnxruntime",), runtime="onnxruntime", **changes)


OPTIONS: dict[str, Any] = {
    "prune": "random",
    "quantize": "uniform",
    "epochs": 0,
    "samples": 16,
    "candidates": 2,
    "cache": False,
}
"""Random pruning draws from its generator, so that a wrong one shows at once."""


def run(out: Path, **changes: Any) -> Front:
    options = {**OPTIONS, **changes}
    model, given = options.pop("model", None) or network(), options.pop("data", None) or data()
    return compress.run(model, given, target=options.pop("target", None) or device(), out=out, **options)


def substance(front: Front) -> list[list[Any]]:
    """What has to be the same wherever, whenever and however often a job is done."""
    return [
        [each.id, each.plan.digest(), each.value, [[artifact.sha256, artifact.bytes] for artifact in each.artifacts]]
        for each in (front.baseline, *front.candidates)
    ]


class Log(Silent):
    """Which candidates were made, which stages ran and what was said."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.made: list[str] = []
        self.messages: list[str] = []
        self.words: list[str] = []

    def candidate(self, name: str) -> None:
        self.begun.append(name)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def said(self, text: str) -> None:
        self.words.append(text)
