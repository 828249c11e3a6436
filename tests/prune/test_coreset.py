"""Data-independent coresets: the draw, the sensitivities and the bound, against slow references and adversaries."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from compress.errors import BadInput
from compress.graph.groups import find
from compress.graph.surgery import remove
from compress.graph.trace import trace
from compress.prune import prune
from compress.prune.coreset import (
    Coreset,
    UnitCoreset,
    bound_of,
    certain_error,
    coresets,
    draw,
    error_bound,
    murthy,
    sample_size,
)
from compress.prune.goal import Goal
from compress.prune.neurons import Neurons, neurons
from compress.prune.reweight import reweigh
from tests.graph.networks import ROSTER, Attention, Depthwise, Grouped, Plain, Residual, build, images


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perceptron(inputs: int, units: int, outputs: int, activation: nn.Module, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(inputs, units), activation, nn.Linear(units, outputs)).double()
        for layer in (model[0], model[2]):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return model.eval()


def seen(model: nn.Module, example: torch.Tensor, name: str | None = None, radius: float | None = None) -> Neurons:
    network = trace(model, (example,))
    groups = find(network).groups
    return neurons(model, network, next(g for g in groups if name in (None, g.name)), radius)


# --- the draw --------------------------------------------------------------------------------------------------------

PROBABILITIES = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05], dtype=torch.float64)


def probability(sequence: tuple[int, ...]) -> float:
    """Of drawing these units in this order without replacement."""
    left, product = 1.0, 1.0
    for i in sequence:
        product *= float(PROBABILITIES[i]) / left
        left -= float(PROBABILITIES[i])
    return product


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_weights_are_murthys_and_their_sum_over_all_sets_is_unbiased(k):
    mean = torch.zeros(5, dtype=torch.float64)
    for chosen in itertools.combinations(range(5), k):
        orders = {order: probability(order) for order in itertools.permutations(chosen)}
        whole = sum(orders.values())
        wanted = [
            sum(p for order, p in orders.items() if order[0] == i) / float(PROBABILITIES[i]) / whole for i in chosen
        ]
        pr = PROBABILITIES[list(chosen)]
        found = murthy(pr, float(1 - pr.sum()))
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=0)
        mean[list(chosen)] += whole * found
    torch.testing.assert_close(mean, torch.ones(5, dtype=torch.float64), rtol=1e-10, atol=0)


@pytest.mark.parametrize("k", [1, 7, 150, 399])
def test_a_draw_has_k_units_with_weights_of_at_least_one_that_keep_the_sum_of_sensitivities(k):
    s = torch.rand(400, generator=generator(1)).double() ** 3
    weights = draw(s, k, generator(2))
    assert int((weights > 0).sum()) == k
    assert float(weights[weights > 0].min()) >= 1 - 1e-9
    # Each of the paper's draws adds w(p) s(p) / (m pr(p)), the same for every p; so does their expectation.
    torch.testing.assert_close((weights * s).sum(), s.sum(), rtol=1e-9, atol=0)


def test_how_often_a_unit_is_drawn_follows_its_sensitivity():
    gen = generator(3)
    first = torch.stack([draw(PROBABILITIES * 7, 1, gen) > 0 for _ in range(1000)]).double().mean(0)
    error = (PROBABILITIES * (1 - PROBABILITIES) / 1000).sqrt()
    assert bool(((first - PROBABILITIES).abs() < 4 * error).all())


def test_units_that_contribute_nothing_are_taken_last_and_all_others_keep_their_weights():
    s = torch.tensor([0.0, 0.2, -0.0, 0.8])
    assert draw(s, 2, generator()).tolist() == [0, 1, 0, 1]
    assert int((draw(s, 1, generator())[[0, 2]] > 0).sum()) == 0
    assert draw(s, 4, generator()).tolist() == [1, 1, 1, 1]


# --- sensitivities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.LeakyReLU(0.3), nn.ELU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.ReLU6()],
    ids=lambda a: type(a).__name__,
)
def test_sensitivities_are_what_searching_over_queries_finds(activation):
    beta = 1.7
    model = perceptron(3, 6, 4, activation)
    found = seen(model, torch.randn(2, 3, generator=generator()).double(), radius=beta)
    # A neuron sees a query only along its own weights: a fine grid there is a search over the whole ball.
    rows, bias = model[0].weight.detach(), model[0].bias.detach()
    along = torch.linspace(-1, 1, 20001, dtype=torch.float64)[:, None]
    values = activation(beta * along * rows.norm(dim=1) + bias)
    largest = values.abs().amax(0)[:, None] * model[2].weight.detach().abs().T
    torch.testing.assert_close(found.largest, largest, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.sensitivities(), (largest / largest.sum(0)).amax(1), rtol=1e-6, atol=1e-9)


def test_for_relu_without_bias_and_one_output_it_is_the_papers_formula():
    model = perceptron(5, 9, 1, nn.ReLU())
    nn.init.zeros_(model[0].bias)
    found = seen(model, torch.randn(2, 5).double(), radius=2.0).sensitivities()
    paper = model[2].weight.detach()[0].abs() * 2.0 * model[0].weight.detach().norm(dim=1)
    torch.testing.assert_close(found, paper / paper.sum())


@pytest.mark.parametrize("factory", [f for f in ROSTER if f is not Attention], ids=lambda f: f.__name__)
def test_no_contribution_leaves_its_interval(factory):
    """For every group with a guarantee: what one unit alone changes in the layers that read it."""
    model = build(factory).double()
    x = images(3).double()
    network = trace(model, (x,))
    dependencies = find(network)
    for group in dependencies.groups:
        norm = inputs_of(model, [group.name.split("+")[0]], x)[0][1].detach().flatten(1).norm(dim=1).max()
        each = neurons(model, network, group, radius=float(norm))  # of the whole input: of any patch, that or less
        if each.reason:
            continue
        names = [name.rpartition(".")[0] for name, _ in group.consumers]
        read = inputs_of(model, names, x)
        for i in (0, len(group.units) - 1):
            without = torch.ones(len(group.units), dtype=torch.float64)
            without[i] = 0
            changed = remove(model, dependencies, ())
            reweigh(changed, [group], [without], dependencies.shapes)
            parts = []
            for name, tensor in read:
                part = model.get_submodule(name)(tensor) - changed.get_submodule(name)(tensor)
                part = part.detach().movedim(1 if part.dim() == 4 else -1, 0).flatten(1)
                parts.append(torch.stack([part.amin(1), part.amax(1)]))
            least, most = torch.cat(parts, 1)
            assert bool((most <= each.upper[i] + 1e-9).all())
            assert bool((least >= each.lower[i] - 1e-9).all())


def inputs_of(model: nn.Module, names: list[str], x: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """What the layers read, in the order in which they run."""
    found: list[tuple[str, torch.Tensor]] = []

    def watch(name: str) -> None:
        hooks.append(model.get_submodule(name).register_forward_hook(lambda m, i, o: found.append((name, i[0]))))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    for name in names:
        watch(name)
    model(x)
    for hook in hooks:
        hook.remove()
    return found


def test_groups_without_a_guarantee_say_why():
    model = build(Residual)
    assert "stem.0, b.0" in seen(model, images(2), "stem.0+b.0").reason
    assert seen(model, images(2), "a.0").reason == ""
    depthwise = build(Depthwise)
    assert seen(depthwise, images(2), "expand+depth").reason == ""
    assert seen(build(Grouped), images(2), "one").reason == ""


# --- the bound -------------------------------------------------------------------------------------------------------


def adversary(model: nn.Sequential, weights: torch.Tensor, beta: float, steps: int = 25) -> torch.Tensor:
    """(draws, outputs) the largest error that gradient ascent over the ball finds, for each draw's weights."""
    rows, bias, read = (p.detach() for p in (model[0].weight, model[0].bias, model[2].weight))
    change = (weights - 1)[:, None, :] * read  # (draws, outputs, units)
    # Starts: where the linearised error is largest, for both signs, and random points.
    towards = torch.einsum("dou,ui->doi", change, rows)
    noise = torch.randn(*towards.shape, generator=generator(9), dtype=torch.float64)
    x = torch.stack([towards, -towards, noise, -noise], 2)
    x = (beta * x / x.norm(dim=-1, keepdim=True)).requires_grad_()
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    best = torch.zeros(change.shape[:2], dtype=torch.float64)
    for _ in range(steps):
        error = sign * torch.einsum("dosu,dou->dos", model[1](x @ rows.T + bias), change)
        best = torch.maximum(best, error.detach().amax(2))
        (gradient,) = torch.autograd.grad(error.sum(), x)
        with torch.no_grad():
            x += 0.3 * beta * gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            x *= (beta / x.norm(dim=-1, keepdim=True)).clamp_max(1)
    return best


