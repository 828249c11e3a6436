"""Prune and quantize a network of one's own in a training script, step by step, and write the ONNX file.

python examples/own_network.py [OUT]
"""

import sys
from pathlib import Path

import torch
from torch import nn

from compress import data
from compress.export import onnx
from compress.profiling.evaluate import accuracy
from compress.prune import prune
from compress.quantize import quantize
from compress.training import Recipe, evaluate, fit


class Digits(nn.Module):
    """Any network: three convolutions, batch norms, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        )
        self.classify = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(x).mean((2, 3)))


out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own-network")
out.mkdir(parents=True, exist_ok=True)
digits = data.load("digits", mean=(0.5,), std=(0.5,))
generator = torch.Generator().manual_seed(0)
torch.manual_seed(0)

model = Digits()
fit(model, digits.train, Recipe(epochs=6, lr=0.05, batch_size=32), generator=generator)
print("float:", evaluate(model, digits.evaluate))

# `data` is anything that hands out batches: a DataLoader, a pair of arrays or, as here, a data set of ours.
small = prune(model, torch.zeros(1, 1, 32, 32), macs=0.5, data=digits)
print(
    f"pruned to {small.report.after.macs / small.report.before.macs:.2f} of the MACs:",
    evaluate(small.model, digits.evaluate),
)
fit(small.model, digits.train, Recipe(epochs=2, lr=0.02, batch_size=32), generator=generator, teacher=model)
print("after two epochs:", evaluate(small.model, digits.evaluate))

quantized = quantize(small.model, digits, weight_bits=6, target="raspberry-pi-4")
for layer in quantized.plan.layers:
    print(f"  {layer.name}: {layer.precision}")
onnx.export(quantized.state, torch.zeros(1, 1, 32, 32), out / "model.onnx")
found = accuracy(out / "model.onnx", digits)
print(
    f"the file: {found.value:.1f}% ({found.low:.1f} to {found.high:.1f}), {(out / 'model.onnx').stat().st_size} bytes"
)
