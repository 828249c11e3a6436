"""Readers as matrix products, and second moments of what they read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.graph import moments as module
from compress.graph.groups import find
from compress.graph.interpret import Steps
from compress.graph.moments import (
    BLOCK,
    Moments,
    collect,
    damped,
    gram,
    normal_equations,
    readers,
    share_of_positions,
    thinned,
)
from compress.graph.trace import trace

LAYERS = {
    "plain": (nn.Conv2d(8, 6, 3), (8, 9, 11)),
    "stride and padding": (nn.Conv2d(8, 6, 3, 2, 1), (8, 9, 11)),
    "all unlike": (nn.Conv2d(8, 6, (2, 3), (1, 2), (0, 3), (2, 1)), (8, 9, 11)),
    "groups": (nn.Conv2d(8, 6, 3, 2, 1, groups=2), (8, 9, 11)),
    "dilation and groups": (nn.Conv2d(8, 8, 3, 1, 2, 2, groups=4, bias=False), (8, 9, 11)),
    "conv1d": (nn.Conv1d(8, 6, 5, 2, 3), (8, 20)),
    "conv1d, dilation and groups": (nn.Conv1d(8, 6, 3, 1, 1, 2, groups=2), (8, 20)),
    "linear on features": (nn.Linear(8, 6), (8,)),
    "linear on tokens": (nn.Linear(8, 6, bias=False), (5, 8)),
    "linear on a map": (nn.Linear(8, 6), (3, 5, 8)),
}
layers = pytest.mark.parametrize("name", LAYERS)


class Behind(nn.Module):
    """A layer between one that makes its channels and one that reads what it makes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        one, two = {nn.Conv1d: (nn.Conv1d, nn.Conv1d), nn.Conv2d: (nn.Conv2d, nn.Conv2d)}.get(
            type(layer), (nn.Linear, nn.Linear)
        )
        out = layer.weight.shape[0]
        self.make = one(4, 8) if one is nn.Linear else one(4, 8, 1)
        self.read = two(out, 2) if two is nn.Linear else two(out, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(torch.relu(self.layer(torch.relu(self.make(x)))))


def reader_of(layer: nn.Module, size: tuple[int, ...]):
    """The layer's reader in a traced network, and an input of the layer."""
    generator = torch.Generator().manual_seed(0)
    first = (2, *size[:-1], 4) if isinstance(layer, nn.Linear) else (2, 4, *size[1:])
    network = trace(Behind(layer).eval(), (torch.randn(first),))
    steps = Steps.of(network)
    (reader,) = readers(steps, find(network), {"layer.weight"})["layer.weight"]
    return steps, reader, torch.randn(3, *size, generator=generator)


@layers
def test_weights_times_columns_plus_bias_is_what_the_operator_computes(name):
    layer, size = LAYERS[name]
    _, reader, x = reader_of(layer, size)
    with torch.no_grad():
        product = reader.matrix(layer.weight)[:, None] @ reader.columns(x)
        if layer.bias is not None:
            product = product + layer.bias.view(reader.groups, 1, -1, 1)
        torch.testing.assert_close(product, reader.rows(layer(x)), rtol=1e-4, atol=1e-5)


@layers
def test_extent_is_the_size_of_what_columns_gives(name):
    layer, size = LAYERS[name]
    _, reader, x = reader_of(layer, size)
    assert reader.extent(x) == tuple(reader.columns(x).shape[2:])


@layers
def test_the_columns_of_some_channels_are_those_that_change_with_them(name):
    layer, size = LAYERS[name]
    _, reader, x = reader_of(layer, size)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    changed = x.clone()
    wanted = reader.unit_columns([1])
    for group in range(reader.groups):
        changed.select(axis, group * x.shape[axis] // reader.groups + 1).add_(1.0)
    moved = (reader.columns(changed) - reader.columns(x)).abs().sum((0, 1, 3))
    assert moved.nonzero().flatten().tolist() == wanted


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 6, 3, padding="same"), nn.Conv2d(8, 8, 3, groups=8)], ids=["padding as a word", "depthwise"]
)
def test_what_is_no_product_over_channels_has_no_reader(layer):
    network = trace(Behind(layer).eval(), (torch.randn(2, 4, 9, 9),))
    assert readers(Steps.of(network), find(network), {"layer.weight"}) == {}


