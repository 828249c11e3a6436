"""Learned coresets: what the descent reaches, and the constraint on the sum of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress import data as datasets
from compress import targets
from compress.errors import BadInput
from compress.graph.groups import find
from compress.graph.surgery import remove
from compress.graph.trace import trace
from compress.prune import prune
from compress.prune.goal import Goal
from compress.prune.learned_coreset import LearnedCoreset, Weighted, imbalance, learn, reading_norms
from compress.prune.norm import magnitude
from compress.prune.ranking import lowest
from compress.prune.reweight import reweigh
from compress.types import Budget, Context
from tests.graph.networks import Dense, Plain, Residual, build, images

KEPT = [10, 10]


def toy(seed: int = 0) -> nn.Module:
    """Two hidden layers of 40 units, most of them nearly copies of a few: what a small weighted set can stand for."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
        for layer in (model[1], model[3]):
            few = torch.randn(8, layer.in_features) / layer.in_features**0.5
            which = torch.randint(0, 8, (40,))
            layer.weight.data = few[which] + 0.1 * torch.randn(40, layer.in_features) / layer.in_features**0.5
            layer.bias.data = 0.1 * torch.randn(40)
    return model.eval()


def queries(n: int = 512, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 1, 2, 3, generator=torch.Generator().manual_seed(seed))


def context(inputs: torch.Tensor) -> Context:
    data = datasets.from_python(inputs, divisible=False)
    return Context(targets.load("cpu"), Budget(), data, torch.Generator().manual_seed(0))


def learned(model: nn.Module, settings: LearnedCoreset, kept: list[int] = KEPT) -> tuple[list[torch.Tensor], nn.Module]:
    """The weights, and the whole network with them."""
    inputs = queries()
    dependencies = find(trace(model, (inputs[:2],)))
    weights = learn(settings, model, dependencies, kept, inputs, 128, context(inputs))
    weighted = remove(model, dependencies, ())
    reweigh(weighted, dependencies.groups, weights, dependencies.shapes)
    return weights, weighted


def error(model: nn.Module, smaller: nn.Module) -> float:
    """Relative squared error on queries that weren't learned from."""
    x = queries(2000, seed=2)
    with torch.no_grad():
        wanted = model(x)
        return float((smaller(x) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


def test_it_beats_magnitude_and_uniform_sampling_at_equal_size():
    model = toy()
    weights, found = learned(model, LearnedCoreset(Goal(params=0.5)))
    assert [int((each > 0).sum()) for each in weights] == KEPT
    dependencies = find(trace(model, (queries(2),)))
    scores = [magnitude(model, group) for group in dependencies.groups]
    by_norm = error(model, remove(model, dependencies, lowest(dependencies, scores, KEPT)))
    drawn = []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        at_random = [torch.rand(40, generator=generator) for _ in KEPT]
        sample = remove(model, dependencies, ())
        kept = [torch.where(each >= each.sort().values[-10], 4.0, 0.0) for each in at_random]  # 40 / 10, unbiased
        reweigh(sample, dependencies.groups, kept, dependencies.shapes)
        drawn.append(error(model, sample))
    assert error(model, found) < 0.5 * min(by_norm, *drawn)


def test_layers_are_learned_together():
    """A second group with all its units still gets weights that make up for the first one's loss."""
    weights, _ = learned(toy(), LearnedCoreset(Goal(params=0.5)), [10, 40])
    assert int((weights[1] > 0).sum()) == 40
    assert float((weights[1] - 1).abs().max()) > 0.05


def test_the_sum_of_weights_is_kept_more_closely_the_more_it_counts():
    model = toy()
    dependencies = find(trace(model, (queries(2),)))
    masses = [reading_norms(model, group) for group in dependencies.groups]

    def off(balance: float) -> float:
        weights, _ = learned(model, LearnedCoreset(Goal(params=0.5), balance=balance))
        return max(abs(float((v.float() * w).sum() / w.sum()) - 1) for v, w in zip(weights, masses, strict=True))

    assert off(10.0) < 0.05 < off(0.0)


def test_imbalance_and_masses_by_their_formulas():
    model = build(Plain)
    group = next(g for g in find(trace(model, (images(2),))).groups if g.name == "conv1")
    torch.testing.assert_close(reading_norms(model, group), model.conv2.weight.detach().square().sum((0, 2, 3)).sqrt())
    v, w = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 3.0, 4.0])
    assert float(imbalance(v, w)) == pytest.approx((6 / 8 - 1) ** 2)


@pytest.mark.parametrize("factory", [Plain, Residual, Dense], ids=lambda f: f.__name__)
def test_weights_of_zero_are_removed_units(factory):
    model = build(factory)
    dependencies = find(trace(model, (images(2),)))
    v = [torch.ones(len(group.units)) for group in dependencies.groups]
    for each in v:
        each[::2] = 0
    gone = [unit for group in dependencies.groups for unit in group.units[::2]]
    found = Weighted(model, dependencies, "cpu")(images(), v)
    torch.testing.assert_close(found, remove(model, dependencies, gone)(images()), rtol=1e-4, atol=1e-5)


def test_the_largest_query_error_falls_when_it_counts_more():
    x = queries()

    def worst(model: nn.Module, largest: float) -> float:
        _, found = learned(model, LearnedCoreset(Goal(params=0.5), largest=largest))
        with torch.no_grad():
            return float((found(x) - model(x)).square().sum(1).max())

    networks = [toy(seed) for seed in (0, 1)]
    assert sum(worst(model, 0.3) for model in networks) < 0.75 * sum(worst(model, 0.0) for model in networks)


def test_the_report_says_what_it_was_learned_from():
    notes = {n.where: n.why for n in prune(build(Plain), images(2), macs=0.6, method="learned-coreset").report.notes}
    assert "learned from 2 queries" in notes["conv1"]


@pytest.mark.parametrize("setting", [{"steps": 0}, {"batch": 0}, {"lr": 0.0}, {"largest": 1.5}, {"balance": -1.0}])
def test_settings_outside_their_range_are_refused(setting):
    with pytest.raises(BadInput, match=next(iter(setting))):
        LearnedCoreset(Goal(macs=0.5), **setting)(None, None)
