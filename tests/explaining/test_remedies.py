"""What would help: each saving against the latency model's word on the network that was really changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from compress.explaining.explain import explain
from compress.explanation import Explanation
from compress.job import Assessment, assess
from compress.targets import load
from compress.types import FLOAT32, LayerPlan, Plan, Precision, Rate, State, Target

W8A8 = Precision(8, 8, "integer")
TARGET = replace(
    load("cortex-m7"),
    macs_per_s=(Rate(W8A8, 2e9, 0.5), Rate(FLOAT32, 1e9, 0.5)),
    bandwidth_bytes_per_s=1e10,
    launch_overhead_s=1e-7,
    channel_multiple=8,
)
EXAMPLE = torch.zeros(2, 3, 16, 16)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.two(torch.relu(self.one(x)))


class Net(nn.Module):
    """A stem, a convolution of ``middle`` channels, a residual block, a head."""

    def __init__(self, middle: int = 16) -> None:
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, middle, 3, padding=1)
        self.after = nn.Conv2d(middle, 16, 3, padding=1)
        self.block, self.head = Block(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.after(torch.relu(self.middle(torch.relu(self.stem(x))))))
        return self.head(self.block(x).mean((2, 3)))


def assessed(model: nn.Module, target: Target = TARGET) -> Assessment:
    return assess(State(model.eval()), target, EXAMPLE)


def explained(model: nn.Module, target: Target = TARGET) -> Explanation:
    return explain(assessed(model, target), assessed(Net(32), target), target)


def seconds(model: nn.Module, target: Target = TARGET) -> float:
    return assessed(model, target).estimate(0).latency_s


def test_channels_down_to_the_next_multiple() -> None:
    """20 channels are computed as 24; with 16 the layer and the one that reads it have two thirds of that."""
    found = explained(Net(20))
    assert {r.why for r in found.reasons if r.layer == "middle"} == {"misaligned"}
    (remedy,) = [r for r in found.remedies if (r.layer, r.change) == ("middle", "channels")]
    assert remedy.text == "16 channels in place of 20"
    assert remedy.saves_s == pytest.approx(seconds(Net(20)) - seconds(Net(16)), rel=1e-6)
    assert remedy.saves == pytest.approx(remedy.saves_s / seconds(Net(20)))
    assert remedy.known == "predicted"


def test_channels_that_fit_are_left_alone() -> None:
    found = explained(Net(16))
    assert not [r for r in found.remedies if r.layer == "middle"]
    assert not [r for r in found.reasons if r.layer in ("middle", "after")]


def test_channels_that_the_input_misaligns_are_not_the_ones_to_cut() -> None:
    """The stem's 3 input channels are computed as 8; its 16 output channels are a full multiple already."""
    found = explained(Net(16), replace(TARGET, launch_overhead_s=1e-9))
    assert "misaligned" in {r.why for r in found.reasons if r.layer == "stem"}
    assert not [r for r in found.remedies if r.change == "channels"]


def test_a_layer_that_holds_up_all_others_may_lose_channels_that_fit() -> None:
    before, now = Net(64), Net(8)
    before.stem, now.stem = nn.Conv2d(3, 16, 15, padding=7), nn.Conv2d(3, 16, 15, padding=7)
    found = explain(assessed(now), assessed(before), TARGET)
    assert "dominated" in {r.why for r in found.reasons if r.layer == "stem"}
    (remedy,) = [r for r in found.remedies if r.change == "channels" and "stem" in r.layer.split("+")]
    smaller = Net(8)
    smaller.stem, smaller.middle = nn.Conv2d(3, 8, 15, padding=7), nn.Conv2d(8, 8, 3, padding=1)
    assert remedy.text == "8 channels in place of 16"
    assert remedy.saves_s == pytest.approx(seconds(now) - seconds(smaller), rel=1e-6)


def test_a_residual_block_less_where_launching_takes_the_time() -> None:
    slow = replace(TARGET, launch_overhead_s=1e-3)
    model = Net(16)
    without = Net(16)
    without.block = nn.Identity()  # type: ignore[assignment]  # as pruning whole blocks leaves it
    found = explained(model, slow)
    (remedy,) = [r for r in found.remedies if r.change == "block"]
    assert remedy.layer == "block"
    assert remedy.saves_s == pytest.approx(seconds(model, slow) - seconds(without, slow))
    assert not [r for r in explained(model).remedies if r.change == "block"]


def test_other_bits_for_a_layer_that_stays_in_float() -> None:
    model = Net(16).eval()
    names = ("stem", "middle", "after", "block.one", "block.two", "head")
    plan = Plan(tuple(LayerPlan(name, None, FLOAT32 if name == "middle" else W8A8) for name in names))
    mixed = replace(
        assess(State(model, plan), TARGET, EXAMPLE),
        precisions={name: FLOAT32 if name == "middle" else W8A8 for name in names},
        grids=frozenset({"conv2d", "relu", "conv2d_2", "relu_2"}),
    )
    found = explain(mixed, assessed(Net(32)), TARGET)
    assert ("middle", "float island") in {(r.layer, r.why) for r in found.reasons}
    (remedy,) = [r for r in found.remedies if r.change == "bits"]
    assert (remedy.layer, remedy.text) == ("middle", "W8A8 in place of float32")
    # 16 x 16 x 9 weights at 16x16 pixels: 589,824 MACs at 0.5e9 a second become as many at 1e9.
    assert remedy.saves_s == pytest.approx(589824 * (1 / 0.5e9 - 1 / 1e9), rel=1e-3)


def test_nothing_is_asked_of_the_float_network_itself() -> None:
    found = explain(assessed(Net(20)), None, TARGET)
    assert (found.reasons, found.remedies) == ((), ())
    assert found.total_s == pytest.approx(seconds(Net(20)))
    assert all(layer.macs_before is None for layer in found.layers)


def test_layers_stand_beside_those_of_the_float_network() -> None:
    found = explained(Net(16))
    by_name = {layer.name: layer for layer in found.layers}
    assert by_name["middle"].macs_before == 2 * by_name["middle"].macs
    assert by_name["stem"].macs_before == by_name["stem"].macs
    before = {layer.name: layer.predicted_s for layer in explain(assessed(Net(32)), None, TARGET).layers}
    assert by_name["after"].predicted_before_s == before["after"]


def test_an_explanation_survives_json() -> None:
    from compress.serial import from_json, to_json

    found = explained(Net(20))
    assert from_json(Explanation, to_json(found)) == found


@pytest.mark.parametrize("name", ["cpu", "jetson", "cortex-m4", "raspberry-pi-5"])
def test_the_layers_times_are_the_latency_models(name: str) -> None:
    target = load(name)
    found = explain(assessed(Net(16), target), None, target)
    assert found.total_s == pytest.approx(seconds(Net(16), target))
    assert found.error == target.prediction_error
