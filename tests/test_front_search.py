"""The search for the front: proposals in rounds that depend on outcomes alone, and a larger volume than the ladder's.

The networks here are made of formulas: a forecast for every size and width, and an accuracy that the search doesn't
know, with an interaction of pruning and rounding that no forecast holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from compress.forecast import Forecast
from compress.front_search import FrontSearch
from compress.metric import PSNR, TOP1, Metric
from compress.results import Accuracy, Artifact, Candidate, Estimate
from compress.search import Outcome, Proposal, Search, ladder
from compress.types import Budget, Plan

BASELINE = 92.0
SIZES = [round(0.02 ** (i / 31), 3) for i in range(32)]
OVERHEAD = 2000
WIDTHS = (8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0)


@dataclass(frozen=True)
class World:
    """A network by formulas: ``hard`` says what pruning costs, ``bend`` how suddenly."""

    hard: float
    bend: float
    fixed_s: float

    def forecast(self, proposal: Proposal) -> Forecast:
        size, bits = proposal.macs or 1.0, proposal.weight_bits or 32.0
        return Forecast(
            proposal,
            pruning=50 * ((1 / size) ** 0.7 - 1),
            rounding=4.0**-bits * 3,
            latency_s=self.fixed_s + 1e-3 * size,
            ram_bytes=int(1e5 * size),
            flash_bytes=int(1e5 * size * bits / 8),
        )

    def accuracy(self, forecast: Forecast) -> float:
        p, q = forecast.pruning / 700, forecast.rounding
        return BASELINE * math.exp(-(self.hard * p**self.bend + 1.5 * q**0.8 + 40 * p * q))

    def known(self) -> tuple[Forecast, ...]:
        proposals = [Proposal(size, None, bits, bits < 8) for size in SIZES for bits in WIDTHS]
        return tuple(self.forecast(proposal) for proposal in proposals)


WORLDS = [World(0.5, 1.4, 2e-4), World(3.0, 1.0, 5e-5), World(20.0, 1.2, 1e-5), World(0.05, 2.0, 1e-4)]


def outcome(world: World, proposal: Proposal | None) -> Outcome:
    forecast = world.forecast(proposal or Proposal(1.0, None, 32.0, False))
    value = BASELINE if proposal is None else world.accuracy(forecast)
    seconds, size = forecast.latency_s, forecast.flash_bytes + OVERHEAD
    estimate = Estimate(seconds, forecast.ram_bytes, size, (), 0.5)
    accuracy = Accuracy(value, value - 0.5, value + 0.5, 10_000, "onnxruntime")
    artifact = Artifact("model.onnx", "onnxruntime", "", "", size, accuracy, estimate, None, forecast.ram_bytes)
    name = "float" if proposal is None else proposal.id
    return Outcome(proposal, Candidate(name, Plan(), (artifact,), (), 1, 1, 8.0, 8.0))


def searched(search: Search, world: World) -> list[Outcome]:
    outcomes = [outcome(world, None)]
    proposals = search.propose(())
    while proposals:
        outcomes += [outcome(world, proposal) for proposal in proposals]
        proposals = search.propose(tuple(outcomes))
    return outcomes


def search_of(world: World, most: int = 10, budget: Budget | None = None, tuned: bool = True) -> FrontSearch:
    return FrontSearch(most, world.known, budget or Budget(), tuned)


def volume(world: World, proposals: Sequence[Proposal], floor: float) -> float:
    """The area between the front in (log latency, accuracy), the whole network's latency and ``floor``."""
    points = []
    for proposal in proposals:
        forecast = world.forecast(proposal)
        points.append((math.log(forecast.latency_s), world.accuracy(forecast)))
    right = math.log(world.forecast(Proposal(1.0, None, 8.0, False)).latency_s) + 0.01
    area, top = 0.0, floor
    for latency, value in sorted(points, key=lambda each: (each[0], -each[1])):
        if value > top and latency < right:
            area += (right - latency) * (value - top)
            top = value
    return area


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("most", [4, 8, 13])
def test_it_proposes_as_many_as_asked_each_once_and_the_whole_network_first(world: World, most: int) -> None:
    outcomes = searched(search_of(world, most), world)
    proposals = [each.proposal for each in outcomes[1:]]
    assert len(proposals) == most == len(set(proposals))
    assert proposals[0] == Proposal(1.0, None, 8.0, False)


