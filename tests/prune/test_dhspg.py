"""The dual half-space step beside an independent reference, written unit by unit from the paper's formulas."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from compress.errors import BadInput
from compress.graph.groups import find
from compress.graph.trace import trace
from compress.prune.dhspg import INTERIOR, Blocks, Part, half_space_step, penalty
from compress.prune.otov2 import making
from compress.prune.schedule import Schedule
from tests.graph.networks import Depthwise, Grouped, Plain, Residual, build, images
from tests.prune.loops import loss_of

RATE = 0.05


def vector(values, unit, slots):
    """A unit's elements of all its parameters, index by index."""
    return np.concatenate(
        [np.take(values[name], index, axis).ravel() for name, axis in slots for index in unit.members[name, axis]]
    )


def reference(x, g, rate, remaining, epsilon):
    """Algorithm 2 of OTOv2 for one redundant group: the parameters x, the gradient g, both (n,)."""
    norm, steepness = np.linalg.norm(x), np.linalg.norm(g)
    cosine = g @ x / (norm * steepness) if steepness else 0.0  # of the angle between -g and -x
    wanted = norm / remaining / rate - steepness * cosine  # the norm falls by norm / remaining
    if cosine >= 0:
        lam = max(0.0, wanted)
    else:
        low, high = -cosine * steepness, -steepness / cosine
        lam = min(wanted, low + INTERIOR * (high - low))
    tilde = x - rate * (g + lam * x / norm)
    return np.zeros_like(x) if remaining == 1 or tilde @ x < epsilon * norm**2 else tilde


def blocks_of(model, group, slots):
    parts = []
    for name, axis in slots:
        pairs = [(i, n) for n, unit in enumerate(group.units) for i in unit.members[name, axis]]
        indices, owners = torch.tensor(pairs).unbind(1)
        parts.append(Part(model.get_parameter(name), axis, indices, owners))
    return Blocks(tuple(parts), len(group.units))


@cache
def groups_of(factory):
    return find(trace(build(factory), (images(2),))).groups


@pytest.mark.parametrize("factory", [Plain, Residual, Depthwise, Grouped])
@pytest.mark.parametrize(("remaining", "epsilon"), [(1, 0.0), (2, 0.0), (7, 0.0), (4, 0.95), (1000, 0.0)])
def test_a_step_is_that_of_the_papers_formulas(factory, remaining, epsilon):
    model = build(factory).double()
    loss = torch.nn.functional.cross_entropy(model(images(8).double()), torch.arange(8) % 5)
    loss.backward()
    for group in groups_of(factory):
        slots = making(group, dict(model.named_parameters()))
        before = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
        gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
        blocks = blocks_of(model, group, slots)
        old = blocks.gather()
        torch.optim.SGD(model.parameters(), lr=RATE).step()
        alive, norm = half_space_step(blocks, old, torch.ones(len(group.units), dtype=bool), remaining, epsilon)
        after = {name: p.detach().numpy() for name, p in model.named_parameters()}
        for number, unit in enumerate(group.units):
            x, g = vector(before, unit, slots), vector(gradients, unit, slots)
            expected = reference(x, g, RATE, remaining, epsilon)
            np.testing.assert_allclose(vector(after, unit, slots), expected, rtol=1e-9, atol=1e-12)
            assert bool(alive[number]) == bool(expected.any())
            assert float(norm[number]) == pytest.approx(np.linalg.norm(x))


def test_what_no_unit_holds_takes_the_optimizers_step_alone():
    model, plain = build(Plain), build(Plain)
    group = next(g for g in groups_of(Plain) if g.name == "conv2")
    slots = making(group, dict(model.named_parameters()))
    for each in (model, plain):
        loss_of(each).backward()
    blocks = blocks_of(model, group, slots)
    old = blocks.gather()
    for each in (model, plain):
        torch.optim.SGD(each.parameters(), lr=RATE).step()
    half_space_step(blocks, old, torch.ones(12, dtype=bool), 3)
    touched = {name for name, _ in slots}
    assert touched == {"conv2.weight", "bn2.weight", "bn2.bias"}
    for (name, one), two in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, two) == (name not in touched), name


