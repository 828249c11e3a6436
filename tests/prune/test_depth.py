"""Residual blocks that are left out: what the rest can make up for, which go first, and what a search is told of it."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.forecast import forecasts
from compress.graph.blocks import Block
from compress.graph.costs import layer_operators, size
from compress.graph.fold import fold_batch_norm
from compress.graph.groups import find
from compress.graph.interpret import Steps
from compress.graph.trace import trace
from compress.job import Job, assess
from compress.preflight import check
from compress.prune import roster
from compress.prune.block_worth import damages, fitted, followed, in_front, lasting_damages, ordered
from compress.prune.depth import Depth, depths
from compress.prune.goal import Goal
from compress.prune.outlook import outlook
from compress.search import Proposal
from compress.targets import load
from compress.types import Budget, State
from tests.graph.networks import Plain, build, images
from tests.prune.test_blocks import tower
from tests.support import context, random_data


class Linear(nn.Module):
    """``x + branch(x)`` with a branch that is linear, behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.branch(x)
        return result


class LinearTower(nn.Module):
    """A block whose branch the stem could compute as well, where nothing bends what it gives."""

    def __init__(self, bent: bool) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 3, padding=1), Linear(), nn.Linear(8, 3)
        self.bent = bent

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.block(F.relu(x) if self.bent else x)
        result: torch.Tensor = self.head(F.relu(x).mean((2, 3)))
        return result


def steps_of(model: nn.Module) -> tuple[Steps, tuple[Block, ...]]:
    x = images(2)
    network = trace(model, (x,))
    folded, _ = fold_batch_norm(model, network)
    return Steps.of(trace(folded, (x,))), find(network).blocks


def test_a_branch_that_the_layer_in_front_can_compute_does_no_damage() -> None:
    torch.manual_seed(0)
    steps, blocks = steps_of(LinearTower(bent=False).eval())
    x = images(32)
    whole = damages(steps, blocks, x, 16, seed=0)["block"]
    assert lasting_damages(steps, blocks, x, 16, seed=0)["block"] < 1e-6 * whole


def test_behind_a_relu_what_is_made_up_for_passes_where_it_is_open() -> None:
    """By an independent computation: least squares on patches, the slope by autograd."""
    torch.manual_seed(0)
    model = LinearTower(bent=True).eval()
    steps, blocks = steps_of(model)
    x = images(16)  # as many positions as are looked at
    found = lasting_damages(steps, blocks, x, 8, seed=3)["block"]

    stem = model.stem(x)
    patches = F.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 27)
    patches = torch.cat([patches, torch.ones(len(patches), 1)], 1).double()
    branch = model.block.branch(F.relu(stem))
    wanted = branch.detach().permute(0, 2, 3, 1).reshape(-1, 8).double()
    instead = (patches @ torch.linalg.lstsq(patches, wanted).solution).reshape(16, 16, 16, 8).permute(0, 3, 1, 2)
    error = branch - instead.float() * (stem > 0)
    total = (F.relu(stem) + branch).detach().requires_grad_()
    output = model.head(F.relu(total).mean((2, 3)))
    generator = torch.Generator().manual_seed(3)
    signs = torch.cat([torch.randint(0, 2, (8, 3), generator=generator) for _ in range(2)]) * 2.0 - 1
    (gradient,) = torch.autograd.grad((output * signs).sum(), total)
    expected = (gradient * error).flatten(1).sum(1).square().mean()
    assert found == pytest.approx(float(expected), rel=1e-3)


class Plainer(nn.Module):
    """``relu(x + two(relu(one(x))))``."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.two(F.relu(self.one(x))))


class Classifier(nn.Module):
    """Blocks between a stem and a head for five classes."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.blocks = nn.Sequential(*(Plainer() for _ in range(count)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))
        return result


def classifier() -> Classifier:
    torch.manual_seed(2)
    return Classifier().eval()


def test_the_layer_in_front_is_the_last_that_wrote_to_the_stream() -> None:
    steps, blocks = steps_of(classifier())
    fronts = {block.path: in_front(steps, next(iter(block.sums)), block) for block in blocks}
    assert {path: front and front.reader.weight for path, front in fronts.items()} == {
        "blocks.0": "stem.weight",
        "blocks.1": "blocks.0.two.weight",
        "blocks.2": "blocks.1.two.weight",
    }
    assert all(front is not None and front.gate is not None for front in fronts.values())
    assert followed(steps, blocks) == {"blocks.1": "blocks.0", "blocks.2": "blocks.1"}
    assert set(fitted(steps, blocks, images(8), 4, 0)) == set(fronts)
    # Behind a branch that is scaled no layer writes to the stream itself.
    steps, blocks = steps_of(tower())
    assert list(fitted(steps, blocks, images(8), 4, 0)) == ["blocks.0"]


