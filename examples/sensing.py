"""Recognize digits from a few sums of their light: train binary patterns with a network, export both.

python sensing.py [OUT]: patterns that measure 4% of the pixels' number are trained together with a small network, and a
bundle is written that holds the patterns for the optics and the network for the processor. Takes seconds.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compress import data
from compress.export import measuring, patterns
from compress.export import onnx as interchange
from compress.profiling.session import open_session, runner
from compress.quantize import quantize
from compress.quantize.sensed import sensed
from compress.quantize.sensing_start import start
from compress.training import Recipe, evaluate, fit

RATIO = 0.04
out = Path(sys.argv[1] if len(sys.argv) > 1 else "sensing-out")
torch.manual_seed(0)

# Images of 32x32 pixels as light, from 0 to 1; 41 measurements of each.
digits = data.load("digits", mean=(0.0,), std=(1.0,))
images = digits.train.inputs(digits.train.n, torch.Generator().manual_seed(0))
network = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()),
    *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
)
model = sensed(network, images[:2], RATIO, differential=True)

# Patterns in closed form, from the images' statistics; then patterns and network learn together.
start(model.sensing, images.split(256), patterns="eigenvectors")
model.sensing.learn()
before = model.sensing.signs()
recipe = Recipe(epochs=6, lr=3e-3, optimizer="adamw", weight_decay=0.0)
faster = {"sensing.learning.latent": 5.0}
fit(model, digits.train, recipe, generator=torch.Generator().manual_seed(0), rates=lambda name: faster.get(name, 1.0))
model.sensing.fix()
turned = int((model.sensing.signs() != before).sum())
correct, n = evaluate(model, digits.evaluate)
print(f"{model.sensing.measurements} measurements: {100 * correct / n:.1f}% of {n} digits, {turned} pixels turned")

# The network in 8 bits, the patterns in 1; one file that simulates the optics, and the files for the optics.
small = quantize(model.eval(), digits.train.inputs(256, torch.Generator().manual_seed(1)), weight_bits=8)
out.mkdir(parents=True, exist_ok=True)
interchange.export(small.state, images[:2], out / "model.onnx")
made = patterns.export(small.model, out, out / "model.onnx", (1, 32, 32), (0.0,), (1.0,))
assert made is not None
print(f"{len(made.patterns.frames)} frames in {out / 'patterns' / 'frames'}")

# As the device does it: measure, here with shot noise and an ADC of 12 bits, and run the network alone.
optics = measuring.load(out / "patterns")
run = runner(open_session(out / "patterns" / "network.onnx"))
random = np.random.default_rng(0)
hits = 0
for light, labels in digits.evaluate.batches(1):
    y = optics.measure(light[0].numpy(), photons=1000.0, adc_bits=12, generator=random)
    hits += int(run(optics.standardize(y)[None]).argmax() == int(labels[0]))
print(f"from noisy measurements: {100 * hits / n:.1f}%")
