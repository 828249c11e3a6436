"""Dependency groups: what they hold for known networks, and the laws of surgery over a roster."""

from __future__ import annotations

import copy

import pytest
import torch

from compress.graph import costs
from compress.graph.groups import find, removed_indices
from compress.graph.surgery import planned, remove, units_of
from compress.graph.trace import trace
from compress.serial import from_json, to_json
from compress.types import Plan
from tests.graph.networks import ROSTER, Attention, Grouped, PaddedShortcut, Perceptron, Plain, Residual, build, images

roster = pytest.mark.parametrize("factory", ROSTER, ids=lambda factory: factory.__name__)


def groups_of(factory):
    model = build(factory)
    return model, find(trace(model, (images(2),)))


def every_third(dependencies):
    return [unit for group in dependencies.groups for unit in group.units[1::3]]


@roster
def test_surgery_equals_zeroing_what_reads_the_removed_channels(factory):
    model, dependencies = groups_of(factory)
    units = every_third(dependencies)
    consumers = {slot for group in dependencies.groups for slot in group.consumers}
    zeroed = copy.deepcopy(model)
    for (name, axis), indices in removed_indices(units).items():
        if (name, axis) in consumers:
            zeroed.get_parameter(name).data.index_fill_(axis, torch.tensor(sorted(indices)), 0.0)
    smaller = remove(model, dependencies, units)
    x = images()
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(smaller(x), zeroed(x), rtol=1e-4, atol=1e-5)


@roster
def test_the_users_own_class_comes_back_and_trains(factory):
    model, dependencies = groups_of(factory)
    smaller = remove(model, dependencies, every_third(dependencies)).train()
    assert type(smaller) is factory
    smaller(images()).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in smaller.parameters())


@roster
def test_removing_nothing_is_the_identity(factory):
    model, dependencies = groups_of(factory)
    same = remove(model, dependencies, [])
    assert {n: t.shape for n, t in same.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert torch.equal(same(images()), model(images()))


@roster
def test_nothing_outside_the_group_changes(factory):
    model, dependencies = groups_of(factory)
    for group in dependencies.groups:
        smaller = remove(model, dependencies, group.units[:1])
        touched = {name for name, _ in group.slots}
        for name, tensor in model.state_dict().items():
            if name not in touched:
                assert torch.equal(tensor, smaller.state_dict()[name]), name


@roster
def test_a_plan_says_which_units_go(factory):
    _, dependencies = groups_of(factory)
    units = every_third(dependencies)
    plan = from_json(Plan, to_json(planned(Plan(), dependencies, units)))
    again = units_of(plan, dependencies)
    assert sorted(map(str, again)) == sorted(map(str, units))


@roster
def test_the_smaller_network_is_traced_to_fewer_macs(factory):
    model, dependencies = groups_of(factory)
    smaller = remove(model, dependencies, every_third(dependencies))
    assert costs.total_macs(trace(smaller, (images(2),))) < costs.total_macs(trace(model, (images(2),)))


def test_a_residual_stream_is_one_group():
    _, dependencies = groups_of(Residual)
    names = {group.name: len(group.units) for group in dependencies.groups}
    assert names == {"stem.0+b.0": 8, "a.0": 8, "c.0": 16, "d.0+project.0": 16}


def test_a_flatten_repeats_each_channel_in_the_linear_layer():
    _, dependencies = groups_of(Plain)
    group = next(group for group in dependencies.groups if group.name == "conv2")
    assert group.units[3].members["linear1.weight", 1] == tuple(range(3 * 16, 4 * 16))


def test_a_grouped_convolution_loses_the_same_position_in_every_group():
    _, dependencies = groups_of(Grouped)
    group = next(group for group in dependencies.groups if group.name == "one")
    assert [unit.members["one.weight", 0] for unit in group.units] == [(0, 2, 4, 6), (1, 3, 5, 7)]


def test_channels_that_a_padding_of_fixed_width_makes_stay():
    _, dependencies = groups_of(PaddedShortcut)
    shared = next(group for group in dependencies.groups if "stem" in group.name)
    assert [unit.members["two.weight", 0] for unit in shared.units] == [(i,) for i in range(4, 12)]
    assert any(note.where == "two" and "padding of fixed width" in note.why for note in dependencies.left_alone)


def test_the_output_of_the_network_stays_and_is_reported():
    _, dependencies = groups_of(Perceptron)
    assert any(note.where == "head" and "output" in note.why for note in dependencies.left_alone)


def test_what_has_no_rule_is_left_alone_with_the_operator_named():
    _, dependencies = groups_of(Attention)
    assert {group.name for group in dependencies.groups} == {"one"}
    assert any(note.where == "embed" and "layer_norm" in note.what for note in dependencies.left_alone)
    assert any(note.where == "qkv" for note in dependencies.left_alone)
