"""How much goes from where: against exhaustive search, and goals met by the network that comes out."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from compress import targets
from compress.errors import BadInput
from compress.graph import costs
from compress.graph.groups import Dependencies
from compress.graph.surgery import remove
from compress.graph.trace import trace
from compress.profiling import latency, memory
from compress.prune import prune
from compress.prune.allocation import allocate, path
from compress.prune.amounts import granularity
from compress.prune.counter import Cost, Counter
from compress.prune.goal import Goal
from compress.prune.prunable import prunable
from compress.types import FLOAT32, Budget, Precision, Target
from tests.graph import convolutional, transformers
from tests.graph.networks import (
    ROSTER,
    Attention,
    Dense,
    Depthwise,
    PaddedShortcut,
    Plain,
    Residual,
    Squeeze,
    UNet,
    build,
    images,
)
from tests.rosters import crossed

DEVICES = ("cortex-m7", "raspberry-pi-4", "jetson-orin-nano")
NETWORKS = (Plain, Residual, Dense, UNet, Attention)


class Separable(nn.Module):
    """Three pairs of layers; the second of each keeps its channels, so that no group's cost depends on another's."""

    def __init__(self, widths: tuple[int, ...] = (6, 8, 5)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.wide = nn.ModuleList(nn.Conv2d(4, n, 1) for n in widths)
        self.narrow = nn.ModuleList(nn.Conv2d(n, 4, 3) for n in widths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for wide, narrow in zip(self.wide, self.narrow, strict=True):
            x = narrow(torch.relu(wide(x)))
        return x


@cache
def counted(
    factory: type[nn.Module], device: str | None = None, skip: tuple[str, ...] = ()
) -> tuple[nn.Module, Dependencies, Counter]:
    model = build(factory)
    network = trace(model, (images(2),))
    dependencies = prunable(model, network, skip)
    return model, dependencies, Counter.of(network, dependencies, targets.load(device) if device else None)


def separable() -> Counter:
    return counted(Separable, None, ("stem", "narrow.0", "narrow.1"))[2]


def random_curves(counter: Counter, seed: int, convex: bool = True) -> list[np.ndarray]:
    """Errors when 0, 1, ... units of each group are gone."""
    rng = np.random.default_rng(seed)
    steps = [rng.exponential(rng.exponential(), n) for n in counter.all_units]
    return [np.concatenate([[0.0], np.cumsum(np.sort(each) if convex else each)]) for each in steps]


def error(curves: list[np.ndarray], kept: tuple[int, ...]) -> float:
    return sum(float(curve[len(curve) - 1 - n]) for curve, n in zip(curves, kept, strict=True))


def best(counter: Counter, curves: list[np.ndarray], share: float) -> float:
    """The least error over every choice of counts that costs no more than ``share`` of the MACs."""
    whole = counter.counts(counter.all_units)[0]
    return min(error(curves, kept) for kept, macs in every_choice().items() if macs <= share * whole)


@cache
def every_choice() -> dict[tuple[int, ...], float]:
    """Every choice of counts in the separable network, and its MACs."""
    counter = separable()
    choices = itertools.product(*(range(1, n + 1) for n in counter.all_units))
    return {kept: counter.counts(kept)[0] for kept in choices}


@pytest.mark.parametrize("share", [0.85, 0.6, 0.4])
@pytest.mark.parametrize("seed", range(6))
def test_on_convex_curves_it_is_within_one_move_of_the_best_of_all_choices(seed, share):
    counter = separable()
    curves = random_curves(counter, seed)
    kept = allocate(counter, Goal(share), 1, curves)
    assert counter.counts(kept)[0] <= share * counter.counts(counter.all_units)[0]
    # The dearest move that was taken bounds what rounding to whole units can cost.
    taken = [
        curve[len(curve) - 1 - n] - curve[max(len(curve) - 2 - n, 0)] for curve, n in zip(curves, kept, strict=True)
    ]
    assert error(curves, kept) <= best(counter, curves, share) + max(taken) + 1e-12


def test_mostly_it_is_the_best_of_all_choices():
    counter = separable()
    hits = 0
    for seed in range(10):
        curves = random_curves(counter, seed)
        hits += error(curves, allocate(counter, Goal(0.6), 1, curves)) <= best(counter, curves, 0.6) * (1 + 1e-9)
    assert hits >= 6


@pytest.mark.parametrize("seed", range(6))
def test_where_every_unit_saves_the_same_the_cheapest_units_of_all_go(seed):
    """Parameters: each unit has 4 + 1 in front of it and 4 * 9 behind it, in every group."""
    counter = separable()
    curves = random_curves(counter, seed)
    params = counter.counts(counter.all_units)[1]
    kept = allocate(counter, Goal(params=1 - 7 * 41 / params), 1, curves)
    assert sum(counter.all_units) - sum(kept) == 7
    steps = np.sort(np.concatenate([np.diff(curve)[:-1] for curve in curves]))
    assert error(curves, kept) == pytest.approx(steps[:7].sum())


def test_a_cheap_stretch_behind_a_dear_unit_is_seen():
    """Group 0 costs much at first and nothing afterwards; by single units group 1 would always seem cheaper."""
    counter = separable()
    curves = [np.array([0, 3, *[3.01] * 5]), np.arange(9) * 1.0, np.arange(6) * 100.0]
    kept = allocate(counter, Goal(0.75), 1, [curve.astype(float) for curve in curves])
    assert kept[0] < 4
    assert error(curves, kept) <= 1.05 * best(counter, curves, 0.75)


def test_what_costs_nothing_is_the_first_to_go():
    counter = separable()
    curves = [np.zeros(7), np.arange(9) * 1.0, np.arange(6) * 1.0]
    full, rest = counter.counts(counter.all_units)[0], counter.counts((1, 8, 5))[0]
    assert allocate(counter, Goal(rest / full), 1, curves) == (1, 8, 5)


@crossed(("factory", "share"), ROSTER, [0.8, 0.5])
def test_macs_are_within_two_percent_of_what_was_asked_or_one_more_unit_is_too_much(factory, share):
    model, dependencies, counter = counted(factory)
    kept = allocate(counter, Goal(share), 1, random_curves(counter, 0))
    gone = [unit for group, n in zip(dependencies.groups, kept, strict=True) for unit in group.units[n:]]
    whole = costs.total_macs(trace(model, (images(2),)))
    found = costs.total_macs(trace(remove(model, dependencies, gone), (images(2),))) / whole
    assert found <= share
    wider = [(*kept[:g], n + 1, *kept[g + 1 :]) for g, n in enumerate(kept) if n < counter.all_units[g]]
    assert found >= share - 0.02 or all(counter.counts(each)[0] > share * whole for each in wider)


@pytest.mark.parametrize("factory", [Plain, Residual])
@pytest.mark.parametrize("multiple", [2, 4, 8])
def test_counts_are_multiples_of_what_the_target_likes(factory, multiple):
    _, dependencies, counter = counted(factory)
    kept = allocate(counter, Goal(0.6), multiple, random_curves(counter, 1))
    for group, n in zip(dependencies.groups, kept, strict=True):
        assert n % granularity(group, multiple) == 0 or n == len(group.units)


def test_keeping_everything_that_fits_is_the_identity():
    counter = separable()
    assert allocate(counter, Goal(1.0, 1.0), 8, random_curves(counter, 0)) == counter.all_units


def assessed(model: nn.Module, target: Target) -> Cost:
    """What the models of :mod:`compress.profiling` predict for a traced network, all in float."""
    network = trace(model, (images(2),))
    found = costs.operators(network)
    inputs = {network.inputs[0]: 3 * 16 * 16}
    weights = 4 * sum(each.weights for each in found)
    peak = memory.peak_ram(found, 32, weights, target, inputs=inputs).bytes
    seconds = latency.predict(found, lambda _: FLOAT32, target, peak, weights, inputs=inputs).latency_s
    size = costs.size(network)
    return Cost(size.macs, size.params, seconds, peak)


APPROXIMATE = {PaddedShortcut: 0.005, transformers.ViT: 0.005}
"""Where the channels that a padding adds, and a token that is picked out, make a tensor's size a little wrong."""

