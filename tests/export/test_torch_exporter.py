"""torch.onnx in less time gives the file that it gives in more, and is left as it was."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from compress.export import torch_exporter
from compress.export.onnx import serialize
from compress.types import State
from tests.graph.convolutional import Transposed
from tests.graph.networks import ARCHITECTURES, Attention, Plain, UNet, build, images, inputs_of
from tests.graph.transformers import Recurrent, TwoInputs
from tests.rosters import some

passes = pytest.importorskip("torch.onnx._internal.exporter._fx_passes")
ALONE = [each for each in ARCHITECTURES if each is not TwoInputs]


class Norms(nn.Module):
    """Batch normalization without weights, and by the batch's own statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3)
        self.bare, self.own = nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(self.bare(self.a(x))).mean((2, 3))


class InPlace(nn.Module):
    """What writes into its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[:, :1] += 3.0
        return y.relu_().mean((2, 3))


class WithoutGradients(nn.Module):
    """A part that torch.export writes as a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = self.a(x)
        return x.mean((2, 3))


def both(factory: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, bytes]:
    """The file of today, and that of a torch which takes every network apart."""
    torch.manual_seed(0)
    model = build(factory) if factory in ARCHITECTURES else factory().eval()
    (x,) = inputs_of(factory, 2) if factory in ARCHITECTURES else (images(2),)
    brief = serialize(State(model), x)
    with monkeypatch.context() as patch:
        patch.setattr(torch_exporter, "_translated", lambda program, registry: False)
        return brief, serialize(State(model), x)


def outputs(content: bytes, x: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


@some("factory", [*ALONE, Norms, InPlace, WithoutGradients], quick=(Attention, UNet, Norms, InPlace, WithoutGradients))
def test_the_file_is_that_of_a_network_taken_apart(factory, monkeypatch):
    brief, whole = both(factory, monkeypatch)
    operators = [[node.op_type for node in onnx.load_from_string(each).graph.node] for each in (brief, whole)]
    assert operators[0] == operators[1]
    x = inputs_of(factory, 4)[0] if factory in ARCHITECTURES else images(4)
    x = x[:2] if factory is Recurrent else x
    for got, expected in zip(outputs(brief, x), outputs(whole, x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("factory", "apart"), [(Plain, False), (Attention, False), (Transposed, True), (Norms, True), (InPlace, True)]
)
def test_only_what_has_no_translation_is_taken_apart(factory, apart, monkeypatch):
    original, times = passes.decompose_with_registry, []

    def counted(program, registry):
        times.append(program)
        return original(program, registry)

    monkeypatch.setattr(passes, "decompose_with_registry", counted)
    model = build(factory) if factory in ARCHITECTURES else factory().eval()
    serialize(State(model), images(2))
    assert len(times) == apart


def test_torch_is_left_as_it_was():
    registry = pytest.importorskip("torch.onnx._internal.exporter._registration").ONNXRegistry
    before = passes.decompose_with_registry, vars(registry)["from_torchlib"]

    def failing() -> None:
        with torch_exporter.brief():
            assert passes.decompose_with_registry is not before[0]
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert (passes.decompose_with_registry, vars(registry)["from_torchlib"]) == before


def test_where_torch_does_this_elsewhere_nothing_changes(monkeypatch):
    expected = serialize(State(build(Attention)), images(2))
    monkeypatch.delattr(passes, "decompose_with_registry")
    with torch_exporter.decomposed_if_needed():
        assert not hasattr(passes, "decompose_with_registry")
    monkeypatch.undo()
    assert serialize(State(build(Attention)), images(2)) == expected
