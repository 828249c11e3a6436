"""Second-order rounding against enumeration of all integers, plain rounding, and what layers really compute."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from compress.graph.interpret import Steps
from compress.graph.moments import collect
from compress.graph.qdq import integers, nearest, on_grid
from compress.graph.trace import trace
from compress.quantize import rounding
from compress.quantize.rebuild import layers_of, matrix, rounded_layer
from compress.quantize.rounding import round_rows, weight_levels
from compress.types import Grid

BITS = (1, 2, 3, 4, 8)
SEEDS = range(4)

LAYERS = {
    "conv2d": (nn.Conv2d(4, 6, 3, 2, 1), (4, 7, 7)),
    "conv2d without bias": (nn.Conv2d(4, 6, 3, bias=False), (4, 7, 7)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (4, 7, 7)),
    "depthwise": (nn.Conv2d(5, 5, 3, padding=1, groups=5), (5, 7, 7)),
    "depthwise without bias": (nn.Conv2d(5, 10, 3, groups=5, bias=False), (5, 7, 7)),
    "conv1d": (nn.Conv1d(4, 6, 5, 2, 3), (4, 20)),
    "grouped conv1d": (nn.Conv1d(4, 6, 3, 1, 1, 2, groups=2, bias=False), (4, 20)),
    "linear": (nn.Linear(70, 6), (70,)),
    "linear without bias": (nn.Linear(8, 6, bias=False), (8,)),
    "linear on tokens": (nn.Linear(8, 6), (5, 8)),
}


def problem(seed: int, groups: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Weights (groups, rows, columns), and second moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, rows, columns, generator=generator).double()
    mix = torch.randn(groups, columns, columns, generator=generator).double()
    x = mix @ torch.randn(groups, columns, 3 * columns, generator=generator).double()
    return weight, x @ x.transpose(1, 2) / x.shape[2]


def cost(weight: Tensor, values: Tensor, gram: Tensor) -> Tensor:
    """``tr(D G D^T)`` of each row, written out."""
    d = weight - values
    return torch.einsum("grk,gkl,grl->gr", d, gram, d)


def best_of_all(row: Tensor, gram: Tensor, scale: float, grid: Grid) -> float:
    """The least error of one row over all integers."""
    allowed = [q for q in range(grid.low, grid.high + 1) if grid.bits > 1 or q]
    trials = torch.tensor(list(itertools.product(allowed, repeat=len(row)))).double() * scale
    d = row - trials
    return float(((d @ gram) * d).sum(1).min())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_weights_lie_on_the_grid_and_its_error_is_that_of_its_outputs(name, bits):
    """``error`` is the mean over inputs and positions of the squared output error, row by row."""
    layer, size = LAYERS[name]
    model = nn.Sequential(layer).eval()
    x = torch.randn(6, *size, generator=torch.Generator().manual_seed(0)) + 0.3
    steps = Steps.of(trace(model, (x[:2],)))
    ((_, found),) = layers_of(steps).items()
    assert found.reader is not None
    (gram,) = collect(steps, [found.reader], x, 4, torch.Generator(), lambda message: None).values()
    wanted = matrix(steps, found)
    weight, bias, grid = rounded_layer(steps, found, wanted, gram, bits)

    assert weight.shape == layer.weight.shape
    assert (bias is None) == (layer.bias is None)
    assert (grid.bits, grid.axis, len(grid.scale)) == (bits, 0, len(weight))
    assert min(grid.scale) > 0
    whole = integers(weight, grid)
    assert torch.equal(on_grid(weight, grid), weight)
    assert grid.low <= int(whole.min()) <= int(whole.max()) <= grid.high
    if bits == 1:
        assert set(whole.unique().tolist()) <= {-1, 1}

    free = int(layer.bias is not None)
    gram = gram if free else gram[:, :-1, :-1]
    made = round_rows(wanted, gram, bits, free=free)
    changed = type(layer)(*_arguments(layer)).eval()
    with torch.no_grad():
        changed.weight.copy_(weight)
        if bias is not None:
            changed.bias.copy_(bias)
        squares = (changed(x).double() - layer(x).double()).square()
    axis = -1 if isinstance(layer, nn.Linear) else 1
    expected = squares.movedim(axis, 0).flatten(1).mean(1)
    torch.testing.assert_close(made.error.flatten(), expected, rtol=1e-3, atol=1e-8)


def _arguments(layer: nn.Module) -> tuple[object, ...]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features, layer.bias is not None
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return (*(getattr(layer, name) for name in names), layer.bias is not None)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_error_is_never_above_that_of_plain_rounding_with_any_of_the_scales(seed, bits):
    weight, gram = problem(seed, 2, 5, 9)
    grid = weight_levels(bits)
    scales = rounding._scales(weight, gram, grid, 9)
    many = weight.repeat(1, scales.shape[1] // 5, 1)
    plain = cost(many, nearest(many / scales, grid) * scales, gram).view(2, -1, 5).amin(1)
    made = round_rows(weight, gram, bits)
    torch.testing.assert_close(made.error, cost(weight, made.values, gram))
    assert (made.error <= plain * (1 + 1e-12)).all()


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_with_uncorrelated_inputs_each_row_is_the_best_of_all_integers(bits):
    for seed in SEEDS:
        weight, gram = problem(seed, 1, 6, 3)
        gram = torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
        made = round_rows(weight, gram, bits)
        for row, scale, error in zip(weight[0], made.scale[0], made.error[0], strict=True):
            best = best_of_all(row, gram[0], float(scale), weight_levels(bits))
            assert float(error) == pytest.approx(best, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_with_correlated_inputs_it_is_near_the_best_of_all_integers(bits):
    """Coordinate descent ends where no single integer helps: the sum over rows is within 20% of the best."""
    found = best = 0.0
    for seed in range(12):
        weight, gram = problem(seed, 1, 6, 3)
        made = round_rows(weight, gram, bits)
        found += float(made.error.sum())
        rows = zip(weight[0], made.scale[0], strict=True)
        best += sum(best_of_all(row, gram[0], float(scale), weight_levels(bits)) for row, scale in rows)
    assert best <= found * (1 + 1e-9)
    assert found <= 1.2 * best


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_no_change_of_a_single_integer_lowers_the_error(bits):
    weight, gram = problem(7, 2, 4, 8)
    made = round_rows(weight, gram, bits, free=1)
    grid = weight_levels(bits)
    allowed = [q for q in range(grid.low, grid.high + 1) if bits > 1 or q]
    for column, q in itertools.product(range(7), allowed):
        other = made.values.clone()
        other[:, :, column] = q * made.scale
        assert (cost(weight, other, gram) >= made.error * (1 - 1e-9)).all()


@pytest.mark.parametrize("free", [1, 3])
def test_free_columns_stay_real_and_are_the_best_given_the_integers(free):
    """``d_f = -G_ff^-1 G_fi d_i``: the least squares solution, and so no worse than leaving them."""
    weight, gram = problem(3, 2, 5, 10)
    made = round_rows(weight, gram, 3, free=free)
    d = weight - made.values
    fixed, loose = slice(0, 10 - free), slice(10 - free, 10)
    expected = -torch.linalg.solve(gram[:, loose, loose], gram[:, loose, fixed] @ d[:, :, fixed].transpose(1, 2))
    torch.testing.assert_close(d[:, :, loose], expected.transpose(1, 2), rtol=1e-6, atol=1e-9)
    steps = made.values[:, :, fixed] / made.scale[:, :, None]
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-9)
    assert (made.error < cost(weight, torch.cat([made.values[:, :, fixed], weight[:, :, loose]], 2), gram)).all()


@pytest.mark.parametrize("bits", BITS)
def test_an_input_that_is_always_zero_and_a_filter_that_is_all_zero_give_finite_numbers(bits):
    weight, gram = problem(1, 2, 4, 6)
    gram[:, 2], gram[:, :, 2] = 0, 0
    weight[:, 1, :5] = 0
    made = round_rows(weight, gram, bits, free=1)
    for values in (made.values, made.scale, made.error):
        assert torch.isfinite(values).all()
    assert (made.scale > 0).all()
    assert (made.error[:, 1] <= 1e-9).all()
    nothing = round_rows(weight, torch.zeros_like(gram), bits, free=1)
    assert torch.isfinite(nothing.values).all()
    assert float(nothing.error.abs().max()) == 0


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-30])
def test_the_bias_of_a_tiny_filter_fits_into_32_bits(bits, size):
    """The file holds biases as int32 with the scale weight x input, an input's scale being at least its rms / 2048."""
    weight, gram = problem(2, 2, 4, 6)
    size_of_inputs = torch.tensor([3.0, 3.0, 3.0, 0.01, 0.01, 1.0]).double()
    gram = gram * size_of_inputs * size_of_inputs[:, None] / gram[:, -1:, -1:]
    weight[:, 2] *= size
    weight[:, :, -1] = 0.7
    made = round_rows(weight, gram, bits, free=1)
    assert gram[:, -1, -1].tolist() == [1, 1]
    rms = gram.diagonal(dim1=1, dim2=2)[:, :5].max().sqrt()
    step = made.scale * rms / 2048
    assert (made.values[:, :, -1].abs() / step < 2**31).all()
    assert (made.error[:, 2] <= 1e-9).all()


