"""The sensing step trains patterns with the network behind them: pixels turn, however small their gradients are."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from compress import data, targets
from compress.quantize.binary import ADAM_EPSILON
from compress.quantize.sense import Sense
from compress.quantize.sensed import sensed
from compress.quantize.sensing_start import start
from compress.training import Recipe, fit
from compress.types import Budget, Context, State

EPOCHS = 12


class Sharpened(nn.Module):
    """Images from images; untrained, the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.last(torch.relu(self.first(x)))
        return found


def classifier() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4))


@pytest.mark.parametrize("task", ["classification", "reconstruction"])
def test_pixels_of_patterns_turn_in_training(task: Literal["classification", "reconstruction"]) -> None:
    images = torch.rand(256, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    given = data.from_python((images, images if task == "reconstruction" else torch.arange(256) % 4), divisible=False)
    context = Context(targets.load("cpu"), Budget(), given, torch.Generator().manual_seed(0), samples=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = sensed(Sharpened() if task == "reconstruction" else classifier(), images[:2], 0.1)
    still, trained = (Sense(0.1, epochs)(State(network), context).model for epochs in (0, EPOCHS))
    turned = float((still.sensing.signs() != trained.sensing.signs()).float().mean())
    assert 0 < turned < 0.5
    assert trained.sensing.learning is None


def test_pixels_turn_however_small_their_gradients_are() -> None:
    """At any step: where a pixel that turned is no better, it turns back, and rounding decides how it ends."""
    images = 1e-3 * torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    split = data.from_python((images, images), divisible=False).train
    turned = []
    for epsilon in (Recipe().epsilon, ADAM_EPSILON):
        network = sensed(Sharpened(), images[:2], 0.1)
        start(network.sensing, [images])
        network.sensing.learn()
        before, seen = network.sensing.signs(), []
        network.sensing.register_forward_pre_hook(
            lambda layer, _, before=before, seen=seen: seen.append(layer.signs() != before)
        )
        fit(
            network,
            split,
            Recipe(epochs=40, lr=5e-3, batch_size=16, optimizer="adamw", weight_decay=0.0, epsilon=epsilon),
            generator=torch.Generator().manual_seed(0),
            task="reconstruction",
            rates=lambda name: 1.0 if name == "sensing.learning.latent" else 0.0,
        )
        turned.append(int(torch.stack(seen).any(0).sum()))
    assert turned[0] == 0 < turned[1]