@pytest.mark.parametrize(
    ("activation", "slack"), [(nn.ReLU(), 10), (nn.Tanh(), 5), (nn.GELU(), 10)], ids=["relu", "tanh", "gelu"]
)
def test_the_bound_holds_as_often_as_promised_even_for_adversarial_inputs(activation, slack):
    """And would be seen to fail if it were ``slack`` times too small."""
    failure, k, beta = 0.1, 60, 1.0
    model = perceptron(48, 240, 2, activation)
    nn.init.zeros_(model[0].bias)
    each = seen(model, torch.randn(2, 48).double(), radius=beta)
    gen = generator(4)
    weights = torch.stack([draw(each.sensitivities(), k, gen) for _ in range(60)])
    bound = error_bound(each, k, failure)
    found = adversary(model, weights, beta)
    fails = (found > bound).any(1).double().mean()
    assert fails <= failure
    assert (found > bound / slack).any(1).double().mean() > failure
    inputs = torch.nn.functional.normalize(torch.randn(300, 48, generator=gen, dtype=torch.float64), dim=1) * beta
    values = model[1](model[0](inputs))
    error = ((weights - 1)[:, None, :] * model[2].weight.detach()) @ values.detach().T
    assert bool((error.abs().amax(2) <= found.amax(1)[:, None] * 1.2 + 1e-9).all())  # the adversary is one