@pytest.mark.parametrize("world", WORLDS)
def test_what_it_proposes_depends_on_outcomes_alone(world: World) -> None:
    first, again = searched(search_of(world), world), searched(search_of(world), world)
    assert [each.proposal for each in first] == [each.proposal for each in again]


def test_a_run_that_goes_on_proposes_the_same() -> None:
    world = WORLDS[1]
    whole = searched(search_of(world), world)
    resumed = search_of(world)
    round_one = 1 + len(resumed.propose(()))
    second = resumed.propose(tuple(whole[:round_one]))
    assert second == tuple(each.proposal for each in whole[round_one : round_one + len(second)])


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("world", WORLDS)
def test_it_dominates_more_than_the_ladder_and_than_chance(world: World, tuned: bool) -> None:
    count, floor = 10, BASELINE - 5.0
    found = [each.proposal for each in searched(search_of(world, count, tuned=tuned), world) if each.proposal]
    rungs = ladder(count, prune=True, macs=None, params=None, widths=(2, 8), weight_bits=None)
    generator = np.random.default_rng(0)
    drawn = [
        volume(world, [each.proposal for each in generator.choice(world.known(), count, replace=False)], floor)  # type: ignore[call-overload]
        for _ in range(20)
    ]
    ours = volume(world, found, floor)
    assert ours > volume(world, rungs, floor)
    assert ours > float(np.median(drawn))


def test_most_of_what_it_builds_is_of_use() -> None:
    world = World(60.0, 1.0, 1e-5)  # a network that hardly bears pruning
    outcomes = searched(search_of(world, 12), world)
    after_the_first = outcomes[5:]
    useful = [each for each in after_the_first if each.candidate and each.candidate.value > BASELINE - 15.0]
    rungs = ladder(12, prune=True, macs=None, params=None, widths=(2, 8), weight_bits=None)
    on_ladder = [rung for rung in rungs if world.accuracy(world.forecast(rung)) > BASELINE - 15.0]
    assert len(useful) >= 4 > len(on_ladder)


@pytest.mark.parametrize(
    ("budget", "within"),
    [
        (Budget(flash_bytes=30_000), lambda forecast: forecast.flash_bytes <= 30_000),
        (Budget(latency_s=4e-4), lambda forecast: forecast.latency_s <= 4e-4),
        (Budget(ram_bytes=40_000), lambda forecast: forecast.ram_bytes <= 40_000),
    ],
)
def test_it_proposes_what_meets_the_budget(budget: Budget, within: Callable[[Forecast], bool]) -> None:
    world = WORLDS[0]
    proposals = [each.proposal for each in searched(search_of(world, 8, budget), world) if each.proposal]
    assert all(within(world.forecast(proposal)) for proposal in proposals)


def test_where_few_choices_meet_the_budget_it_builds_those_once_and_no_others() -> None:
    world = WORLDS[0]
    limit = sorted(forecast.flash_bytes for forecast in world.known())[1] + OVERHEAD
    proposals = [each.proposal for each in searched(search_of(world, 12, Budget(flash_bytes=limit)), world)]
    made = [proposal for proposal in proposals if proposal is not None]
    # What a file holds beside its weights is learnt in the first round.
    later = [world.forecast(proposal).flash_bytes + OVERHEAD for proposal in made[4:]]
    assert len(set(made)) == len(made) < 12
    assert all(size <= limit for size in later)