def chain(count: int) -> tuple[list[Block], dict[str, str]]:
    blocks = [Block(f"b{i}", (f"b{i}.one",), {f"add{i}": 0}) for i in range(count)]
    return blocks, {f"b{i}": f"b{i - 1}" for i in range(1, count)}


def runs(gone: set[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for i in sorted(gone):
        if found and found[-1][-1] == i - 1:
            found[-1].append(i)
        else:
            found.append([i])
    return found


@pytest.mark.parametrize("seed", range(20))
def test_the_order_is_greedy_by_damage_a_saving_where_each_of_a_run_of_n_counts_n_times(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    blocks, follows = chain(7)
    worth = {b.path: float(v) for b, v in zip(blocks, torch.rand(7, generator=generator) + 0.1, strict=True)}
    saved = {b.path: float(v) for b, v in zip(blocks, torch.rand(7, generator=generator) + 0.5, strict=True)}

    def cost(gone: set[int]) -> float:
        return sum(len(run) * sum(worth[f"b{i}"] for i in run) for run in runs(gone))

    gone: set[int] = set()
    for block, total in ordered(blocks, worth, follows, saved):
        number = int(block.path[1:])
        rates = {i: (cost(gone | {i}) - cost(gone)) / saved[f"b{i}"] for i in set(range(7)) - gone}
        assert rates[number] == pytest.approx(min(rates.values()))
        gone.add(number)
        assert total == pytest.approx(cost(gone))
    assert len(gone) == 7


def test_neighbours_go_last() -> None:
    blocks, follows = chain(5)
    equal = dict.fromkeys((block.path for block in blocks), 1.0)
    assert [block.path for block, _ in ordered(blocks, equal, follows, equal)][:3] == ["b0", "b2", "b4"]


def test_of_a_block_inside_another_one_alone_goes() -> None:
    blocks = [Block("a", ("a.x.one", "a.two"), {"one": 0}), Block("a.x", ("a.x.one",), {"two": 0})]
    equal = dict.fromkeys(("a", "a.x"), 1.0)
    assert len(ordered(blocks, equal, {}, equal)) == 1


def shorter(goal: Goal, blocks: int, model: nn.Module | None = None) -> State:
    setting = context(data=random_data())
    setting = replace(setting, target=replace(setting.target, channel_multiple=1))
    return Depth(goal, blocks)(State(model or tower()), setting)


def macs_of(model: nn.Module) -> int:
    return sum(operator.macs for operator in layer_operators(trace(model, (images(2),))))


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_exactly_so_many_blocks_are_left_out(blocks: int) -> None:
    state = shorter(Goal(tuned_after=True), blocks)
    gone = [note.where for note in state.notes if note.what == "block"]
    assert len(gone) == blocks
    identities = [name for name, module in state.model.named_modules() if isinstance(module, nn.Identity)]
    assert sorted(identities) == sorted(gone)


@pytest.mark.parametrize(("macs", "blocks"), [(0.6, 1), (0.4, 1), (0.25, 2)])
def test_the_fraction_is_of_the_network_with_all_its_blocks(macs: float, blocks: int) -> None:
    state = shorter(Goal(macs, tuned_after=True), blocks)
    assert sum(note.what == "block" for note in state.notes) == blocks
    # One channel of the few that are left is much.
    assert 0.8 * macs <= macs_of(state.model) / macs_of(tower()) <= macs


def test_what_is_left_is_rebuilt_once_for_all_sizes() -> None:
    setting = context(data=random_data())
    model = tower()
    one = Depth(Goal(), 1)(State(model), setting)
    other = Depth(Goal(), 1)(State(model), setting)
    assert one.model is other.model
    x = images(64, 9)
    with torch.no_grad():
        kept = float((one.model(x) - model(x)).square().mean())
        path = next(note.where for note in one.notes if note.what == "block")
        model.get_submodule(path).size = 0.0
        bare = float((model(x) - tower()(x)).square().mean())
    assert kept < bare


def test_the_outlook_is_that_of_the_network_that_is_made() -> None:
    setting = context(data=random_data())
    model = tower()
    whole = size(trace(model, (images(2),)))
    damage = 0.0
    for count in (1, 2):
        first, *rest = outlook(Depth(Goal(), count), State(model), setting, "macs")
        made = size(trace(Depth(Goal(tuned_after=True), count)(State(model), setting).model, (images(2),)))
        assert (first.macs, first.params) == (made.macs, made.params)
        assert first.macs < whole.macs
        assert first.damage == 0.0
        assert first.depth > damage
        damage = first.depth
        assert all(later.depth == damage and later.damage > 0 for later in rest)
        assert all(after.macs < before.macs for before, after in itertools.pairwise([first, *rest]))


def test_some_numbers_of_blocks_are_tried_and_none_where_no_block_can_go() -> None:
    setting = context(data=random_data())
    assert depths(State(tower()), Goal(), setting) == (1,)
    assert depths(State(tower((8,) * 12, (0.5,) * 12)), Goal(), setting) == (1, 2, 3, 4, 5)
    assert depths(State(build(Plain)), Goal(), setting) == ()
    everything = tuple(f"blocks.{i}.one" for i in range(3))
    assert depths(State(tower()), Goal(skip=everything), setting) == ()


def job(prune: str = "reconstruct", **more: object) -> Job:
    options: dict[str, object] = {"candidates": 8, "samples": 32, "quantize": "uniform"} | more
    return Job("classifier", classifier(), random_data(), load("cpu"), prune=prune, **options)  # type: ignore[arg-type]


def foreseen(asked: Job) -> list:
    def quiet(message: str) -> None:
        pass

    return list(forecasts(asked, check(asked).least, asked.sensitivity(quiet), quiet))


def test_the_search_chooses_among_networks_without_some_blocks_too() -> None:
    asked = job()
    found = [forecast for forecast in foreseen(asked) if forecast.proposal.blocks]
    assert {forecast.proposal.blocks for forecast in found} == {1}
    whole = next(forecast for forecast in foreseen(asked) if not forecast.proposal.shrinks)
    for forecast in found:
        assert forecast.depth > 0
        assert forecast.latency_s < whole.latency_s
        assert all(less < more for less, more in zip(forecast.times, whole.times, strict=True))
    first = found[0]
    assert first.proposal.id.endswith("-drop1-w8")
    stages = asked.stages(first.proposal)
    assert isinstance(stages[0], Depth)
    state = stages[0](State(asked.model), asked.context("test", lambda message: None))
    made = assess(state, asked.target, asked.example)
    assert sum(p.numel() for p in state.model.parameters()) == made.size.params
    assert first.pruning == 0.0
    assert made.size.macs <= (first.proposal.macs or 1.0) * macs_of(asked.model)


def test_other_methods_keep_all_blocks() -> None:
    for method in sorted(set(roster.METHODS) - {roster.DEFAULT}):
        assert job(method).depths(lambda message: None) == ()


def test_no_choice_is_larger_than_what_was_asked_for() -> None:
    found = foreseen(job(budget=Budget(macs=0.5)))
    assert any(forecast.proposal.blocks for forecast in found)
    assert all((forecast.proposal.macs or 1.0) <= 0.5 for forecast in found)


def test_time_is_judged_by_starts_too_where_nothing_was_measured_and_operators_run_one_by_one() -> None:
    assert {len(forecast.times) for forecast in foreseen(job())} == {2}
    assert {len(forecast.times) for forecast in foreseen(job(runtime="tvm"))} == {1}


def test_a_proposal_says_how_many_blocks_it_lacks() -> None:
    proposal = Proposal(0.6, None, 8.0, False, None, 4)
    assert proposal.id == "macs60-drop4-w8"
    assert proposal.shrinks
    assert Proposal(None, None, 8.0, False, None, 1).shrinks


class Holding(nn.Module):
    """A block whose code names channels of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.two(F.relu(self.one(x[:, 2:6]))))


def test_channels_that_only_a_missing_block_held_on_to_are_left_alone() -> None:
    model = classifier()
    model.blocks = nn.Sequential(Holding())
    setting = context(data=random_data())

    def groups(network: nn.Module) -> set[str]:
        return {group.name for group in find(trace(network, (images(2),))).groups}

    without = copy.deepcopy(model)
    without.blocks = nn.Sequential(nn.Identity())
    assert groups(without) - groups(model), "the stream is free without the block"
    looks = list(outlook(Depth(Goal(), 1), State(model), setting, "macs"))
    assert [look.kept for look in looks] == [()]
    state = Depth(Goal(0.1, tuned_after=True), 1)(State(model), replace(setting, shared={}))
    assert macs_of(state.model) <= 0.1 * macs_of(model)
