"""Does the chain work on this machine: quantize a tiny network, export it, run the file, compare."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress import data, targets
from compress.export import onnx as interchange
from compress.export.onnxruntime import weight_storage
from compress.profiling.session import as_input, open_session, runner
from compress.types import Budget, Context, State

SIDE, CLASSES, IMAGES = 8, 4, 32
STEPS = 2
"""Rounding steps of the output grid that runtime and simulation may differ by: ONNX Runtime requantizes
in float, and either of the two layers may round the other way once."""


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """Largest difference between the file in ONNX Runtime and its simulation, in rounding steps of the
    output's 8-bit grid, and how many steps are allowed."""

    steps: float
    allowed: float

    @property
    def ok(self) -> bool:
        """True if the two agree."""
        return self.steps <= self.allowed


def self_check() -> SelfCheck:
    """Quantize a convolution and a linear layer to 8 bits, export them, and run both the file and its simulation."""
    import torch
    from torch import nn

    from compress.graph.qdq import insert
    from compress.graph.trace import trace
    from compress.quantize.uniform import Uniform

    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, CLASSES)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    images = torch.randn(IMAGES, 3, SIDE, SIDE, generator=generator)
    labels = torch.arange(IMAGES) % CLASSES
    # The host's own target: its activations are of the kind that this processor's kernels take.
    host = next(t for t in map(targets.load, targets.names()) if t.host)
    context = Context(host, Budget(), data.from_python((images, labels), name="self-check"), generator)
    state = Uniform()(State(network.eval()), context)
    assert state.quantization is not None
    simulation = insert(trace(state.model, (images[:2],)), state.quantization)
    with torch.no_grad():
        expected = as_input(simulation(images))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / interchange.FILE
        interchange.export(state, images[:2], path, weights=weight_storage(host))
        found = runner(open_session(path, 1))(as_input(images))
    step = float(np.ptp(expected)) / 255
    return SelfCheck(float(np.abs(found - expected).max()) / step, STEPS)


__all__ = ["SelfCheck", "self_check"]