CHAINS = (Plain, Depthwise)
STREAMS = (Residual, PaddedShortcut, convolutional.BottleneckResNet)
CONCATENATIONS = (Dense, UNet, convolutional.Inception, convolutional.ShuffleNetV2, convolutional.DenseNet)
OTHERS = (Squeeze, Attention, transformers.ViT)


@pytest.mark.parametrize(
    ("factory", "device", "share"),
    [
        *((factory, "cortex-m7", 0.6) for factory in (*CHAINS, *STREAMS, *CONCATENATIONS, *OTHERS)),
        *((factory, "raspberry-pi-4", 0.3) for factory in (Residual, UNet, Attention)),
    ],
)
def test_what_is_counted_is_what_the_models_say_of_the_network_that_was_really_pruned(factory, device, share):
    """Exactly, or within what :data:`APPROXIMATE` says."""
    model, dependencies, counter = counted(factory, device)
    kept = tuple(max(1, round(share * n)) for n in counter.all_units)
    gone = [unit for group, n in zip(dependencies.groups, kept, strict=True) for unit in group.units[n:]]
    found, expected = counter.cost(kept), assessed(remove(model, dependencies, gone), targets.load(device))
    assert (found.macs, found.params) == (pytest.approx(expected.macs, rel=1e-9), expected.params)
    tolerance = APPROXIMATE.get(factory, 1e-9)
    assert found.latency_s == pytest.approx(expected.latency_s, rel=tolerance)
    assert found.ram_bytes == pytest.approx(expected.ram_bytes, rel=tolerance)


