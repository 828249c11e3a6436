"""The data-free allocator: Hill's estimate, its freedom from aspect-ratio bias, and the shares that follow from it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from compress.errors import BadInput, UnknownName
from compress.graph.groups import find
from compress.graph.trace import trace
from compress.prune import prune
from compress.prune.farms import SPREAD, alpha, hill, matrices, square_eigenvalues, weights
from compress.prune.goal import Goal
from compress.prune.roster import METHODS
from compress.prune.shares import with_amounts
from tests.graph.networks import Depthwise, Residual, build, images


def slow_hill(values: list[float]) -> float:
    ordered = sorted(values)
    n, k = len(ordered), len(ordered) // 2
    return 1 + k / sum(math.log(ordered[n - i] / ordered[n - k - 1]) for i in range(1, k + 1))


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [2, 3, 10, 101])
def test_hills_estimate_is_the_formula(n):
    values = gaussian(1, n).square()[0]
    assert hill(values) == pytest.approx(slow_hill(values.tolist()))


@pytest.mark.parametrize("exponent", [1.8, 2.5, 4.0])
def test_hills_estimate_finds_the_exponent_of_a_power_law(exponent):
    # Density x^-exponent from 1 on: the quantile at u is (1 - u)^(-1 / (exponent - 1)).
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    assert hill((1 - u) ** (-1 / (exponent - 1))) == pytest.approx(exponent, rel=0.01)


def test_no_estimate_without_two_eigenvalues_above_zero_or_without_spread():
    assert hill(torch.zeros(5)) is None
    assert hill(torch.tensor([1.0])) is None
    assert hill(torch.ones(6)) is None
    assert hill(torch.tensor([0.0, 1e-30, 1.0, 2.0])) == pytest.approx(slow_hill([1.0, 2.0]))


def test_squares_cover_the_matrix_evenly_in_either_orientation():
    matrix = gaussian(7, 3)
    by_hand = torch.cat([torch.linalg.eigvalsh(s.T @ s) for s in (matrix[0:3], matrix[2:5], matrix[4:7])])
    for given in (matrix, matrix.T):
        torch.testing.assert_close(square_eigenvalues(given).sort().values, by_hand.sort().values)
    square = gaussian(4, 4)
    torch.testing.assert_close(
        square_eigenvalues(square).sort().values, torch.linalg.eigvalsh(square.T @ square).sort().values
    )


def test_the_aspect_ratio_biases_the_plain_estimate_and_not_this_one():
    ratios = (1, 2, 4, 8)
    ours = [alpha(gaussian(64, 64 * ratio, seed)) for ratio in ratios for seed in range(4)]
    plain = [hill(torch.linalg.svdvals(gaussian(64, 64 * ratio)).square()) for ratio in ratios]
    assert all(later > earlier + 0.3 for earlier, later in pairwise(plain))
    assert max(ours) - min(ours) < 0.15 * (max(plain) - min(plain))


def test_a_heavier_tail_has_a_smaller_alpha():
    noise = gaussian(64, 256)
    scales = torch.arange(1, 65, dtype=torch.float64) ** -1.0
    assert alpha(scales[:, None] * noise) < alpha(noise)


def test_a_kernel_is_one_matrix_a_position_and_a_depthwise_one_a_single_matrix():
    kernel = gaussian(6, 4 * 9).view(6, 4, 3, 3)
    assert [tuple(m.shape) for m in matrices(kernel)] == [(6, 4)] * 9
    assert torch.equal(matrices(kernel)[5], kernel[:, :, 1, 2])
    (only,) = matrices(gaussian(6, 9).view(6, 1, 3, 3))
    assert only.shape == (6, 9)
    (linear,) = matrices(gaussian(6, 4))
    assert linear.shape == (6, 4)


@pytest.mark.parametrize("factory", [Residual, Depthwise])
def test_weights_fall_linearly_with_alpha_over_the_whole_spread(factory):
    model = build(factory)
    dependencies = find(trace(model, (images(2),)))
    alphas = []
    for group in dependencies.groups:
        each = [alpha(model.get_parameter(name)) for name, _ in group.producers]
        alphas.append(sum(each) / len(each))
    low, high = min(alphas), max(alphas)
    expected = [(1 + SPREAD) + (each - low) / (high - low) * (-2 * SPREAD) for each in alphas]
    assert weights(model, dependencies) == pytest.approx(expected)
    assert min(expected) == pytest.approx(1 - SPREAD)
    assert max(expected) == pytest.approx(1 + SPREAD)


def test_layers_without_an_estimate_and_networks_of_equal_layers_get_the_middle():
    model = build(Residual)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    dependencies = find(trace(model, (images(2),)))
    assert weights(model, dependencies) == [1.0] * len(dependencies.groups)


def test_groups_that_weigh_more_keep_a_larger_share_of_their_channels():
    model = build(Residual)
    with torch.no_grad():  # an almost flat spectrum for one layer
        model.a[0].weight.mul_(0.1).add_(torch.eye(8)[:, :, None, None])
    dependencies = find(trace(model, (images(2),)))
    found = dict(zip((group.name for group in dependencies.groups), weights(model, dependencies), strict=True))
    assert min(found, key=found.__getitem__) == "a.0"
    shares = {}
    for amounts in ("uniform", "farms"):
        plan = prune(model, images(2), macs=0.5, amounts=amounts).plan
        shares[amounts] = len(plan.layer("a.0").keep) / 8
    assert shares["farms"] < shares["uniform"]


@pytest.mark.parametrize("method", ["norm", "bn-scale", "taylor", "random"])
def test_every_method_that_ranks_takes_an_allocator_and_still_meets_the_goal(method):
    result = prune(build(Residual), images(2), macs=0.5, method=method, amounts="farms")
    assert 0.3 < result.report.after.macs / result.report.before.macs <= 0.5


def test_an_unknown_allocator_and_a_method_that_takes_none_are_refused():
    with pytest.raises(UnknownName, match="nearest: farms"):
        prune(build(Residual), images(2), macs=0.5, amounts="farm")

    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Own:
        label = "prune its own way"

    with pytest.raises(BadInput, match="prune its own way decides itself"):
        with_amounts(Own(), "farms")
    assert with_amounts(METHODS["norm"](Goal(0.5)), "farms").amounts == "farms"
