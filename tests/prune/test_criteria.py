"""Each criterion by its formula, from an independent slow reference; the frame that they share; their comparison."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress import data as datasets
from compress.errors import BadInput, UnknownName
from compress.graph.groups import find
from compress.graph.surgery import remove
from compress.graph.trace import trace
from compress.prune import Comparison, compare, prune
from compress.prune.batch_norm_scale import gammas, scale
from compress.prune.comparison import ComparisonRow, spearman
from compress.prune.goal import Goal
from compress.prune.norm import magnitude
from compress.prune.roster import METHODS
from compress.prune.taylor import Loss, importances, task_loss
from compress.types import State
from tests.graph.networks import Depthwise, Plain, Residual, UNet, build, images
from tests.support import context, random_data

# --- batch-norm scale ------------------------------------------------------------------------------------------------


def groups(model: nn.Module):
    network = trace(model, (images(2),))
    return network, {group.name: group for group in find(network).groups}


def test_behind_one_batch_norm_the_score_is_the_size_of_gamma():
    model = build(Plain)
    with torch.no_grad():
        model.bn1.weight.neg_()
    network, found = groups(model)
    torch.testing.assert_close(scale(gammas(model, network), found["conv1"]), model.bn1.weight.detach().double().abs())


def test_branches_that_add_up_score_the_root_of_the_sum_of_squared_gammas():
    model = build(Residual)
    network, found = groups(model)
    stream = next(group for name, group in found.items() if {"stem.0", "b.0"} == set(name.split("+")))
    expected = (model.stem[1].weight.double().square() + model.b[1].weight.double().square()).sqrt()
    torch.testing.assert_close(scale(gammas(model, network), stream), expected.detach())


def test_without_batch_norm_units_are_ranked_by_magnitude_and_noted():
    model = build(Plain)
    network, found = groups(model)
    assert scale(gammas(model, network), found["linear1"]) is None
    result = prune(model, images(2), params=0.4, method="bn-scale")
    kept = result.plan.layer("linear1").keep
    order = magnitude(model, found["linear1"]).argsort(descending=True)[: len(kept)]
    assert kept == tuple(sorted(order.tolist()))
    said = [note.where for note in result.report.notes if note.what == "batch-norm scale"]
    assert said == ["linear1"]


# --- Taylor ----------------------------------------------------------------------------------------------------------


def gated(model: nn.Module, group, unit, factor: float) -> nn.Module:
    """A copy in which everything that reads a unit's channels reads ``factor`` times them."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, axis in group.consumers:
            for index in unit.members[(name, axis)]:
                copied.get_parameter(name).select(axis, index).mul_(factor)
    return copied