@pytest.mark.parametrize("factory", [transformers.CrossAttention, convolutional.WeightNormed])
def test_a_weight_that_is_computed_from_a_parameter_is_counted_with_it(factory):
    model, dependencies, counter = counted(factory, "cortex-m7")
    kept = tuple(max(1, n // 2) for n in counter.all_units)
    gone = [unit for group, n in zip(dependencies.groups, kept, strict=True) for unit in group.units[n:]]
    smaller = costs.size(trace(remove(model, dependencies, gone), (images(2),)))
    assert counter.counts(kept)[0] == pytest.approx(smaller.macs, rel=1e-9)


@pytest.mark.parametrize(
    ("factory", "device"),
    [*((factory, "cortex-m7") for factory in NETWORKS), *((Plain, device) for device in DEVICES[1:])],
)
def test_goals_of_latency_and_ram_are_met_by_the_network_that_comes_out(factory, device):
    model, dependencies, counter = counted(factory, device)
    full, least = counter.cost(counter.all_units), counter.cost([1] * len(counter.all_units))
    for goal in (
        Goal(latency_s=(full.latency_s + least.latency_s) / 2),
        Goal(ram_bytes=(full.ram_bytes + least.ram_bytes) // 2),
    ):
        kept = allocate(counter, goal, targets.load(device).channel_multiple, random_curves(counter, 0))
        gone = [unit for group, n in zip(dependencies.groups, kept, strict=True) for unit in group.units[n:]]
        found = assessed(remove(model, dependencies, gone), targets.load(device))
        assert goal.latency_s is None or found.latency_s <= goal.latency_s * (1 + 1e-9)
        assert goal.ram_bytes is None or found.ram_bytes <= goal.ram_bytes


@pytest.mark.parametrize(
    ("method", "device"), [*(("reconstruct", device) for device in DEVICES), ("norm", "cortex-m7")]
)
def test_a_budget_of_latency_and_ram_is_met_through_the_one_call(device, method):
    model, _, counter = counted(Residual, device)
    full, least = counter.cost(counter.all_units), counter.cost([1] * len(counter.all_units))
    budget = Budget(
        latency_s=(full.latency_s + least.latency_s) / 2, ram_bytes=(3 * full.ram_bytes + least.ram_bytes) // 4
    )
    result = prune(model, images(2), budget=budget, target=device, method=method)
    found = assessed(result.model, targets.load(device))
    assert found.latency_s <= budget.latency_s * (1 + 1e-9)
    assert found.ram_bytes <= budget.ram_bytes


def test_a_goal_that_nothing_reaches_names_the_least_latency_in_ms_and_ram_in_bytes():
    _, _, counter = counted(Residual, "cortex-m7")
    least = counter.cost([1] * len(counter.all_units))
    for goal in (Goal(latency_s=0.5 * least.latency_s), Goal(ram_bytes=least.ram_bytes // 2)):
        with pytest.raises(BadInput, match="least reachable") as raised:
            allocate(counter, goal, 4, random_curves(counter, 0))
        assert f"a predicted latency of {1e3 * least.latency_s:.3g} ms" in str(raised.value)
        assert f"{least.ram_bytes} bytes of RAM" in str(raised.value)


def test_a_budget_that_nothing_reaches_is_refused_through_the_one_call():
    for budget in (Budget(latency_s=1e-9), Budget(ram_bytes=10)):
        with pytest.raises(BadInput, match=r"least reachable is .* ms and \d+ bytes of RAM; ask for more"):
            prune(build(Plain), images(2), budget=budget, target="cortex-m7", method="reconstruct")
    with pytest.raises(BadInput, match="least reachable") as raised:
        prune(build(Plain), images(2), macs=1e-4, method="reconstruct")
    share = float(re.search(r"is (0\.\d+) of the MACs", str(raised.value))[1])
    assert prune(build(Plain), images(2), macs=share + 5e-4, method="norm").report.after.macs > 0


@pytest.mark.parametrize("seed", range(3))
def test_the_path_passes_through_what_every_goal_keeps_before_what_fits_is_given_back(seed):
    counter = separable()
    curves = random_curves(counter, seed)
    steps = list(path(counter, "macs", 1, curves))
    kept = [each for each, _ in steps]
    assert kept[0] == counter.all_units
    assert kept[-1] == (1, 1, 1)
    assert all(cost.macs == counter.counts(each)[0] for each, cost in steps)
    for before, after in itertools.pairwise(kept):
        assert all(now <= then for now, then in zip(after, before, strict=True))
        assert sum(now < then for now, then in zip(after, before, strict=True)) == 1
    whole = steps[0][1].macs
    for share in (0.85, 0.6, 0.4):
        first = next(each for each, cost in steps if cost.macs <= share * whole)
        final = allocate(counter, Goal(share), 1, curves)
        assert all(now >= then for now, then in zip(final, first, strict=True))


@pytest.mark.parametrize("factory", [Residual, Dense])
def test_the_path_by_latency_ends_at_the_smallest_network_and_gets_faster_all_the_way(factory):
    _, _, counter = counted(factory, "raspberry-pi-4")
    steps = list(path(counter, "latency_s", 1, random_curves(counter, 0)))
    seconds = [cost.latency_s for _, cost in steps]
    assert seconds == pytest.approx([counter.cost(kept).latency_s for kept, _ in steps])
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(seconds))
    assert steps[-1][0] == (1,) * len(counter.all_units)


def test_a_goal_of_latency_is_that_of_its_own_precision():
    """Integer layers are faster: a limit between the two asks only the float network for less."""
    model = build(Residual)
    network = trace(model, (images(2),))
    dependencies = prunable(model, network)
    target = replace(targets.load("raspberry-pi-4"), launch_overhead_s=0.0)
    eight = Goal(precision=Precision(8, 8, "integer"))
    slow = Counter.of(network, dependencies, target)
    fast = Counter.of(network, dependencies, target, eight)
    limit = fast.cost(fast.all_units).latency_s
    assert 1.2 * limit < slow.cost(slow.all_units).latency_s
    curves = random_curves(slow, 0)
    assert allocate(fast, replace(eight, latency_s=limit * 1.2), 1, curves) == fast.all_units
    assert allocate(slow, Goal(latency_s=limit * 1.2), 1, curves) != slow.all_units


@pytest.mark.parametrize("seed", range(3))
def test_where_kernels_fill_blocks_of_channels_whole_blocks_go(seed):
    """Time is that of channels filled up to 4 and of nothing else: only a count of 4 saves any."""
    target = replace(
        targets.load("raspberry-pi-4"), channel_multiple=4, launch_overhead_s=0.0, bandwidth_bytes_per_s=1e30
    )
    counter = replace(separable(), target=target)
    assert counter.all_units == (6, 8, 5)
    steps = list(path(counter, "latency_s", 1, random_curves(counter, seed)))
    for (before, was), (after, now) in itertools.pairwise(steps[:4]):
        [(g, count)] = [(g, new) for g, (old, new) in enumerate(zip(before, after, strict=True)) if new != old]
        assert count == 4, f"group {g} went to {count}"
        assert now.latency_s < was.latency_s
    least = steps[-1][1].latency_s
    assert steps[3][1].latency_s == pytest.approx(least)