def test_the_direction_lowers_the_objective_and_the_norm_where_both_can_be_lowered():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    d = 0.01 * torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    xx, dx, dd = (x * x).sum(1), (d * x).sum(1), (d * d).sum(1)
    p = penalty(dd, dx, xx, xx.sqrt() / 5)
    direction = -(d + p[:, None] * x / xx.sqrt()[:, None])
    assert bool((dx < 0).any())
    assert bool(((direction * x).sum(1) < 0).all())
    grows = dx < 0
    assert bool(((direction * d).sum(1)[grows] < 0).all())


def test_without_a_limit_the_norm_falls_by_what_is_wanted():
    x, d = torch.tensor([[3.0, 4.0]]).double(), torch.tensor([[0.04, -0.03]]).double()  # at a right angle
    p = penalty((d * d).sum(1), (d * x).sum(1), (x * x).sum(1), torch.tensor([0.5]).double())
    assert float(p) == pytest.approx(0.5)


def test_a_step_straight_away_from_zero_is_only_undone():
    x = torch.tensor([[3.0, 4.0]]).double()
    d = -0.01 * x
    p = penalty((d * d).sum(1), (d * x).sum(1), (x * x).sum(1), torch.tensor([5.0]).double())
    assert float(p) == pytest.approx(0.05)  # |d|: the two half-spaces touch


def test_without_the_upper_bound_the_norm_falls_by_what_is_wanted_whatever_the_optimizer_does():
    generator = torch.Generator().manual_seed(0)
    x, d = (torch.randn(50, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    wanted = torch.full((50,), 3.0, dtype=torch.float64)
    p = penalty((d * d).sum(1), (d * x).sum(1), (x * x).sum(1), wanted, bounded=False)
    direction = d + p[:, None] * x / x.norm(dim=1, keepdim=True)
    falls = (direction * x).sum(1) / x.norm(dim=1)
    torch.testing.assert_close(falls, torch.maximum(wanted, (d * x).sum(1) / x.norm(dim=1)))


def test_a_unit_that_is_zero_stays_zero_whatever_the_optimizer_does():
    weight = nn.Parameter(torch.ones(2, 3))
    blocks = Blocks((Part(weight, 0, torch.arange(2), torch.arange(2)),), 2)
    with torch.no_grad():
        weight[0] = 0
        old = blocks.gather()
        weight += math.inf
        alive, _ = half_space_step(blocks, old, torch.tensor([False, True]), 5)
    assert alive.tolist()[0] is False
    assert torch.equal(weight[0], torch.zeros(3))


@pytest.mark.parametrize("steps", [1, 2, 5, 7, 100, 1003])
@pytest.mark.parametrize("options", [{}, {"rounds": 1}, {"warmup": 0.0, "done": 1.0, "rounds": 50}])
def test_rounds_follow_one_another_within_the_run(steps, options):
    schedule = Schedule(steps, **options)
    bounds = schedule.bounds
    assert bounds[0] >= 0
    assert bounds[-1] <= steps
    assert all(a < b for a, b in itertools.pairwise(bounds))
    assert [schedule.round_of(t) for t in (bounds[0] - 1, bounds[0], bounds[-1] - 1, bounds[-1])] == [
        None,
        0,
        len(bounds) - 2,
        None,
    ]
    assert schedule.share(len(bounds) - 2) == 1.0


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"warmup": 0.7}, {"done": 1.1}, {"warmup": -0.1}, {"rounds": 0}, {"epsilon": 1.0}, {"bounded": 2.0}],
    ids=lambda options: next(iter(options)),
)
def test_a_schedule_that_cannot_be_is_refused_in_one_line(options):
    with pytest.raises(BadInput) as caught:
        Schedule(**{"steps": 10, **options})
    assert "\n" not in str(caught.value)