@pytest.mark.parametrize("factory", [Plain, Residual, Depthwise, UNet], ids=lambda factory: factory.__name__)
def test_closing_a_gate_is_removing_the_unit(factory):
    model = build(factory)
    dependencies = find(trace(model, (images(2),)))
    for group in dependencies.groups:
        closed, removed = gated(model, group, group.units[1], 0.0), remove(model, dependencies, [group.units[1]])
        torch.testing.assert_close(closed(images()), removed(images()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("factory", [Plain, Residual, Depthwise], ids=lambda factory: factory.__name__)
def test_the_score_is_the_mean_over_batches_of_the_squared_slope_of_the_loss_along_the_gate(factory):
    model = build(factory).double()
    x, y = images(12).double(), torch.arange(12) % 5
    data = datasets.from_python((x.float(), y), divisible=False)
    dependencies = find(trace(model, (x[:2],)))

    class InDouble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.inner(z.double())

        def get_parameter(self, target: str) -> nn.Parameter:
            return self.inner.get_parameter(target)

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    found = importances(InDouble(), dependencies, context(data=data), recording(seen), 4)
    assert [len(labels) for _, labels in seen] == [4, 4, 4]
    order = [label for _, labels in seen for label in labels.tolist()]
    assert sorted(order) == sorted(y.tolist())
    batches = list(data.train.batches(4, context(data=data).generator))
    step = 1e-5
    for group, scores in zip(dependencies.groups, found, strict=True):
        for unit, score in list(zip(group.units, scores, strict=True))[:4]:
            ends = [gated(model, group, unit, 1 + sign * step) for sign in (1, -1)]
            slopes = []
            for inputs, labels in batches:
                up, down = (F.cross_entropy(end(inputs.double()), labels).item() for end in ends)
                slopes.append((up - down) / (2 * step))
            expected = sum(slope**2 for slope in slopes) / len(slopes)
            assert float(score) == pytest.approx(expected, rel=1e-4, abs=1e-14)


def recording(seen) -> Loss:
    def loss(outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        seen.append((outputs.detach(), wanted))
        return F.cross_entropy(outputs, wanted)

    return loss


def test_without_labels_the_score_is_the_squared_distance_that_the_output_moves():
    model = build(Plain)
    x = images(1)
    many = datasets.from_python(x.expand(600, -1, -1, -1).clone(), divisible=False)
    dependencies = find(trace(model, (images(2),)))
    about = context(data=many)
    found = importances(model, dependencies, about, task_loss(Goal(0.5), about), 1)
    step = 1e-2
    for group, scores in zip(dependencies.groups, found, strict=True):
        moved = [
            (gated(model, group, unit, 1 + step)(x) - gated(model, group, unit, 1 - step)(x)).square().sum()
            for unit in group.units
        ]
        # The mean of 600 draws of e whose square has the variance 2 d^4: within 5 standard errors.
        torch.testing.assert_close(
            scores, (torch.stack(moved) / (4 * step**2)).detach().double(), rtol=5 * (2 / 600) ** 0.5, atol=1e-9
        )


def test_the_loss_is_that_of_the_task():
    x, y = images(6), torch.arange(6) % 5
    labelled, images_alone = (datasets.from_python(each, divisible=False) for each in ((x, y), x))
    logits, other = build(Plain)(x), torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(task_loss(Goal(), context(data=labelled))(logits, y), F.cross_entropy(logits, y))
    torch.testing.assert_close(task_loss(Goal(), context(data=images_alone))(other, x), F.mse_loss(other, x))
    unseen = context(data=labelled)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    found = task_loss(Goal(sees_data=False), unseen)(logits, y)
    torch.testing.assert_close(found, noise.square().sum() / 12)


# --- random ----------------------------------------------------------------------------------------------------------


def test_random_choice_depends_on_the_seed():
    plans = {prune(build(Plain), images(2), macs=0.5, method="random", seed=seed).plan.layers for seed in range(3)}
    assert len(plans) == 3


# --- the comparison --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_methods_are_compared_at_the_same_size_before_and_after_tuning():
    model = build(Plain)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = compare(model, random_data(60), macs=0.5, epochs=1, device="cpu")
    assert {row.method for row in found.rows} == set(METHODS)
    assert all(row.macs <= 0.5 and 0 <= row.pruned <= 100 for row in found.rows if not row.reason)
    tuned = [row.tuned for row in found.rows if row.tuned is not None]
    assert tuned == sorted(tuned, reverse=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    printed = str(found)
    assert all(row.method in printed for row in found.rows)


def test_a_method_is_pruned_and_measured_as_alone():
    data = random_data(60)
    row = compare(build(Plain), data, macs=0.5, epochs=0, methods=["norm"], device="cpu").rows[0]
    alone = METHODS["norm"](Goal(0.5))(State(build(Plain)), context(data=data))
    alone_on_any_count = prune(build(Plain), images(2), macs=0.5, method="norm", data=data)
    inputs, labels = next(data.evaluate.batches(64))
    right = (alone_on_any_count.model(inputs).argmax(1) == labels).float().mean()
    assert row.pruned == row.tuned == pytest.approx(100 * float(right))
    assert alone.plan.layers


def test_a_method_that_fails_stands_in_the_table_with_its_reason(monkeypatch):
    def refuses(goal):
        def stage(state, context):
            raise BadInput("it needs what this network hasn't")

        return stage

    monkeypatch.setattr("compress.prune.roster.METHODS", {"norm": METHODS["norm"], "refuses": refuses})
    found = compare(build(Plain), random_data(), macs=0.5, epochs=0, device="cpu")
    assert [row.method for row in found.rows] == ["norm", "refuses"]
    assert found.rows[1].tuned is None
    assert "refuses: it needs what this network hasn't" in str(found)


def test_the_rank_correlation_is_that_of_the_ranks():
    def table(*pairs):
        rows = tuple(ComparisonRow(str(i), pruned=a, tuned=b) for i, (a, b) in enumerate(pairs))
        return Comparison(rows, 99.0, "top1_percent", 1, 100)

    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * (1 + 1 + 1 + 1) / (4 * 15).
    crossed = table((10, 81), (20, 80), (30, 99), (90, 98))
    assert crossed.rank_correlation == pytest.approx(0.6)
    assert "+0.60" in str(crossed)
    assert table((10, 80), (20, 90)).rank_correlation is None
    assert table((10, 80), (20, 80), (30, 80)).rank_correlation is None
    assert spearman([(10, 80), (None, None), (20, 70), (30, 60)]) == pytest.approx(-1)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(BadInput, match=r"lies in \(0, 1\]"):
        compare(build(Plain), random_data(), macs=1.5)
    with pytest.raises(BadInput, match="needs macs="):
        compare(build(Plain), random_data())
    with pytest.raises(BadInput, match="0 or more"):
        compare(build(Plain), random_data(), macs=0.5, epochs=-1)
    with pytest.raises(UnknownName, match="nearest: taylor"):
        compare(build(Plain), random_data(), macs=0.5, methods=["tailor"])
    with pytest.raises(UnknownName, match="nearest: conv"):
        compare(build(Plain), random_data(), macs=0.5, skip=["conv9"])