def test_moments_are_the_mean_over_positions_of_the_outer_products():
    columns = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    moments = Moments(torch.Generator())
    moments.add(columns[:, :1], 1.0)
    moments.add(columns[:, 1:], 1.0)
    flat = columns.double().permute(0, 2, 1, 3).reshape(2, 5, 21)
    full = torch.cat([flat, torch.ones(2, 1, 21)], 1)
    torch.testing.assert_close(moments.mean, full @ full.transpose(1, 2) / 21, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("columns", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
@pytest.mark.parametrize("positions", ["few", "many"])
def test_products_of_positions_with_themselves_are_those_in_float64(columns, positions):
    """Blocks from the diagonal on, the rest copied; to float64's rounding where positions show some directions."""
    n = max(1, columns // 2) if positions == "few" else 2 * columns + 5
    a = torch.randn(2, columns, n, generator=torch.Generator().manual_seed(columns))
    found = gram(a)
    assert found.dtype == torch.float64
    exact = torch.einsum("gip,gjp->gij", a.double(), a.double())
    within = 1e-12 if positions == "few" else 1e-4
    torch.testing.assert_close(found, exact, rtol=within, atol=within)


def test_looking_at_a_share_of_the_positions_is_unbiased():
    """The mean of 300 draws lies within five standard errors of the whole, element by element."""
    columns = torch.randn(1, 4, 3, 50, generator=torch.Generator().manual_seed(0)) + 0.5
    whole = Moments(torch.Generator())
    whole.add(columns, 1.0)
    generator, drawn = torch.Generator().manual_seed(1), []
    for _ in range(300):
        part = Moments(generator)
        rows, share = thinned(4, 0.2, generator)
        added, taken = part.add(columns[:, rows], share)
        assert taken is not None
        assert len(taken) == added.shape[2] == 40
        drawn.append(part.mean)
    every = torch.stack(drawn)
    error = every.std(0) / 300**0.5
    assert ((every.mean(0) - whole.mean).abs() <= 5 * error + 1e-6).all()


def test_the_same_generator_looks_at_the_same_positions():
    columns = torch.randn(1, 8, 3, 50, generator=torch.Generator().manual_seed(0))
    one, two = (Moments(torch.Generator().manual_seed(2)) for _ in range(2))
    found, again = (each.add(columns, 0.1) for each in (one, two))
    assert found[1] is not None
    assert again[1] is not None
    assert torch.equal(found[1], again[1])
    assert torch.equal(found[0], again[0])
    assert torch.equal(one.mean, two.mean)
    a, b = (thinned(100, 0.1, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a[0], b[0])
    assert len(a[0]) == 20
    assert a[1] == 0.5


@pytest.mark.parametrize(
    ("columns", "positions", "share"), [(9, 1000, 1.0), (9, 8192, 0.5), (64, 16384, 0.5), (10, 1, 1.0)]
)
def test_a_hundred_and_twenty_eight_positions_a_column_are_enough(columns, positions, share):
    assert share_of_positions(columns, positions) == share


def test_a_damped_matrix_can_be_inverted():
    ones = torch.ones(2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(damped(ones, 0.5), ones + 0.5 * torch.eye(3, dtype=torch.float64))
    assert torch.isfinite(torch.linalg.inv(damped(ones))).all()
    assert torch.isfinite(torch.linalg.inv(damped(0 * ones))).all()


def slow_moments(reader, x: torch.Tensor) -> torch.Tensor:
    """``G`` a position at a time, in float64."""
    columns = reader.columns(x).double()
    groups, n, width, positions = columns.shape
    total = torch.zeros(groups, width + 1, width + 1, dtype=torch.float64)
    for group in range(groups):
        for i in range(n):
            for p in range(positions):
                column = torch.cat([columns[group, i, :, p], torch.ones(1, dtype=torch.float64)])
                total[group] += torch.outer(column, column)
    return total / (n * positions)


@layers
def test_collected_moments_are_those_of_what_the_layer_reads(name):
    """The batches are of unequal size, and each position counts once."""
    layer, size = LAYERS[name]
    network = trace(nn.Sequential(layer).eval(), (torch.randn(2, *size),))
    steps = Steps.of(network)
    reader = next(found for node in steps.nodes if (found := module.reader_of(steps, node)) is not None)
    x = torch.randn(5, *size, generator=torch.Generator().manual_seed(0)) + 0.2
    (found,) = collect(steps, [reader], x, 3, torch.Generator(), lambda message: None).values()
    torch.testing.assert_close(found, slow_moments(reader, x), rtol=1e-5, atol=1e-6)


@layers
def test_the_normal_equations_of_a_layer_give_its_weights_back(name):
    """``G`` and ``E t [x; 1]^T`` of all batches; with the layer's own outputs the solution is the layer."""
    layer, size = LAYERS[name]
    _, reader, _ = reader_of(layer, size)
    x = torch.randn(40, *size, generator=torch.Generator().manual_seed(0)) + 0.2
    with torch.no_grad():
        batches = [(part, layer(part), len(part) / 40) for part in x.split(15)]
    gram, cross = normal_equations(reader, batches, torch.Generator())
    torch.testing.assert_close(gram, slow_moments(reader, x), rtol=1e-5, atol=1e-6)
    columns = torch.cat([reader.columns(x), torch.ones_like(reader.columns(x)[:, :, :1])], 2).double()
    rows = torch.cat([reader.rows(target) for _, target, _ in batches], 1).double()
    expected = torch.einsum("gnop,gnkp->gok", rows, columns) / (columns.shape[1] * columns.shape[3])
    torch.testing.assert_close(cross, expected, rtol=1e-4, atol=1e-5)
    solved = torch.linalg.solve(gram, cross.transpose(1, 2)).transpose(1, 2)
    weight = reader.matrix(layer.weight).detach().double()
    torch.testing.assert_close(solved[:, :, :-1], weight, rtol=1e-2, atol=1e-3)
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
    torch.testing.assert_close(solved[:, :, -1].flatten(), bias.double(), rtol=1e-2, atol=1e-3)


def test_normal_equations_of_some_positions_belong_together():
    """Inputs and targets are taken at the same positions: the layer solves them, whichever those are."""
    layer, size = nn.Conv2d(2, 3, 3), (2, 20, 20)
    network = trace(nn.Sequential(layer).eval(), (torch.randn(2, *size),))
    steps = Steps.of(network)
    reader = next(found for node in steps.nodes if (found := module.reader_of(steps, node)) is not None)
    x = torch.randn(60, *size, generator=torch.Generator().manual_seed(0))
    assert share_of_positions(18, 60 * 18 * 18) < 0.5
    with torch.no_grad():
        gram, cross = normal_equations(reader, [(x, layer(x), 1.0)], torch.Generator().manual_seed(1))
    solved = torch.linalg.solve(gram, cross.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(solved[0, :, :-1], layer.weight.detach().flatten(1).double(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "size"),
    [(nn.Conv2d(4, 4, 3, padding="same"), (4, 8, 8)), (nn.ConvTranspose2d(4, 4, 2), (4, 8, 8))],
    ids=["padding as a word", "transposed"],
)
def test_what_is_no_matrix_product_has_no_reader(layer, size):
    steps = Steps.of(trace(nn.Sequential(layer).eval(), (torch.randn(2, *size),)))
    assert [module.reader_of(steps, node) for node in steps.nodes] == [None]


def test_a_layer_with_too_many_inputs_has_no_reader(monkeypatch):
    steps = Steps.of(trace(nn.Sequential(nn.Linear(8, 2)).eval(), (torch.randn(2, 8),)))
    assert module.reader_of(steps, steps.nodes[0]) is not None
    monkeypatch.setattr(module, "MOST_COLUMNS", 7)
    assert module.reader_of(steps, steps.nodes[0]) is None


def test_a_depthwise_layer_is_a_product_a_channel():
    layer = nn.Conv2d(6, 12, 3, padding=1, groups=6)
    steps = Steps.of(trace(nn.Sequential(layer).eval(), (torch.randn(2, 6, 8, 8),)))
    reader, x = module.reader_of(steps, steps.nodes[0]), torch.randn(3, 6, 8, 8)
    assert reader.groups == 6
    with torch.no_grad():
        product = reader.matrix(layer.weight)[:, None] @ reader.columns(x) + layer.bias.view(6, 1, 2, 1)
        torch.testing.assert_close(product, reader.rows(layer(x)), rtol=1e-4, atol=1e-5)
