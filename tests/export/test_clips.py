"""A clip is one Clip in the file, whatever ends it has and however it is written, and integer kernels have it for
nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.export.onnx import serialize
from compress.quantize import quantize
from compress.types import State
from tests.support import exact_here

CLIPS: dict[str, Callable[[Tensor], Tensor]] = {
    "above, whole": lambda y: y.clamp(max=0),
    "above": lambda y: y.clamp(max=0.0),
    "above, by name": lambda y: torch.clamp_max(y, 0.3),
    "below": lambda y: y.clamp(min=-0.1),
    "below, by name": lambda y: y.clamp_min(0.2),
    "both": lambda y: y.clamp(-0.1, 0.3),
    "both, as a function": lambda y: F.hardtanh(y, -0.2, 0.1),
}


class Clipped(nn.Module):
    """A clip between two convolutions."""

    def __init__(self, clip: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.clip(self.one(x)))


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(n))


def run(file: bytes, x: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(exact_here(file))
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def operators(file: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(file).graph.node)


@pytest.mark.parametrize("name", CLIPS)
def test_in_float_it_is_one_operator_and_computes_what_torch_does(name):
    model, x = Clipped(CLIPS[name]).eval(), images(2)
    file = serialize(State(model), x)
    assert operators(file) == {"Conv": 2, "Clip": 1}
    np.testing.assert_allclose(run(file, x), model(x).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("name", CLIPS)
def test_in_eight_bits_the_convolution_in_front_writes_the_clipped_integers(name):
    """Nothing is rounded between the two: the grid is that of what is clipped."""
    made = quantize(Clipped(CLIPS[name]).eval(), images(64), weight_bits=8)
    x = images(3)
    file = serialize(made.state, x)
    found = operators(file)
    assert found["QuantizeLinear"] == 2  # the input, and what is clipped
    assert found["Conv"] == 2
    with torch.no_grad():
        wanted = made.simulation(x).numpy()
    np.testing.assert_allclose(run(file, x), wanted, atol=0.02)


def test_ends_that_are_tensors_and_inputs_of_integers_compute_what_torch_does():
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            whole = (10 * y).to(torch.int64).clamp(min=1)
            ends = torch.clamp(y, max=self.conv.bias[:, None, None]) + torch.clamp(y, 2 * y, 2 * y + 1)
            return ends + torch.clamp(y, self.conv.weight.mean()) + whole.to(torch.float32)

    model, x = Other().eval(), images(2)
    np.testing.assert_allclose(run(serialize(State(model), x), x), model(x).detach().numpy(), atol=1e-5)
