"""The closed form: the estimate by its formula, patterns that get better, ranges; against slow references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress.errors import BadInput, UnknownName
from compress.quantize.pattern_constraints import ComplementaryPairs, ExactOnes
from compress.quantize.sensing import Noise, SensingLayer
from compress.quantize.sensing_search import expected_error, search
from compress.quantize.sensing_start import (
    EVENNESS,
    RANGE,
    ROUNDING,
    catching_most,
    fit,
    hadamard,
    linear_estimate,
    noise_covariance,
    start,
    statistics,
)


def covariance(n: int, seed: int = 0) -> torch.Tensor:
    """A random one whose eigenvalues fall as images' do."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    return vectors @ torch.diag(1 / torch.arange(1, n + 1, dtype=torch.float64) ** 2) @ vectors.T


def smooth(count: int, side: int, seed: int = 0) -> list[torch.Tensor]:
    """Images that vary slowly, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, side // 4, side // 4, generator=generator)
    return list(torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")[:, 0])


def test_the_linear_estimate_equals_the_formula_and_no_other_is_better():
    c = covariance(12)
    a = torch.randn(4, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = 0.01 * torch.eye(4, dtype=torch.float64)
    found = linear_estimate(a, c, noise)
    x = np.asarray(c) @ np.asarray(a).T @ np.linalg.inv(np.asarray(a @ c @ a.T + noise))
    np.testing.assert_allclose(found.numpy(), x, rtol=1e-4, atol=1e-7)

    def error(e: torch.Tensor) -> float:
        left = torch.eye(12, dtype=torch.float64) - e @ a
        return float((left @ c @ left.T).trace() + (e @ noise @ e.T).trace())

    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        changed = found + 0.01 * torch.randn(found.shape, generator=generator, dtype=torch.float64)
        assert error(changed) > error(found)


def test_the_expected_error_is_the_error_of_the_linear_estimate():
    c = covariance(12)
    a = torch.where(torch.randn(3, 12, generator=torch.Generator().manual_seed(1)) > 0, 1.0, -1.0).double()
    left = torch.eye(12, dtype=torch.float64) - linear_estimate(a, c) @ a
    assert expected_error(a.numpy(), c.numpy()) == pytest.approx(float((left @ c @ left.T).trace()) / 12, rel=1e-5)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_search_gains_and_ends_where_no_single_turn_gains(count):
    c = covariance(14).numpy()
    begun = np.where(np.random.default_rng(0).normal(size=(count, 14)) > 0, 1.0, -1.0)
    found = search(begun, c, sweeps=50)
    assert set(np.unique(found)) == {-1.0, 1.0}
    least = expected_error(found, c)
    assert least < expected_error(begun, c)
    eigen = np.sort(np.linalg.eigvalsh(c))
    assert least >= eigen[: 14 - count].sum() / 14
    for row in range(count):
        for pixel in range(14):
            turned = found.copy()
            turned[row, pixel] *= -1
            assert expected_error(turned, c) >= least * (1 - 1e-6)


def test_one_searched_pattern_comes_near_the_best_of_all():
    c = covariance(9).numpy()
    every = (np.array([[1.0 if n >> i & 1 else -1.0 for i in range(9)]]) for n in range(512))
    best = min(expected_error(pattern, c) for pattern in every)
    eigenvector = np.linalg.eigh(c)[1][:, -1:].T
    found = search(np.where(eigenvector >= 0, 1.0, -1.0), c, sweeps=5)
    assert expected_error(found, c) <= 1.05 * best


def test_the_search_keeps_counts_and_fixed_rows():
    c = covariance(16).numpy()
    begun = np.where(np.random.default_rng(1).normal(size=(4, 16)) > 0, 1.0, -1.0)
    begun[0] = 1.0
    found = search(begun, c, sweeps=3, fixed=1, keep_counts=True)
    assert (found[0] == 1).all()
    assert ((found > 0).sum(1) == (begun > 0).sum(1)).all()
    assert expected_error(found, c) < expected_error(begun, c)


@pytest.mark.parametrize("keep_counts", [False, True])
def test_the_search_takes_blocks_of_fewer_dimensions_than_patterns(keep_counts):
    vectors = torch.linalg.qr(torch.randn(16, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    c = (vectors @ torch.diag(torch.tensor([5.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)) @ vectors.T).numpy()
    begun = np.where(np.random.default_rng(1).normal(size=(9, 16)) > 0, 1.0, -1.0)
    with np.errstate(all="raise"):
        found = search(begun, c, sweeps=3, keep_counts=keep_counts)
    assert set(np.unique(found)) == {-1.0, 1.0}
    assert abs(expected_error(found, c)) < 1e-6 * np.trace(c)
    assert expected_error(found[:5], c) < expected_error(begun[:5], c)
    assert np.array_equal(found[5:], begun[5:])


def test_few_images_have_a_start_however_many_patterns_there_are():
    images = smooth(3, 8)
    x = torch.stack(images)[:, None]
    errors = []
    for ratio in (0.05, 0.25, 0.9):
        made = SensingLayer(ratio, block=8).eval()
        with np.errstate(all="raise"):
            found = start(made, images)
        with torch.no_grad():
            errors.append(float((made.initial(made.measure(x)) - x).square().mean()))
    # Images of 2x2 independent pixels have four dimensions, which 16 and 58 patterns catch.
    assert errors[0] < 0.1 * float(found.covariance.diagonal().mean())
    assert max(errors[1:]) < 1e-6


def test_the_search_refuses_other_values_and_shapes():
    c = covariance(8).numpy()
    with pytest.raises(BadInput, match=r"-1 and \+1"):
        search(np.zeros((2, 8)), c)
    with pytest.raises(BadInput, match=r"give \(m, n\) and \(n, n\)"):
        search(np.ones((2, 7)), c)


def test_hadamard_patterns_are_orthogonal_and_those_that_catch_most_are_taken():
    rows = hadamard((4, 8))
    assert torch.equal(rows @ rows.T, 32 * torch.eye(32, dtype=torch.float64))
    c = covariance(32)
    found = catching_most(rows, c, 5)
    caught = [float(row @ c @ row) for row in rows]
    assert [float(row @ c @ row) for row in found] == pytest.approx(sorted(caught, reverse=True)[:5])
    with pytest.raises(BadInput, match="powers of two"):
        hadamard((6, 8))


def test_statistics_equal_a_loop_over_blocks_and_their_eight_ways():
    images = [torch.rand(7, 9, generator=torch.Generator().manual_seed(4)), torch.rand(2, 2)]
    found = statistics(images, (3, 3), stride=2)
    blocks = []
    for top in range(0, 5, 2):
        for left in range(0, 7, 2):
            blocks.append(images[0][top : top + 3, left : left + 3].double().numpy())
    assert found.blocks == len(blocks)
    assert found.mean == pytest.approx(np.mean(blocks), rel=1e-5)
    total = np.zeros((9, 9))
    for turn in range(4):
        for mirrored in (False, True):
            ways = [np.rot90(np.fliplr(b) if mirrored else b, turn).ravel() for b in blocks]
            total += np.cov(np.array(ways).T, bias=True)
    np.testing.assert_allclose(found.covariance.numpy(), total / 8, atol=1e-6)


@pytest.mark.parametrize("patterns", ["searched", "eigenvectors", "hadamard", "random"])
def test_a_start_has_the_error_that_the_statistics_promise(patterns):
    images = smooth(40, 32)
    made = SensingLayer(0.2, block=8)
    found = start(made, images, patterns=patterns, generator=torch.Generator().manual_seed(0))
    made.eval()
    a, c = made.signs().double(), found.covariance
    rounding = torch.diag(ROUNDING / made.factors().double() ** 2)
    left = torch.eye(64, dtype=torch.float64) - linear_estimate(a, c, rounding) @ a
    promised = float((left @ c @ left.T).trace()) / 64
    assert promised == pytest.approx(expected_error(a.numpy(), c.numpy()), rel=0.5)
    blocks = torch.stack(images).unfold(1, 8, 4).unfold(2, 8, 4).reshape(-1, 1, 8, 8)
    x = torch.cat([torch.rot90(b, k, (2, 3)) for b in (blocks, blocks.flip(3)) for k in range(4)])
    with torch.no_grad():
        error = float((made.initial(made.measure(x)) - x).square().mean())
        through = float((made.reexpand(made(x)) - x).square().mean())
    assert error == pytest.approx(promised, rel=0.02)
    assert through == pytest.approx(error, rel=1e-3)


def test_searched_patterns_beat_eigenvectors_hadamard_and_chance_in_that_order():
    images = smooth(40, 32)
    errors = []
    for patterns in ("searched", "eigenvectors", "hadamard", "random"):
        made = SensingLayer(0.1, block=8)
        found = start(made, images, patterns=patterns, generator=torch.Generator().manual_seed(0))
        errors.append(expected_error(made.signs().double().numpy(), found.covariance.numpy()))
    assert errors[0] < min(errors[1:])
    assert errors[3] == max(errors)


def test_measurements_have_the_ranges_of_the_formula():
    images = smooth(60, 32)
    made = SensingLayer(0.2, block=8)
    found = start(made, images)
    x = torch.stack(images)[:, None]
    with torch.no_grad():
        y = made.eval().measure(x) - found.mean * made.operator().sum(1).view(1, -1, 1, 1)
        z = made(x)
    reach, range_ = (v.movedim(1, 0).flatten(1).abs().quantile(RANGE, 1) for v in (y, z))
    wanted = (reach / reach.median()) ** (1 - EVENNESS)
    assert (range_ / wanted - 1).abs().max() < 0.25
    assert range_.max() / range_.min() < (reach.max() / reach.min()) ** 0.4


def test_the_estimate_counts_on_the_noise_of_the_layer():
    images = smooth(40, 32)
    noise = Noise(photons=2.0, read=4.0)
    told, untold = SensingLayer(0.2, block=8, noise=noise), SensingLayer(0.2, block=8)
    found = start(told, images)
    untold.set_patterns(told.patterns())
    fit(untold, found, images)
    x = torch.stack(images)[:, None]
    errors = []
    for made in (told.eval(), untold.eval()):
        y = made.measure(x, noise=noise, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            errors.append(float((made.initial(y) - x).square().mean()))
    a, c = told.signs().double(), found.covariance
    rounding = torch.diag(ROUNDING / told.factors().double() ** 2)
    e = linear_estimate(a, c, noise_covariance(told, found.mean) + rounding)
    left = torch.eye(64, dtype=torch.float64) - e @ a
    spread = noise_covariance(told, found.mean)
    promised = float((left @ c @ left.T).trace() + (e @ spread @ e.T).trace()) / 64
    assert errors[0] == pytest.approx(promised, rel=0.1)
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize(
    "more",
    [
        {"constraint": ExactOnes(20), "values": "01"},
        {"constraint": ComplementaryPairs(ExactOnes(20)), "values": "01"},
        {"differential": "mean", "values": "01", "constraint": ExactOnes(20)},
    ],
)
def test_a_start_meets_the_constraint(more):
    made = SensingLayer(0.19, block=8, **more)
    start(made, smooth(20, 32))
    made.check(made.signs())
    assert torch.isfinite(made.expand.weight).all()


def test_bad_input_is_refused():
    with pytest.raises(BadInput, match="no image is as large as a block of 64x64"):
        statistics(smooth(2, 32), (64, 64))
    with pytest.raises(BadInput, match="at most 64x64"):
        statistics(smooth(2, 32), (65, 64))
    with pytest.raises(UnknownName, match="searched"):
        start(SensingLayer(0.2, block=8), smooth(2, 32), patterns="serched")
