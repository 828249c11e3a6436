"""Zero-invariant groups: what they hold, and that zeroing them is removing their units."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.errors import NoPrunableAxis
from compress.graph.groups import find
from compress.graph.surgery import remove
from compress.graph.trace import trace
from compress.prune.otov2 import zero_invariant, zeroed
from compress.prune.prunable import prunable
from tests.graph import networks
from tests.graph.networks import ARCHITECTURES, Depthwise, Plain, Residual, build, images
from tests.graph.traced import traced
from tests.graph.transformers import Text, TwoInputs
from tests.rosters import some

ROSTER = tuple(factory for factory in ARCHITECTURES if factory not in (Text, TwoInputs))


def found(model, network=None, **options):
    dependencies = prunable(model, network or trace(model, (images(2),)))
    trained = {id(parameter) for parameter in model.parameters()}
    return dependencies, zero_invariant(model, dependencies, images(2), trained, **options)


@cache
def found_of(factory):
    """What is found of an architecture; nobody changes it."""
    return found(*traced(factory))


def slots_by_name(zero):
    return {group.name: slots for group, slots in zip(zero.dependencies.groups, zero.slots, strict=True)}


@some("factory", ROSTER, quick=networks.ROSTER)
def test_zeroing_a_group_is_removing_its_unit(factory):
    model, (dependencies, zero) = traced(factory)[0], found_of(factory)
    # A mean over the channels counts a zero, but not a channel that isn't there.
    averaged = {group.name for group in dependencies.groups if any(unit.averaged for unit in group.units)}
    assert {note.where for note in zero.notes} == averaged
    assert len(zero.dependencies.groups) == len(dependencies.groups) - len(averaged)
    for group, slots in zip(zero.dependencies.groups, zero.slots, strict=True):
        for unit in (group.units[0], group.units[-1]):
            one = copy.deepcopy(model)
            zeroed(one, [unit], slots)
            two = remove(model, dependencies, [unit])
            torch.testing.assert_close(one(images()), two(images()), rtol=1e-4, atol=1e-5)


@some("factory", ROSTER, quick=networks.ROSTER)
def test_what_reads_the_channels_is_no_part_of_a_group(factory):
    _, zero = found_of(factory)
    for group, slots in zip(zero.dependencies.groups, zero.slots, strict=True):
        assert not set(slots) & (set(group.consumers) - set(group.producers))


def test_a_group_holds_rows_biases_scales_and_shifts():
    _, zero = found(build(Plain))
    assert slots_by_name(zero) == {
        "conv1": (("conv1.weight", 0), ("conv1.bias", 0), ("bn1.weight", 0), ("bn1.bias", 0)),
        "conv2": (("conv2.weight", 0), ("bn2.weight", 0), ("bn2.bias", 0)),
        "linear1": (("linear1.weight", 0), ("linear1.bias", 0)),
    }


def test_a_residual_streams_group_holds_all_layers_that_add_to_it():
    _, zero = found(build(Residual))
    names = {name for name, _ in slots_by_name(zero)["stem.0+b.0"]}
    assert names == {"stem.0.weight", "stem.1.weight", "stem.1.bias", "b.0.weight", "b.1.weight", "b.1.bias"}


def test_a_depthwise_layer_belongs_to_the_channels_it_filters():
    _, zero = found(build(Depthwise))
    assert ("depth.weight", 0) in slots_by_name(zero)["expand+depth"]


class Between(nn.Module):
    """Something between two convolutions."""

    def __init__(self, between):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 1), nn.Linear(8, 5)
        self.between = between

    def forward(self, x):
        return self.head(F.relu(self.two(self.between(self.one(x)))).mean((2, 3)))


@pytest.mark.parametrize(
    "between",
    [nn.Sigmoid(), nn.Softplus(), nn.Hardsigmoid(), nn.BatchNorm2d(6, affine=False)],
    ids=lambda module: type(module).__name__,
)
def test_channels_that_do_not_vanish_are_driven_to_zero_with_what_reads_them(between):
    model = Between(between).eval()
    dependencies, zero = found(model)
    assert ("two.weight", 1) in slots_by_name(zero)["one"]
    assert ("two.weight", 1) not in slots_by_name(zero)["two"]
    assert [(note.where, "read them" in note.why) for note in zero.notes] == [("one", True)]
    group = next(group for group in dependencies.groups if group.name == "one")
    changed = copy.deepcopy(model)
    zeroed(changed, group.units[:2], slots_by_name(zero)["one"])
    torch.testing.assert_close(changed(images()), remove(model, dependencies, group.units[:2])(images()))


@pytest.mark.parametrize(
    "between",
    [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Hardswish(), nn.BatchNorm2d(6)],
    ids=lambda module: type(module).__name__,
)
def test_what_maps_zero_to_zero_needs_no_note(between):
    _, zero = found(Between(between).eval())
    assert zero.notes == ()


def test_a_batch_norm_that_starts_at_zero_hides_nothing():
    model = Between(nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(6))).eval()
    nn.init.zeros_(model.two.weight)
    _, zero = found(model)
    assert zero.notes == ()
    model = Between(nn.Sequential(nn.BatchNorm2d(6), nn.Sigmoid())).eval()
    nn.init.zeros_(model.two.weight)
    _, zero = found(model)
    assert [note.where for note in zero.notes] == ["one"]


def test_the_network_is_not_changed_and_the_proof_does_not_depend_on_the_seed():
    model = build(Residual)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    slots = [found(model, seed=seed)[1].slots for seed in range(3)]
    assert slots[0] == slots[1] == slots[2]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_network_that_nothing_trains_is_refused_with_the_reason():
    model = build(Plain)
    dependencies = find(trace(model, (images(2),)))
    with pytest.raises(NoPrunableAxis, match=r"the optimizer doesn't train conv1\.weight"):
        zero_invariant(model, dependencies, images(2), set())
