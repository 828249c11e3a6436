"""The sensing layer as one of a network: traced, exported, pruned and quantized with what is behind it."""

from __future__ import annotations

import io

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from compress.export.onnx import serialize
from compress.graph.trace import kind, trace
from compress.prune import prune
from compress.quantize import quantize
from compress.quantize.sensed import SensedClassifier, sensed
from tests.quantize.sensing_layers import layer, light, ranged


class Classifier(nn.Module):
    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last(x.mean((2, 3)))


def classifier(channels: int = 1, side: int = 16, **more) -> SensedClassifier:
    torch.manual_seed(0)
    return sensed(Classifier(channels).eval(), torch.rand(2, channels, side, side), 0.25, **more)


@pytest.mark.parametrize("name", ["block", "colour", "field", "zeros and ones", "mean"])
def test_it_traces_as_an_ordinary_convolution_and_onnx_runtime_agrees(name):
    made = ranged(layer(name))
    x = light(made)
    nodes = trace(made, (x,)).nodes
    assert {kind(node) for node in nodes} <= {"conv2d", "cat", "split", "getitem", "slice"}
    assert sum(kind(node) == "conv2d" for node in nodes) == made.channels
    program = io.BytesIO()
    torch.onnx.export(made, (x,), program, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, made(x).detach().numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"channels": 3, "values": "01", "block": 8}], ids=["field", "colour blocks"])
def test_a_classifier_behind_measurements_is_pruned_and_quantized_but_its_patterns_are_not(options):
    made = classifier(**options)
    x = torch.rand(48, made.sensing.channels, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(48) % 5
    with torch.no_grad():
        z = made.sensing(x)
        torch.testing.assert_close(made(x), made.network(made.sensing.reexpand(z)))
    small = prune(made, x[:2], macs=0.9, data=(x, labels), seed=0)
    assert small.model.network.first.out_channels < 8
    assert torch.equal(small.model.sensing.weight, made.sensing.weight)
    assert any(note.where == "sensing" and note.why == "they are made in hardware" for note in small.report.notes)
    for method in ("hessian", "uniform"):
        quantized = quantize(small.model, (x, labels), weight_bits=8, method=method)
        rows = quantized.model.sensing.weight.flatten(1)
        assert torch.equal(quantized.model.sensing.signs(), made.sensing.signs())
        levels = {0.0, 1.0} if made.sensing.values == "01" else {1.0}
        assert all(set((row.abs() / row.abs().max()).tolist()) <= levels for row in rows)
    file = serialize(quantized.state, x[:2])
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: x[:2].numpy()})
    with torch.no_grad():
        wanted = small.model(x[:2]).numpy()
    assert np.abs(found - wanted).max() < 0.1 * max(1.0, np.abs(wanted).max())


def test_a_wrapper_takes_fields_and_blocks_as_the_images_size_says():
    assert classifier().sensing.size == (16, 16)
    assert classifier().sensing.block is None
    large = classifier(side=40)
    assert large.sensing.block == 32
    with torch.no_grad():
        assert large(torch.rand(2, 1, 40, 40)).shape == (2, 5)