def test_what_the_drawn_weights_can_err_by_at_most_is_never_exceeded():
    model = perceptron(8, 40, 3, nn.ReLU())
    each = seen(model, torch.randn(2, 8).double(), radius=1.0)
    for seed in range(20):
        weights = draw(each.sensitivities(), 30, generator(seed))
        assert bool((adversary(model, weights[None], 1.0)[0] <= certain_error(each, weights) + 1e-9).all())


def test_errors_shrink_as_the_root_of_the_size_and_grow_with_certainty():
    each = seen(perceptron(20, 500, 3, nn.ReLU()), torch.randn(2, 20).double())
    ratio = error_bound(each, 10**8, 0.05) / error_bound(each, 4 * 10**8, 0.05)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2.0), rtol=1e-3, atol=0)
    assert bool((error_bound(each, 100, 1e-6) > error_bound(each, 100, 0.1)).all())


def test_the_bound_by_its_formula_for_equal_units():
    """All units alike: pr = 1/n, the contributions fill [0, beta], so V = W^2 = rho^2 = (n beta)^2."""
    n, k, beta, failure = 50, 20, 3.0, 0.1
    one = torch.ones(n, 1, dtype=torch.float64)
    each = Neurons(0 * one, beta * one, beta**2 * one, 1, beta)
    h, width = math.log(2 / failure), n * beta
    mean = 2 * width / math.sqrt(k)
    bousquet = math.sqrt(2 * h * (width**2 + 2 * width * mean) / k) + h * width / (3 * k)
    wanted = mean + min(width * math.sqrt(h / (2 * k)), bousquet)
    assert float(error_bound(each, k, failure)) == pytest.approx(wanted)


def test_the_sample_size_is_the_least_that_keeps_the_error():
    each = seen(perceptron(20, 3000, 2, nn.ReLU()), torch.randn(2, 20).double())
    k = sample_size(each, 0.5, 0.05)
    assert 1 < k < 3000
    assert bool((error_bound(each, k, 0.05) <= 0.5 * each.whole).all())
    assert bool((error_bound(each, k - 1, 0.05) > 0.5 * each.whole).any())
    assert sample_size(each, 1e-9, 0.05) == 3000


def test_keeping_all_units_errs_by_nothing_for_certain():
    each = seen(perceptron(8, 40, 3, nn.ReLU()), torch.randn(2, 8).double())
    bound = bound_of(each, draw(each.sensitivities(), 40, generator()), 0.05)
    assert (bound.error, bound.relative, bound.probability) == (0.0, 0.0, 1.0)


# --- the stage -------------------------------------------------------------------------------------------------------


def test_what_stays_is_read_with_its_weights_and_the_rest_is_as_if_zeroed():
    model = build(Plain)
    network = trace(model, (images(2),))
    dependencies = find(network)
    units = [neurons(model, network, group) for group in dependencies.groups]
    kept = [len(group.units) // 2 for group in dependencies.groups]
    drawn = coresets(dependencies, units, kept, generator(5))
    zeroed = remove(model, dependencies, ())
    reweigh(zeroed, dependencies.groups, [each.weights for each in drawn], dependencies.shapes)
    gone = [
        unit
        for group, each in zip(dependencies.groups, drawn, strict=True)
        for i, unit in enumerate(group.units)
        if i not in each.keep
    ]
    torch.testing.assert_close(remove(zeroed, dependencies, gone)(images()), zeroed(images()))


def test_the_report_gives_each_layers_bound_and_where_there_is_none():
    notes = {n.where: n.why for n in prune(build(Residual), images(2), macs=0.6, method="coreset").report.notes}
    assert "errs by" in notes["c.0"]
    assert "with probability" in notes["c.0"]
    assert "without a bound: several layers make its channels" in notes["stem.0+b.0"]


def test_a_bound_that_says_nothing_is_called_so():
    each = seen(build(Plain), images(2), "conv2")
    weights = draw(each.sensitivities(), 1, generator())
    bound = bound_of(each, weights, 0.05)
    assert bound.relative > 1
    assert "too few for a bound" in UnitCoreset("conv2", 12, (0,), weights, bound).note().why


def test_no_data_are_read():
    one, two = (prune(build(Plain), images(2, seed), macs=0.5, method="coreset") for seed in (1, 2))
    assert one.plan == two.plan
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("setting", "value"), [("failure", 0.0), ("failure", 1.0), ("radius", 0.0), ("radius", math.inf)]
)
def test_settings_outside_their_range_are_refused(setting, value):
    with pytest.raises(BadInput, match=setting):
        Coreset(Goal(macs=0.5), **{setting: value})(None, None)
