"""When the estimates of second-order sensitivity end, what their errors are worth, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.errors import BadData, BadInput, UnknownName
from compress.quantize.hessian import order_settled, top_eigenvalues, traces
from compress.quantize.hessian_products import HessianProducts
from compress.quantize.loss_curvature import Directions, problem
from compress.quantize.piecewise import layers
from compress.quantize.trace_estimators import Apart, Hutchinson, HutchPlusPlus, Sampled
from tests.quantize.curved import ConvNet, Gated, Tokens, agrees, build, data, dense, seeded

# --- errors and when it ends -----------------------------------------------------------------------------------------


def test_the_error_of_draws_is_honest():
    """Of 400 estimates of a sum with few heavy terms, about 95% lie within 1.96 standard errors, and none is biased."""
    terms = 3000
    weights = torch.exp(2.5 * torch.randn(terms, generator=seeded(1), dtype=torch.float64))
    norms = torch.rand(terms, 2, generator=seeded(2), dtype=torch.float64) + 0.1
    listed = Directions(torch.arange(terms), weights, torch.ones(terms), lambda index: index[:, None].double())
    wanted = (weights[:, None] * norms).sum(0)
    scores = []
    for seed in range(400):
        sampled = Sampled(listed, lambda rows, v, _: norms[rows], seeded(seed), terms, 64)
        for _ in range(3):
            sampled.advance()
        value, error = sampled.estimate()
        assert 0 < sampled.probes <= 150
        scores.append((value - wanted) / error)
    found = torch.stack(scores)
    assert 0.91 <= (found.abs() <= 1.96).double().mean().item() <= 0.985
    assert found.mean(0).abs().max() <= 0.25
    while not sampled.done:
        sampled.advance()
    assert torch.allclose(sampled.estimate()[0], wanted)
    assert sampled.estimate()[1].max() == 0


def test_blocks_by_themselves_have_no_error_from_what_lies_between_them():
    """Of a layer with much smaller curvature than its neighbours', all vectors together say little."""
    model, (x, y) = build(Tokens), data()
    model.two.weight.data *= 1e-3
    task = problem(model, [(x[:2], y[:2]), (x[2:], y[2:])], F.cross_entropy)
    products = HessianProducts(task, layers(task.steps), {})
    errors = []
    for kind in (Apart, Hutchinson):
        estimator = kind(products, seeded(), 24)
        while not estimator.done:
            estimator.advance()
        errors.append(estimator.estimate()[1][products.names.index("one")].item())
    assert errors[0] < 0.1 * errors[1]


@pytest.mark.parametrize("kind", [Apart, Hutchinson, HutchPlusPlus])
def test_the_error_of_probes_is_honest(kind):
    model, (x, y) = build(Tokens), data()
    task = problem(model, [(x, y)], F.cross_entropy)
    found = layers(task.steps)
    products = HessianProducts(task, found, {})
    wanted = torch.tensor(
        [dense(model, [f"{layer.name}.weight"], x, y, F.cross_entropy).trace().item() for layer in found]
    )
    scores = []
    for seed in range(60):
        estimator = kind(products, seeded(seed), 24)
        while not estimator.done:
            estimator.advance()
        value, error = estimator.estimate()
        scores.append((value - wanted) / error)
    inside = (torch.stack(scores).abs() <= 2.1).double().mean().item()
    assert 0.88 <= inside <= 1.0
    assert torch.stack(scores).mean(0).abs().max() <= 0.6


def test_it_ends_once_the_order_is_settled():
    model, (x, y) = build(ConvNet), data()
    asked = {"method": "hutchinson", "tolerance": 0.001, "most": 2000}
    found = traces(model, [(x, y)], F.cross_entropy, generator=seeded(), **asked)
    assert max(e.probes for e in found.values()) < 2000
    assert any(e.standard_error > 0.001 * e.value for e in found.values())
    wanted = {name: dense(model, [f"{name}.weight"], x, y, F.cross_entropy).diagonal().mean().item() for name in found}
    scores = {name: e.value / getattr(model, name).weight.numel() for name, e in found.items()}
    assert sorted(found, key=scores.get) == sorted(found, key=wanted.get)


def test_the_order_may_be_by_the_callers_weights():
    """Only the layers that count have to be told apart; one that isn't known is an error."""
    model, (x, y) = build(ConvNet), data()
    asked = {"generator": seeded(), "method": "hutchinson", "tolerance": 1e-6, "most": 400}
    near = traces(model, [(x, y)], F.cross_entropy, **asked)
    far_apart = traces(model, [(x, y)], F.cross_entropy, order={"conv": 1.0, "inner": 1e-6, "head": 1e6}, **asked)
    assert max(e.probes for e in far_apart.values()) < max(e.probes for e in near.values())
    with pytest.raises(UnknownName, match="unknown layer 'haed'"):
        traces(model, [(x, y)], F.cross_entropy, order={"haed": 1.0}, **asked)