def test_where_nothing_meets_the_budget_it_builds_what_comes_nearest() -> None:
    world = WORLDS[0]
    least = min(forecast.flash_bytes for forecast in world.known())
    made = [each.proposal for each in searched(search_of(world, 5, Budget(flash_bytes=least // 2)), world)]
    sizes = [world.forecast(proposal).flash_bytes for proposal in made if proposal is not None]
    assert sizes
    assert max(sizes) <= 1.25 * least + OVERHEAD


def test_where_bytes_are_scarce_more_is_spent_on_narrow_weights() -> None:
    def narrow(scarce: bool) -> int:
        world = World(0.5, 1.4, 2e-4)
        search = FrontSearch(12, world.known, Budget(), True, scarce=scarce)
        return sum((each.proposal.weight_bits or 32.0) < 8 for each in searched(search, world) if each.proposal)

    assert narrow(True) >= narrow(False)
    assert narrow(False) <= 6


@dataclass(frozen=True)
class Towers(World):
    """A network of ten blocks, which take next to nothing by the data sheet, and all time of a runtime that starts
    operators one by one."""

    started: bool = True

    def forecast(self, proposal: Proposal) -> Forecast:
        plain, share = super().forecast(proposal), 1 - proposal.blocks / 10
        latency = plain.latency_s * (1 + 0.01 * share)
        times = (latency, 100 * share) if self.started else (latency,)
        return replace(plain, latency_s=latency, depth=float(proposal.blocks**2), times=times)

    def accuracy(self, forecast: Forecast) -> float:
        return super().accuracy(forecast) - 0.2 * forecast.depth

    def known(self) -> tuple[Forecast, ...]:
        every = [each.proposal for each in super().known()]
        return tuple(self.forecast(replace(each, blocks=count)) for count in (0, 1, 2, 4) for each in every)


def without_blocks(world: World, most: int = 12) -> list[bool]:
    made = [each.proposal for each in searched(search_of(world, most, tuned=False), world) if each.proposal]
    return [proposal.blocks > 0 for proposal in made]


def test_the_first_round_has_one_without_some_blocks_and_nothing_else_removed() -> None:
    world = Towers(3.0, 1.0, 5e-5)
    first = search_of(world, 12).propose(())
    assert len(first) == 5
    (fewer,) = [proposal for proposal in first if proposal.blocks]
    assert (fewer.macs, fewer.weight_bits) == (1.0, 8.0)
    assert len(search_of(World(3.0, 1.0, 5e-5), 12).propose(())) == 4


def test_where_starting_operators_counts_more_is_spent_on_networks_without_some_blocks() -> None:
    counted, not_counted = (without_blocks(Towers(3.0, 1.0, 5e-5, started)) for started in (True, False))
    assert len(counted) == len(not_counted) == 12
    assert sum(counted) > sum(not_counted)


def test_a_drop_in_decibels_is_worth_half_as_much() -> None:
    world = World(3.0, 1.0, 5e-5)

    def worst(metric: Metric) -> float:
        search = FrontSearch(12, world.known, Budget(), True, metric)
        made = [each.candidate for each in searched(search, world) if each.proposal]
        return min(each.value for each in made[4:] if each is not None)

    assert worst(PSNR) > worst(TOP1)


def test_a_budget_that_nothing_meets_still_gives_candidates() -> None:
    world = WORLDS[0]
    assert len(searched(search_of(world, 5, Budget(latency_s=1e-9)), world)) == 6


def test_candidates_that_were_dropped_or_have_no_accuracy_teach_nothing_and_end_nothing() -> None:
    world = WORLDS[0]
    search = search_of(world, 6)
    first = search.propose(())
    outcomes = [outcome(world, None), *(Outcome(proposal, None, "too large") for proposal in first)]
    bare = outcome(world, first[0])
    assert bare.candidate is not None
    artifacts = tuple(replace(each, accuracy=None) for each in bare.candidate.artifacts)
    outcomes[1] = Outcome(first[0], replace(bare.candidate, artifacts=artifacts))
    second = search.propose(tuple(outcomes))
    assert second
    assert not set(first) & set(second)


def test_its_account_compares_what_was_expected_with_what_was_found() -> None:
    world = WORLDS[2]
    search = search_of(world, 9)
    outcomes = searched(search, world)
    account = search.account(outcomes)
    assert [each.id for each in account.expected] == [each.proposal.id for each in outcomes if each.proposal]
    assert [each.round for each in account.expected] == sorted(each.round for each in account.expected)
    assert account.expected[-1].round > 1
    assert account.rank_correlation is not None
    assert account.rank_correlation > 0.5
    # Once it has seen some, it is nearer to what comes out than to what it thought at first.
    found = {each.proposal.id: each.candidate.value for each in outcomes if each.proposal and each.candidate}
    last = [each for each in account.expected if each.round == account.expected[-1].round]
    assert max(abs(found[each.id] - each.value) for each in last) < 3.0
