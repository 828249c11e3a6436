"""Cross-layer equalization: float stays what it is, ranges become equal, and it is done where it helps."""

from __future__ import annotations

import copy

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.export.onnx import serialize
from compress.graph.interpret import Steps
from compress.graph.trace import trace
from compress.quantize import equalization, quantize
from compress.quantize.equalization import equalized, equalizing, largest_columns, scale_
from compress.quantize.rebuild import layers_of
from compress.quantize.scalable import Between, between
from compress.types import Precision, State
from tests.graph.networks import ROSTER, build, images

W8A8 = Precision(8, 8, "integer")


class Inverted(nn.Module):
    """An inverted residual with ReLU, as MobileNetV2's with ReLU6: expansion, depthwise convolution, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.expand, self.depth, self.project = (
            nn.Conv2d(16, 32, 1),
            nn.Conv2d(32, 32, 3, 1, 1, groups=32),
            nn.Conv2d(32, 16, 1),
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.project(F.relu(self.depth(F.relu(self.expand(x)))))
        return self.head(x.mean((2, 3)))


class Clipped(Inverted):
    """The same with ReLU6 behind the expansion."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.project(F.relu(self.depth(F.relu6(self.expand(x)))))
        return self.head(x.mean((2, 3)))


class Fire(nn.Module):
    """Two layers read one tensor; what they make is joined, pooled, padded, flattened and read by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.one, self.three = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(16 * 5 * 5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        x = F.max_pool2d(F.relu(torch.cat([self.one(x), self.three(x)], 1)), 4)
        return self.head(F.pad(x, (0, 1, 1, 0)).flatten(1))


class Shortcut(nn.Module):
    """The input joins what a layer made, and one layer's output is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.gate = nn.Conv2d(3, 4, 1), nn.Conv2d(7, 4, 1), nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(torch.cat([x, F.relu(self.one(x))], 1))
        return self.head((y * self.gate(x)).mean((2, 3)))


def found(model: nn.Module) -> tuple[Steps, tuple[Between, ...]]:
    steps = Steps.of(trace(model, (images(2),)))
    return steps, between(steps, layers_of(steps).values())


def named(channels: Between) -> tuple[set[str], set[str]]:
    makers, readers = (
        {end.layer.weight.removesuffix(".weight") for end in ends} for ends in (channels.makers, channels.readers)
    )
    return makers, readers


def unbalanced(factory, seed: int = 0) -> nn.Module:
    """A network whose channels are of very different sizes, which no output shows."""
    model = build(factory, seed)
    _, ties = found(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for channels in ties:
            scale_(model, channels, (2 * torch.randn(channels.count, generator=generator, dtype=torch.float64)).exp2())
    return model


def off(model: nn.Module, wanted: nn.Module, bits: float) -> float:
    """Relative squared error of the quantized network's output on other inputs than those of calibration."""
    x = images(32, 9)
    with torch.no_grad():
        y = wanted(x)
        return float(
            (quantize(model, images(64), weight_bits=bits).simulation(x) - y).square().sum() / y.square().sum()
        )


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (Inverted, [({"stem", "project"}, {"expand", "head"}), ({"expand"}, {"depth"}), ({"depth"}, {"project"})]),
        (Clipped, [({"stem", "project"}, {"expand", "head"}), ({"depth"}, {"project"})]),
        (Fire, [({"squeeze"}, {"one", "three"}), ({"one", "three"}, {"head"})]),
        (Shortcut, [({"one"}, {"two"})]),
    ],
)
def test_channels_are_scaled_as_far_as_what_lies_between_commutes(factory, expected):
    assert [named(channels) for channels in found(build(factory))[1]] == expected


@pytest.mark.parametrize("factory", [Inverted, Clipped, Fire, Shortcut, *ROSTER])
def test_any_scaling_leaves_the_float_network_as_it_is(factory):
    model, x = build(factory), images(8, 5)
    changed = unbalanced(factory)
    _, ties = found(model)
    moved = {end.layer.weight for channels in ties for end in (*channels.makers, *channels.readers)}
    for name in moved:
        assert not torch.equal(model.get_parameter(name), changed.get_parameter(name))
    with torch.no_grad():
        assert torch.allclose(changed(x), model(x), rtol=1e-3, atol=1e-4 * float(model(x).abs().max()))


@pytest.mark.parametrize("factory", [Inverted, Fire])
def test_what_is_equalized_computes_the_same_in_its_onnx_file(factory):
    model, x = unbalanced(factory), images(8, 5)
    steps, _ = found(model)
    made, notes = equalized(
        model,
        steps,
        [W8A8],
        images(32),
        signedness="unsigned",
        batch=16,
        generator=torch.Generator().manual_seed(0),
        progress=lambda m: None,
    )
    assert notes
    assert any(not torch.equal(a, b) for a, b in zip(made.parameters(), model.parameters(), strict=True))
    session = onnxruntime.InferenceSession(serialize(State(made), x))
    with torch.no_grad():
        wanted = model(x)
    assert torch.allclose(
        torch.from_numpy(session.run(None, {"input": x.numpy()})[0]),
        wanted,
        rtol=1e-3,
        atol=1e-4 * float(wanted.abs().max()),
    )


def test_half_and_half_makes_the_ranges_of_both_sides_weights_equal():
    """Nagel et al., equation 11, on a depthwise convolution and its neighbours."""
    model = unbalanced(Inverted)
    for at in (1, 2):
        steps, ties = found(model)
        rows, columns = equalization.largest_rows(steps, ties[at]), largest_columns(steps, ties[at])
        assert float((rows / columns).log2().abs().max()) > 2
        made = copy.deepcopy(model)
        with torch.no_grad():
            scale_(made, ties[at], equalizing(rows, columns, 0.5))
        steps, ties = found(made)
        ratio = equalization.largest_rows(steps, ties[at]) / equalization.largest_columns(steps, ties[at])
        assert torch.allclose(ratio / ratio[0], torch.ones_like(ratio), rtol=1e-4)


def test_a_dead_channel_is_left_alone():
    made, read = torch.tensor([0.0, 2.0, 8.0]).double(), torch.tensor([1.0, 0.0, 2.0]).double()
    assert equalizing(made, read, 0.5).tolist() == [1.0, 1.0, 1.0]
    assert equalizing(torch.zeros(2).double(), read[:2], 0.5).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("factory", "bits"), [(Inverted, 8), (Inverted, 4), (Fire, 8)])
def test_networks_of_unequal_channels_lose_without_it_and_not_with_it(factory, bits, monkeypatch):
    wanted = build(factory)
    model = unbalanced(factory)
    with_it, balanced = off(model, wanted, bits), off(wanted, wanted, bits)
    monkeypatch.setattr("compress.quantize.study.equalized", lambda model, *args, **more: (model, ()))
    without = off(model, wanted, bits)
    assert without > 4 * with_it
    assert with_it < 2 * balanced


def test_what_does_not_help_is_left_alone_and_what_is_done_is_noted(monkeypatch):
    model = unbalanced(Inverted)
    result = quantize(model, images(32), weight_bits=8)
    said = [note for note in result.report.notes if note.what == "channels"]
    assert {note.where for note in said} >= {"expand", "depth"}
    assert all(note.why.startswith("equalized with ") for note in said)
    monkeypatch.setattr(equalization, "HELPS", 0.0)
    assert _equalized(model) == (model, ())


def _equalized(model: nn.Module):
    steps, _ = found(model)
    return equalized(
        model,
        steps,
        [W8A8],
        images(32),
        signedness="unsigned",
        batch=16,
        generator=torch.Generator().manual_seed(0),
        progress=lambda m: None,
    )