def test_settled_means_apart_or_both_known():
    scores, errors = torch.tensor([1.0, 2.0, 2.1]), torch.tensor([0.1, 0.1, 0.1])
    unknown = torch.zeros(3, dtype=torch.bool)
    assert not order_settled(scores, errors, unknown)
    assert order_settled(scores, errors, torch.tensor([False, True, True]))
    assert order_settled(torch.tensor([1.0, 2.0, 2.3]), errors, unknown)
    assert order_settled(scores[:1], errors[:1], unknown[:1])


def test_the_same_seed_gives_the_same_and_another_another():
    model, (x, y) = build(Gated), data()
    first, second, third = (
        traces(model, [(x, y)], F.cross_entropy, generator=seeded(seed), most=8) for seed in (5, 5, 6)
    )
    assert first == second
    assert first["conv"].value != third["conv"].value


def test_the_model_is_left_as_it_was():
    model, (x, y) = build(ConvNet).train(), data()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones(4, 3).double()
    before = copy.deepcopy(model.state_dict())
    for method in ("auto", "hutchinson"):
        traces(model, [(x, y)], F.cross_entropy, generator=seeded(), method=method, most=8)
    top_eigenvalues(model, [(x, y)], F.cross_entropy, generator=seeded(), most=3)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert {name: m.training for name, m in model.named_children()} == {
        "conv": True, "norm": False, "inner": True, "head": True, "dropout": True,
    }  # fmt: skip
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["conv.weight"]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["head.weight"]
    assert torch.equal(model.head.weight.grad, torch.ones(4, 3))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# --- what can't be used ----------------------------------------------------------------------------------------------


def hard(outputs, targets):
    return (outputs.argmax(1) == targets).double().mean()


def crowd(outputs, targets):
    return (outputs - outputs.mean(0)).square().sum(1).mean()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batches": []}, "no samples"),
        ({"batches": [(torch.zeros(0, 2, 4, 4), torch.zeros(0))]}, "no samples"),
        ({"batches": [torch.full((2, 2, 4, 4), float("nan"))]}, "NaN or infinity"),
        ({"batches": [torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 8, 8)]}, "different shapes"),
        ({"batches": [{"image": 1}]}, "isn't a tensor of inputs"),
        ({"loss": hard}, "no gradient .* give a differentiable one"),
        ({"loss": lambda z, y: F.cross_entropy(z, y, reduction="none")}, "reduction='mean'"),
        ({"loss": lambda z, y: F.cross_entropy(z, y) * float("nan")}, "NaN or infinite"),
        ({"loss": lambda z, y: F.nll_loss(z, y.float())}, "can't be computed .* check the loss"),
        ({"loss": lambda z, y: z.abs().mean()}, "no curvature .* method='fisher'"),
        ({"loss": crowd, "method": "gauss-newton"}, "compares samples .* method='hutchinson'"),
        ({"loss": None, "method": "fisher"}, "method='gauss-newton' is the expected one"),
        ({"method": "hutchison"}, "unknown method 'hutchison'; nearest: hutchinson"),
        ({"of": "biases"}, "unknown kind of trace 'biases'"),
    ],
)
def test_what_cant_be_used_is_refused_in_one_line(change, says):
    asked = {"batches": [data()], "loss": F.cross_entropy, **change}
    with pytest.raises(BadInput, match=says) as caught:
        traces(build(ConvNet), asked.pop("batches"), asked.pop("loss"), generator=seeded(), **asked)
    assert "\n" not in str(caught.value)


def test_weights_that_are_nan_are_refused():
    model = build(ConvNet)
    model.conv.weight.data[0] = float("nan")
    with pytest.raises(BadInput, match="NaN or infinite on these data"):
        traces(model, [data()], F.cross_entropy, generator=seeded())


def test_a_network_without_layers_is_refused():
    with pytest.raises(BadInput, match="no convolution or linear layer"):
        traces(nn.Sequential(nn.Flatten(), nn.ReLU()), [data()], F.mse_loss, generator=seeded())


def test_a_loss_over_pairs_of_samples_falls_back_on_products():
    model, (x, y) = build(ConvNet), data()
    found = traces(model, [(x, y)], crowd, generator=seeded(), tolerance=0.1, settled=False)
    for layer, estimate in found.items():
        assert estimate.method == "hutchinson"
        assert agrees(estimate, dense(model, [f"{layer}.weight"], x, y, crowd).trace().item())


def test_empty_data_are_bad_data():
    with pytest.raises(BadData):
        traces(build(ConvNet), iter(()), generator=seeded())
