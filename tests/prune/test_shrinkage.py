"""Second-order statistics of few positions: what they can't tell is left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.prune.elimination import Problem, eliminate
from compress.prune.second_order import held, shrinkage, shrunk

GENERATOR_SEED = 3


def drawn(n: int, mixing: Tensor, mean: float = 0.0) -> Tensor:
    """``n`` positions of correlated columns, (n, K)."""
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    return torch.randn(n, mixing.shape[1], generator=generator, dtype=torch.float64) @ mixing.T + mean


def moments(x: Tensor) -> Tensor:
    """``G`` of positions (n, K), by its definition."""
    augmented = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return (augmented.T @ augmented / len(x))[None]


def mixing(columns: int, factors: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    loadings = torch.randn(columns, factors, generator=generator, dtype=torch.float64)
    return torch.cat([loadings, 0.5 * torch.eye(columns, dtype=torch.float64)], 1)


@pytest.mark.parametrize("n", [10, 40, 400])
def test_the_share_is_the_published_formula_on_correlations(n: int) -> None:
    x = drawn(n, mixing(20, 3), mean=2.0)
    correlations = np.corrcoef(x.numpy(), rowvar=False)
    p, squares = 20, float((correlations**2).sum())
    formula = ((1 - 2 / p) * squares + p**2) / ((n + 1 - 2 / p) * (squares - p))
    assert float(shrinkage(moments(x), n)) == pytest.approx(min(1.0, formula), rel=1e-6)


def test_the_share_doesnt_depend_on_the_columns_scales_and_dead_columns_dont_count() -> None:
    x = drawn(60, mixing(12, 2))
    found = float(shrinkage(moments(x), 60))
    assert float(shrinkage(moments(x * torch.logspace(-2, 2, 12, dtype=x.dtype)), 60)) == pytest.approx(found)
    dead = torch.cat([x, torch.zeros(60, 5, dtype=x.dtype)], 1)
    assert float(shrinkage(moments(dead), 60)) == pytest.approx(found)


def test_the_share_vanishes_as_positions_grow() -> None:
    shares = [float(shrinkage(moments(drawn(n, mixing(12, 2))), n)) for n in (20, 200, 2000, 20_000)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 1e-3


def test_shrinking_brings_an_estimate_of_few_positions_closer_to_the_truth() -> None:
    matrix = torch.cat([0.1 * mixing(40, 3)[:, :3], torch.eye(40, dtype=torch.float64)], 1)
    truth = matrix @ matrix.T
    x = drawn(15, matrix)
    estimate = moments(x)
    mean = estimate[0, :-1, -1]
    before = estimate[0, :-1, :-1] - mean[:, None] * mean
    after = shrunk(estimate, 15)[0, :-1, :-1] - mean[:, None] * mean
    assert float((after - truth).norm()) < 0.5 * float((before - truth).norm())


def test_means_and_variances_stay() -> None:
    found = moments(drawn(30, mixing(8, 2), mean=1.5))
    result = shrunk(found, 30)
    assert torch.equal(result[:, :, -1], found[:, :, -1])
    assert torch.equal(result[:, -1], found[:, -1])
    assert torch.allclose(result.diagonal(dim1=1, dim2=2), found.diagonal(dim1=1, dim2=2))


def test_the_ridge_gives_the_solution_of_the_shrunk_covariance() -> None:
    x = drawn(25, mixing(10, 2))
    x = x - x.mean(0)
    found = moments(x)
    rho = shrinkage(found, 25)
    covariance = found[0, :-1, :-1]
    ridge = held(found, 25)[0]
    assert torch.allclose(ridge, rho / (1 - rho) * covariance.diagonal())
    assert torch.allclose((1 - rho) * (covariance + torch.diag(ridge)), shrunk(found, 25)[0, :-1, :-1])


def test_with_fewer_positions_than_columns_no_column_goes_for_nothing() -> None:
    n, columns = 16, 64
    x = drawn(n, torch.eye(columns, dtype=torch.float64))
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(1, 5, columns + 1, generator=generator, dtype=torch.float64)
    units = torch.arange(columns)[:, None]
    importance = torch.ones(1, 5, dtype=torch.float64)

    def share_of_error(statistics: Tensor) -> float:
        """What the removal of three quarters of the columns is said to cost, of what that of all costs."""
        errors = eliminate([Problem(weight, statistics, importance, units)], columns, []).errors
        return float(errors[48] / errors[-1])

    # Independent columns of equal variance: the 16 heaviest carry what their weights' squares say.
    squares = weight[0, :, :-1].square().sum(0).sort().values
    truth = float(squares[:48].sum() / squares.sum())
    assert share_of_error(moments(x)) < 0.01 * truth, "the plain estimate is blind to that"
    assert share_of_error(shrunk(moments(x), n)) == pytest.approx(truth, rel=0.25)