@pytest.mark.parametrize("bits", BITS)
def test_weights_that_lie_on_a_grid_stay_there(bits):
    """With a scale that is among those that are tried: the largest integer is the grid's."""
    grid = weight_levels(bits)
    generator = torch.Generator().manual_seed(0)
    _, gram = problem(5, 1, 1, 6)
    whole = torch.randint(0, 2, (1, 4, 6), generator=generator).double() * (grid.high - grid.low) + grid.low
    if bits == 8:
        made = round_rows(whole * 0.25, gram, bits)
        torch.testing.assert_close(made.values, whole * 0.25, rtol=1e-7, atol=0)
    else:
        made = round_rows(whole * 0.25, gram, bits)
        # Ranges are searched on a line of 24 shares, none of which need be the exact one.
        assert float((made.error / cost(whole * 0.25, torch.zeros_like(whole), gram)).max()) < 0.02


def test_the_order_of_rows_changes_nothing():
    weight, gram = problem(6, 1, 5, 80)
    made, other = round_rows(weight, gram, 3), round_rows(weight.flip(1), gram, 3)
    torch.testing.assert_close(other.values.flip(1), made.values, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(other.error.flip(1), made.error, rtol=1e-9, atol=1e-12)


def test_scales_are_those_that_float32_holds():
    weight, gram = problem(8, 2, 5, 7)
    scale = round_rows(weight, gram, 4).scale
    assert torch.equal(scale.float().double(), scale)


@pytest.mark.parametrize(("steps", "expected"), [(0.0, 1.0), (-0.0, 1.0), (-0.3, -1.0), (5.0, 1.0), (-7.0, -1.0)])
def test_one_bit_is_the_sign_and_zero_goes_up(steps, expected):
    assert nearest(torch.tensor(steps), Grid((1.0,), 0, 1, True)) == expected


def test_one_bit_grids_have_two_ends_and_no_zero():
    for narrow in (False, True):
        grid = Grid((1.0,), 0, 1, True, narrow=narrow)
        assert (grid.low, grid.high) == (-1, 1)
        assert nearest(torch.linspace(-3, 3, 50), grid).unique().tolist() == [-1, 1]
    assert (Grid((1.0,), 0, 1, False).low, Grid((1.0,), 0, 1, False).high) == (0, 1)
