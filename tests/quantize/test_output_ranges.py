"""Ranges by the error at the output, against the outputs of networks whose activations are rounded for real."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import NoGradient
from compress.graph.interpret import Steps
from compress.graph.qdq import insert
from compress.graph.trace import trace
from compress.quantize.output_ranges import FACTORS, activation_ranges
from compress.quantize.ranges import activation_grid, observe, scaled
from compress.types import Grid, Quantization
from tests.graph.networks import Plain, Residual, build, images
from tests.rosters import crossed


class Deaf(nn.Module):
    """Its output doesn't hear one channel, which has peaks."""

    def __init__(self) -> None:
        super().__init__()
        self.heard, self.peaks, self.head = nn.Linear(48, 8), nn.Linear(48, 1), nn.Linear(9, 4)
        with torch.no_grad():
            self.head.weight[:, 8] = 0
            self.peaks.weight.mul_(40)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, ::4, ::4].flatten(1)
        return self.head(F.relu(torch.cat([self.heard(x), self.peaks(x)], 1)))


class Rounded(nn.Module):
    """Its output has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(48, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x[:, :, ::4, ::4].flatten(1)))).round()


def ranges(factory, names: list[str], widths: tuple[int, ...], signedness="unsigned", task="reconstruction"):
    network, x = trace(build(factory), (images(2),)), images(64)
    samples = observe(network, names, x, torch.Generator().manual_seed(0))
    found = activation_ranges(
        Steps.of(network),
        samples,
        widths,
        x,
        signedness=signedness,
        batch=16,
        task=task,
        generator=torch.Generator().manual_seed(1),
    )
    return network, samples, found


def error(network, name: str, grid: Grid, x: Tensor, exact: Tensor) -> float:
    """Squared error at the output with that one tensor rounded; ``exact`` comes out without."""
    with torch.no_grad():
        made = insert(network, Quantization({}, {name: grid}, {}))(x)
        return float((made - exact).square().sum())


def relus(factory) -> list[str]:
    return [node.name for node in trace(build(factory), (images(2),)).nodes if node.name.startswith("relu")]


@crossed(("factory", "signedness"), [Plain, Residual, Deaf], ["unsigned", "signed"])
def test_the_range_that_is_taken_errs_little_more_at_the_output_than_the_best_of_all(factory, signedness):
    """Little more, as the error is measured to second order and by draws."""
    names = relus(factory)
    network, samples, (grids, _) = ranges(factory, names, (3,), signedness)
    x = images(64)
    with torch.no_grad():
        exact = insert(network, Quantization())(x)
    for name in names:
        first = activation_grid(samples[name], 3, signedness)
        tried = [error(network, name, scaled(first, factor), x, exact) for factor in FACTORS]
        assert error(network, name, grids[name][3], x, exact) <= 1.25 * min(tried)


def test_a_peak_that_the_output_does_not_hear_is_clipped():
    (name,) = relus(Deaf)
    _, samples, (grids, _) = ranges(Deaf, [name], (4,))
    least_squares = activation_grid(samples[name], 4, "unsigned")
    assert grids[name][4].scale[0] < least_squares.scale[0]


def test_fewer_bits_cost_more_and_every_grid_has_its_bits():
    names = relus(Residual)
    _, _, (grids, costs) = ranges(Residual, names, (2, 4, 8), task="classification")
    for name in names:
        assert costs[name, 2] > costs[name, 4] > costs[name, 8] > 0
        assert {bits: grid.bits for bits, grid in grids[name].items()} == {2: 2, 4: 4, 8: 8}


def test_the_same_draws_give_the_same_ranges():
    names = relus(Plain)
    assert ranges(Plain, names, (4,))[2] == ranges(Plain, names, (4,))[2]


def test_without_a_gradient_one_width_has_the_range_of_least_squared_error():
    names = relus(Rounded)
    _, samples, (grids, costs) = ranges(Rounded, names, (8,))
    assert grids == {name: {8: activation_grid(samples[name], 8, "unsigned")} for name in names}
    assert set(costs.values()) == {0.0}
    with pytest.raises(NoGradient, match="it is 0 at every layer"):
        ranges(Rounded, names, (4, 8))


@pytest.mark.parametrize("bits", [4, 8])
def test_ends_of_different_tails_are_shrunk_apart(bits):
    """Values spread evenly below 0, and a few far above."""
    below, peaks = -torch.rand(5000, generator=torch.Generator().manual_seed(0)), torch.full((3,), 20.0)
    grid = activation_grid(torch.cat([below, peaks]), bits, "unsigned")
    low, high = ((end - grid.zero_point) * grid.scale[0] for end in (grid.low, grid.high))
    assert high < 20
    assert low < -0.5


def test_a_scaled_grid_has_its_zero_where_it_was():
    grid = Grid((0.5,), 3, 4, False)
    assert scaled(grid, 1.5) == Grid((0.75,), 3, 4, False)
