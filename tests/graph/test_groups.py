"""Dependency groups: what they hold for known architectures, and the laws of surgery over a roster of them."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from compress.export.torch_exporter import operators_read_once
from compress.graph import costs
from compress.graph.groups import Dependencies, Unit, find, removed_indices
from compress.graph.surgery import blocks_of, planned, remove, remove_blocks, units_of
from compress.graph.trace import trace
from compress.serial import from_json, to_json
from compress.types import Plan
from tests.graph import convolutional, transformers
from tests.graph.masked import zeroed
from tests.graph.networks import ARCHITECTURES, ROSTER, build, inputs_of
from tests.graph.traced import groups_of, traced
from tests.rosters import some

LAST = {
    convolutional.BottleneckResNet: {"three"},
    convolutional.PreActivationResNet: {"conv2"},
    convolutional.ConvNeXt: {"two"},
    convolutional.MobileNetV3: {"norm3"},
    transformers.ViT: {"attention", "mlp"},
    transformers.HandWrittenTransformer: {"attention", "mlp"},
    transformers.Swin: {"attention", "two"},
}
"""What makes the branches' values in each architecture that has residual blocks as modules."""

roster = pytest.mark.parametrize("factory", ARCHITECTURES, ids=lambda factory: factory.__name__)


def every_third(dependencies: Dependencies) -> list[Unit]:
    return [unit for group in dependencies.groups for unit in group.units[1::3]]


def half(dependencies: Dependencies) -> list[Unit]:
    return [unit for group in dependencies.groups for unit in group.units[: (len(group.units) + 1) // 2][1:]]


def all_but_one(dependencies: Dependencies) -> list[Unit]:
    return [unit for group in dependencies.groups for unit in group.units[1:]]


def assert_same(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
    assert [(x.shape, x.dtype) for x in ours] == [(x.shape, x.dtype) for x in theirs]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@roster
@pytest.mark.parametrize("choice", [every_third, half, all_but_one])
def test_surgery_equals_zeroing_what_reads_the_removed_channels(factory, choice):
    model, dependencies = groups_of(factory)
    units = choice(dependencies)
    smaller = remove(model, dependencies, units)
    x = inputs_of(factory, 3)
    with torch.no_grad():
        assert_same([smaller(*x)], [zeroed(model, dependencies, units)(*x)])


@roster
def test_each_group_goes_by_itself_and_nothing_outside_it_changes(factory):
    model, dependencies = groups_of(factory)
    x = inputs_of(factory, 2)
    for group in dependencies.groups:
        units = group.units[:1] if len(group.units) > 1 else ()
        smaller = remove(model, dependencies, units)
        with torch.no_grad():
            assert_same([smaller(*x)], [zeroed(model, dependencies, units)(*x)])
        touched = {name for name, _ in group.slots}
        for name, tensor in model.state_dict().items():
            same = torch.equal(tensor, smaller.state_dict()[name]) if name not in touched or not units else False
            assert same == (name not in touched or not units), name


@roster
def test_the_users_own_class_comes_back_and_trains(factory):
    model, dependencies = groups_of(factory)
    smaller = remove(model, dependencies, every_third(dependencies)).train()
    assert type(smaller) is factory
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    smaller(*inputs_of(factory, 4)).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in smaller.parameters())


@roster
def test_it_saves_copies_and_pickles(factory):
    model, dependencies = groups_of(factory)
    x = inputs_of(factory, 2)
    smaller = remove(model, dependencies, every_third(dependencies))
    assert list(smaller.state_dict()) == list(model.state_dict())
    fresh = remove(build(factory, seed=7), dependencies, every_third(dependencies))
    fresh.load_state_dict(smaller.state_dict())
    file = io.BytesIO()
    torch.save(smaller, file)
    file.seek(0)
    with torch.no_grad():
        expected = smaller(*x)
        for same in (fresh, copy.deepcopy(smaller), torch.load(file, weights_only=False)):
            assert_same([same(*x)], [expected])


@some("factory", ARCHITECTURES, quick=(*ROSTER, transformers.TorchTransformer, convolutional.ShuffleNetV2))
def test_it_exports_to_onnx_where_onnxruntime_agrees(factory, tmp_path):
    model, dependencies = groups_of(factory)
    x = inputs_of(factory, 2)
    smaller = remove(model, dependencies, every_third(dependencies))
    path = tmp_path / "smaller.onnx"
    with operators_read_once():
        torch.onnx.export(smaller, x, path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    feeds = {given.name: each.numpy() for given, each in zip(session.get_inputs(), x, strict=True)}
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, feeds)[0], smaller(*x).numpy(), rtol=1e-4, atol=1e-4)


@roster
def test_removing_nothing_is_the_identity(factory):
    model, dependencies = groups_of(factory)
    same = remove(model, dependencies, [])
    assert {n: t.shape for n, t in same.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    x = inputs_of(factory, 2)
    assert torch.equal(same(*x), model(*x))


@roster
def test_a_plan_says_which_units_and_blocks_go(factory):
    _, dependencies = groups_of(factory)
    units, blocks = every_third(dependencies), dependencies.blocks[:1]
    plan = from_json(Plan, to_json(planned(Plan(), dependencies, units)))
    assert sorted(map(str, units_of(plan, dependencies))) == sorted(map(str, units))
    both = from_json(Plan, to_json(planned(Plan(), dependencies, units, blocks)))
    assert blocks_of(both, dependencies) == blocks


@some("factory", ARCHITECTURES, quick=ROSTER)
def test_the_smaller_network_is_traced_to_fewer_macs(factory):
    model, dependencies = groups_of(factory)
    smaller = remove(model, dependencies, every_third(dependencies))
    x = inputs_of(factory, 2)
    assert costs.total_macs(trace(smaller, x)) < costs.total_macs(traced(factory)[1])


@roster
def test_units_of_a_group_are_alike(factory):
    _, dependencies = groups_of(factory)
    for group in dependencies.groups:
        assert len({tuple((slot, len(at)) for slot, at in unit.members.items()) for unit in group.units}) == 1


@roster
def test_no_unit_shares_an_index_with_another(factory):
    _, dependencies = groups_of(factory)
    units = [unit for group in dependencies.groups for unit in group.units]
    gone = removed_indices(units)
    for slot, indices in gone.items():
        assert sum(len(unit.members.get(slot, ())) for unit in units) == len(indices)


@roster
def test_a_block_goes_as_if_its_branch_gave_zero(factory):
    model, dependencies = groups_of(factory)
    assert bool(dependencies.blocks) == (factory in LAST)
    for block in dependencies.blocks:
        smaller = remove_blocks(model, [block])
        assert isinstance(smaller.get_submodule(block.path), nn.Identity)
        assert not any(name.startswith(f"{block.path}.") for name in smaller.state_dict())
        silent = copy.deepcopy(model)
        for name, module in silent.get_submodule(block.path).named_modules():
            if name in LAST[factory]:
                module.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
        x = inputs_of(factory, 2)
        with torch.no_grad():
            assert_same([smaller(*x)], [silent(*x)])


def test_sizes_that_depend_on_values_fix_what_they_touch():
    """A sum over as many numbers as are positive: no axis of it is known, and nothing may be guessed."""

    class Positive(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            y = self.conv(x)
            return self.head(y.mean((2, 3))) + y[y > 0].sum()

    found = find(trace(build(Positive), (torch.zeros(2, 3, 8, 8),)))
    assert not found.groups
    assert found.left_alone
