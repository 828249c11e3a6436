"""First-order changes of the output: exact where the network is linear, and coherent where it pools."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from compress.graph.groups import find
from compress.graph.interpret import Steps
from compress.graph.moments import Moments, readers
from compress.graph.trace import trace
from compress.prune.sensitivity import Probes, curve


class Pooled(nn.Module):
    """Linear in what ``two`` makes: mean pooling and one output."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(torch.relu(self.one(x))).mean((2, 3)))


class TokensFirst(nn.Module):
    """The reader's first axis is tokens, as inside ``nn.MultiheadAttention``."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 6), nn.Linear(6, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.two(
            torch.relu(self.one(x.flatten(2).transpose(1, 2).flatten(1).unflatten(1, (24, 8)))).transpose(0, 1)
        )
        return self.head((x * x.shape[0]).mean(0))


class TokensFlat(TokensFirst):
    """Tokens and inputs along one axis, tokens outermost."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        x = torch.relu(self.one(x.flatten(1).unflatten(1, (24, 8)))).transpose(0, 1).reshape(n * 24, 6)
        return self.head(self.two(x).view(24, n, 4).mean(0))


class Windows(TokensFirst):
    """Windows of inputs along the first axis, inputs outermost."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        x = torch.relu(self.one(x.flatten(1).unflatten(1, (24, 8)))).reshape(n * 4, 6, 6)
        return self.head(self.two(x).view(n, 24, 4).mean(1))


def probes_of(model: nn.Module, x: torch.Tensor, batch: int = 4):
    network = trace(model, (x[:2],))
    steps = Steps.of(network)
    (reader,) = readers(steps, find(network), {"two.weight"})["two.weight"]
    return steps, reader, Probes(steps, [reader], x, batch, seed=0)


def built(factory: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return factory().eval()


def inputs(n: int = 10) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def changed(model: nn.Module, change: torch.Tensor) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.two.weight += change[..., :-1].reshape(other.two.weight.shape)
        other.two.bias += change[..., -1].flatten()
    return other


@pytest.mark.parametrize("factory", [Pooled, TokensFirst, TokensFlat, Windows], ids=lambda factory: factory.__name__)
@pytest.mark.parametrize("batch", [1, 4, 24])
def test_what_is_measured_is_the_squared_change_of_a_linear_networks_output(factory, batch):
    """One output, so that its sign doesn't matter; each input's rows may lie anywhere along the first axis."""
    model, x = built(factory), inputs(24)
    _, reader, probes = probes_of(model, x, batch)
    width = reader.matrix(model.two.weight).shape[-1]
    change = 0.3 * torch.randn(1, 4, width + 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = float((changed(model, change)(x) - model(x)).square().mean())
    found = probes.measured({7: {3: [(reader, change)], 2: [(reader, 2 * change)]}})
    assert found[7][3] == pytest.approx(expected, rel=1e-4)
    assert found[7][2] == pytest.approx(4 * expected, rel=1e-4)


def test_importance_is_the_squared_gradient_summed_over_positions():
    """The mean over 36 positions passes w / 36 to each: 36 times (w / 36)^2."""
    model, x = built(Pooled), inputs()
    _, reader, probes = probes_of(model, x)
    expected = model.head.weight.detach().double().square() / 36
    torch.testing.assert_close(probes.importance()[reader.node.name], expected, rtol=1e-5, atol=0)


def test_errors_that_a_mean_pools_coherently_count_as_such():
    """A changed bias moves all 36 positions alike: 36 times what a diagonal estimate says."""
    model, x = built(Pooled), inputs()
    _, reader, probes = probes_of(model, x)
    change = torch.zeros(1, 4, 55)
    change[0, :, -1] = torch.tensor([0.0, 0.5, 0.0, 0.0])
    moments = Moments(torch.Generator())
    moments.add(reader.columns(torch.relu(model.one(x)).detach()), 1.0)
    wide = change.double()
    diagonal = torch.einsum("gok,gkl,gol,go->", wide, moments.mean, wide, probes.importance()[reader.node.name])
    measured = probes.measured({0: {1: [(reader, change)]}})[0][1]
    assert measured == pytest.approx(36 * float(diagonal), rel=1e-4)
    assert measured == pytest.approx(0.25 * float(model.head.weight[0, 1].detach()) ** 2, rel=1e-4)


def test_changes_of_several_readers_add_up_before_they_are_squared():
    """Opposite changes of the same output cancel."""
    model, x = built(Pooled), inputs()
    _, reader, probes = probes_of(model, x)
    change = torch.randn(1, 4, 55, generator=torch.Generator().manual_seed(1))
    assert probes.measured({0: {1: [(reader, change), (reader, -change)]}})[0][1] == pytest.approx(0, abs=1e-9)


def test_weights_need_no_gradient_afterwards():
    model, x = built(Pooled), inputs()
    steps, _, probes = probes_of(model, x)
    probes.importance()
    assert not any(tensor.requires_grad for tensor in steps.parameters.values())


@pytest.mark.parametrize("seed", range(8))
def test_a_curve_passes_through_what_was_measured_and_never_falls(seed):
    """Errors with sudden jumps, measured values that rise in their own way."""
    rng = np.random.default_rng(seed)
    errors = np.concatenate([[0.0], np.cumsum(rng.exponential(1, 40) ** 4)])
    points = sorted(rng.choice(np.arange(1, 40), 6, replace=False), reverse=True)
    measured = dict(zip(map(int, points), np.cumsum(rng.exponential(1, 6)), strict=True))
    found = curve(errors, measured)
    assert found[0] == 0
    assert (np.diff(found) >= 0).all()
    for kept, value in measured.items():
        assert found[40 - kept] == pytest.approx(value)


def test_between_two_measured_counts_the_ratio_is_geometric():
    """Errors 1, 2, 3, 4; ratios 2 at one gone and 8 at three: 4 at two gone, 8 beyond."""
    np.testing.assert_allclose(curve(np.array([0.0, 1, 2, 3, 4]), {3: 2.0, 1: 24.0}), [0, 2, 8, 24, 32])


def test_a_measured_value_that_falls_gives_a_level_stretch():
    np.testing.assert_allclose(curve(np.array([0.0, 1, 2, 3, 4]), {3: 5.0, 1: 3.0}), [0, 5, 5, 5, 5])


@pytest.mark.parametrize("measured", [{}, {0: 3.0}, {2: 0.0}])
def test_without_a_useful_measurement_the_errors_stay(measured):
    np.testing.assert_allclose(curve(np.array([0.0, 1, 2, 3]), measured), [0, 1, 2, 3])
