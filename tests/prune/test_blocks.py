"""Whole residual blocks: what one is worth, which go first, and that the rest makes up for them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.graph.costs import layer_operators
from compress.graph.groups import find
from compress.graph.interpret import Steps
from compress.graph.surgery import remove_blocks
from compress.graph.trace import trace
from compress.prune.api import prune
from compress.prune.block_worth import damages, lasting_damages
from compress.prune.blocks import Blocks
from compress.prune.counter import Counter
from compress.prune.goal import Goal
from compress.types import State
from tests.graph.networks import Plain, build, images
from tests.support import context, random_data


class Block(nn.Module):
    """``x + branch(x)``, the branch times ``size``."""

    def __init__(self, width: int, size: float) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, width, 3, padding=1), nn.Conv2d(width, 8, 3, padding=1)
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = F.relu(x + self.size * self.two(F.relu(self.one(x))))
        return result


class Tower(nn.Module):
    """Blocks of some widths and sizes between a stem and a head."""

    def __init__(self, widths: tuple[int, ...] = (8, 8, 8), sizes: tuple[float, ...] = (1.0, 0.01, 1.0)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width, size) for width, size in zip(widths, sizes, strict=True)))
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))
        return result


def tower(*arguments: tuple[float, ...]) -> Tower:
    torch.manual_seed(5)
    return Tower(*arguments).eval()  # type: ignore[arg-type]  # tests' shorthand


def test_a_blocks_worth_is_the_squared_slope_along_its_branch() -> None:
    """With one output: the mean over inputs of ``(df/dt)^2``, the branch times ``t``, by central differences."""
    model, x = tower(), images(6)
    network = trace(model, (x[:2],))
    found = damages(Steps.of(network), find(network).blocks, x, 4, seed=0)
    assert list(found) == ["blocks.0", "blocks.1", "blocks.2"]
    exact = tower().double()
    for path, value in found.items():
        block = exact.get_submodule(path)
        size, step = block.size, 1e-6
        ends = []
        for factor in (1 + step, 1 - step):
            block.size = size * factor
            with torch.no_grad():
                ends.append(exact(x.double()))
        block.size = size
        slope = (ends[0] - ends[1]) / (2 * step)
        assert value == pytest.approx(float(slope.square().mean()), rel=1e-3)


def pruned(model: nn.Module, goal: Goal) -> State:
    """``model`` without blocks and channels, on a device that takes any number of channels."""
    setting = context(data=random_data())
    setting = replace(setting, target=replace(setting.target, channel_multiple=1))
    return Blocks(goal)(State(model), setting)


def tuned(macs: float) -> Goal:
    return Goal(macs, tuned_after=True)


def gone(state: State) -> list[str]:
    return [note.where for note in state.notes if note.what == "block"]


ONE_BLOCK_LESS = (2 * 1152 + 216) / (3 * 1152 + 216)
"""Weights a position: 8 x 8 x 9 in each of a block's two layers, 3 x 8 x 9 in the stem; the head has next to none."""


def test_the_block_that_matters_least_goes_first() -> None:
    for position in range(3):
        sizes = tuple(0.01 if i == position else 1.0 for i in range(3))
        state = pruned(tower((8, 8, 8), sizes), tuned(0.99 * ONE_BLOCK_LESS))
        assert gone(state) == [f"blocks.{position}"]
        assert isinstance(state.model, Tower)
        assert isinstance(state.model.get_submodule(f"blocks.{position}"), nn.Identity)


def test_what_a_block_saves_counts_too() -> None:
    """The second block matters twice as much as the first, but has three times its multiply-accumulates."""
    model, x = tower((8, 24), (0.3, 0.3)), random_data().train.inputs(64, torch.Generator().manual_seed(0))

    def worth() -> list[float]:
        network = trace(model, (x[:2],))
        return list(lasting_damages(Steps.of(network), find(network).blocks, x, 64, seed=0).values())

    first, second = worth()
    model.blocks[1].size *= math.sqrt(2 * first / second)
    first, second = worth()
    assert first < second < 3 * first
    assert gone(pruned(model, tuned(0.25))) == ["blocks.1"]


def test_a_removed_block_computes_as_if_its_branch_gave_zero() -> None:
    model, x = tower(), images(4)
    network = trace(model, (x[:2],))
    blocks = [block for block in find(network).blocks if block.path == "blocks.0"]
    smaller = remove_blocks(model, blocks)
    silent = tower()
    silent.get_submodule("blocks.0").size = 0.0
    assert torch.equal(smaller(x), silent(x))


@pytest.mark.parametrize(("macs", "blocks"), [(0.9, 0), (0.65, 1), (0.5, 1), (0.3, 2)])
def test_blocks_never_overshoot_and_channels_make_up_the_rest(macs: float, blocks: int) -> None:
    model = tower()
    state = pruned(model, tuned(macs))
    before, after = (
        sum(operator.macs for operator in layer_operators(trace(each, (images(2),)))) for each in (model, state.model)
    )
    assert macs * 0.98 <= after / before <= macs
    removed = [block for block in find(trace(model, (images(2),))).blocks if block.path in gone(state)]
    assert len(removed) == blocks
    left = sum(o.macs for o in layer_operators(trace(remove_blocks(model, removed), (images(2),))))
    assert left / before >= macs, "blocks alone went further than asked"


def test_the_rest_is_rebuilt_against_the_original() -> None:
    """On other inputs than those of calibration the output is nearer to the original's than without rebuilding."""
    model, x = tower((8, 8, 8), (1.0, 0.5, 1.0)), images(64, 9)
    state = pruned(model, Goal(0.99 * ONE_BLOCK_LESS))
    (path,) = gone(state)
    bare = remove_blocks(model, [b for b in find(trace(model, (x[:2],))).blocks if b.path == path])
    with torch.no_grad():
        rebuilt, without = (float((each(x) - model(x)).square().mean()) for each in (state.model, bare))
    assert rebuilt < 0.5 * without


def test_skipped_layers_keep_their_blocks() -> None:
    state = pruned(tower(), replace(tuned(0.99 * ONE_BLOCK_LESS), skip=("blocks.1.two",)))
    assert gone(state) in (["blocks.0"], ["blocks.2"])


def test_a_network_without_blocks_is_pruned_by_channels_and_says_so() -> None:
    result = prune(build(Plain), images(2), macs=0.6, method="blocks", data=images(16))
    assert any(note.what == "blocks" and "channels alone are pruned" in note.why for note in result.report.notes)
    assert result.report.after.macs <= 0.6 * result.report.before.macs


def test_a_goal_in_latency_removes_blocks_until_the_targets_model_holds_it() -> None:
    model, data = tower(), random_data()
    setting = context("cortex-m7", data=data)
    network = trace(model, (images(2),))
    counter = Counter.of(network, find(network), setting.target)
    whole = counter.cost(counter.all_units).latency_s
    assert whole is not None
    state = Blocks(Goal(latency_s=0.75 * whole, tuned_after=True))(State(model), setting)
    after = trace(state.model, (images(2),))
    smaller = Counter.of(after, find(after), setting.target)
    reached = smaller.cost(smaller.all_units).latency_s
    assert reached is not None
    assert reached <= 0.75 * whole
    assert gone(state) == ["blocks.1"]
