"""The cost of rounding errors against Jacobians of small float64 networks, an input at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from compress.graph.interpret import Steps
from compress.graph.trace import trace
from compress.quantize.perturbation import perturbations, weight_of
from compress.quantize.ranges import activation_grid
from compress.quantize.simulation import rounded
from compress.types import Grid
from tests.quantize.curved import ConvNet, Flattened, Shared, Tokens, TokensFirst, Windows, build, data, seeded

TASKS = ("classification", "reconstruction")


class Signals(nn.Module):
    """Convolutions on one axis, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv1d(2, 4, 3, padding="same"), nn.Conv1d(4, 4, 3, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(4, 3, (1, 2), (1, 2))
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.depthwise(F.gelu(self.conv(x.flatten(2)))))
        return self.head(self.up(x[:, :, None]).mean((2, 3)))


class MeanOfTokens(TokensFirst):
    """(tokens, inputs, features), all tokens alike."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.one(x.flatten(2)[..., :4].transpose(0, 1)))).mean(0)


class OnParameter(nn.Module):
    """A layer that reads a parameter: what it makes has no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.mix = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(x.flatten(1)[:, :4] + self.mix(self.position).sum(0)))


NETWORKS = (ConvNet, Signals, Tokens, TokensFirst, MeanOfTokens, Windows, Shared, OnParameter)
tasks = pytest.mark.parametrize("task", TASKS)


def curvature(z: Tensor, task: str, outputs: Tensor) -> Tensor:
    """``A`` of one input's output ``z``, (n, n)."""
    if task == "classification":
        p = z.softmax(0)
        return torch.diag(p) - torch.outer(p, p)
    return torch.eye(len(z)).double() / outputs.square().mean() / len(z)


def changes(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A change of each layer's weight and bias."""
    generator = seeded(seed)
    return {
        name: 0.05 * torch.randn(parameter.shape, generator=generator).double()
        for name, parameter in model.named_parameters()
    }


def measured(model: nn.Module, x: Tensor, task: str, batch: int, draws: int, biases: bool, seeds=range(1)):
    """What is measured for each layer's change at "4 bits", and for half of it at "8 bits"; a run a seed."""
    steps, moved = Steps.of(trace(model, (x[:2],))), changes(model)
    weights = {}
    for node in steps.nodes:
        name = weight_of(steps, node)
        if name is not None:
            bias = name.removesuffix("weight") + "bias"
            weights[name] = {
                bits: (
                    steps.parameters[name] + share * moved[name],
                    steps.parameters[bias] + share * moved[bias] if biases and bias in steps.parameters else None,
                )
                for bits, share in ((4, 1.0), (8, 0.5))
            }
    return [
        perturbations(steps, weights, {}, x, batch=batch, task=task, generator=seeded(seed), draws=draws).weights
        for seed in seeds
    ]


def expected_of_weights(model: nn.Module, x: Tensor, task: str, biases: bool) -> dict[str, float]:
    """``1/2 mean (J d)^T A (J d)``, with the whole Jacobian of each input."""
    outputs, moved = model(x).detach(), changes(model)
    found = {}
    quadratic = [curvature(z, task, outputs) for z in outputs]
    for layer in {name.rpartition(".")[0] for name in moved if name.endswith("weight")} - {"norm"}:
        names = [f"{layer}.weight", f"{layer}.bias"]
        names = [name for name in names if name in moved and (biases or name.endswith("weight"))]
        total = 0.0
        for i in range(len(x)):

            def output(parts: dict[str, Tensor], i: int = i) -> Tensor:
                return functional_call(model, parts, (x[i : i + 1],))[0]

            parts = {name: model.get_parameter(name).detach() for name in names}
            jacobian = jacrev(output)(parts)
            step = sum(torch.einsum("z...,...->z", jacobian[name], moved[name]) for name in names)
            total += float(0.5 * (step @ quadratic[i] @ step).detach())
        found[f"{layer}.weight"] = total / len(x)
    return found


@pytest.mark.parametrize(
    ("factory", "task", "biases"),
    [
        *((factory, TASKS[at % 2], True) for at, factory in enumerate(NETWORKS)),
        *((factory, task, False) for factory in (ConvNet, Shared) for task in TASKS),
    ],
)
def test_rounding_a_weight_costs_the_gauss_newton_form_of_its_change(factory, task, biases):
    """Within five standard errors of 16 runs with generators of their own, and half the change costs a quarter."""
    model, (x, _) = build(factory), data(4)
    wanted = expected_of_weights(model, x, task, biases)
    runs = measured(model, x, task, 4, 16, biases, range(16))
    assert {name for name, _ in runs[0]} == set(wanted)
    for name, value in wanted.items():
        found = torch.tensor([run[name, 4] for run in runs]).double()
        assert abs(float(found.mean()) - value) <= 5 * float(found.std()) / 16**0.5 + 1e-5 * value, name
        assert runs[0][name, 8] == pytest.approx(runs[0][name, 4] / 4, rel=1e-4)


@pytest.mark.parametrize("factory", [ConvNet, MeanOfTokens, Windows], ids=lambda factory: factory.__name__)
def test_how_many_inputs_run_at_a_time_changes_nothing_but_the_draws(factory):
    model, (x, _) = build(factory), data(6)
    wanted = expected_of_weights(model, x, "classification", True)
    for batch in (1, 4):
        (run,) = measured(model, x, "classification", batch, 150, True)
        for name, value in wanted.items():
            assert run[name, 4] == pytest.approx(value, rel=0.3), (name, batch)


@tasks
def test_rounding_an_activation_costs_the_gauss_newton_form_of_its_error(task):
    model, (x, _) = build(ConvNet), data(6)
    steps = Steps.of(trace(model, (x[:2],)))
    middle = next(node.name for node in steps.nodes if "max_pool" in node.name)
    with torch.no_grad():
        pooled = F.max_pool2d(F.relu(model.norm(model.conv(x))), 2)
    grids = {
        steps.inputs[0]: {4: activation_grid(x, 4, "signed")},
        middle: {bits: activation_grid(pooled, bits, "unsigned") for bits in (2, 4)},
    }

    def rest(value: Tensor) -> Tensor:
        return model.head(F.relu(model.inner(value) + value).mean((2, 3)))

    def cost(run, values: Tensor, grid: Grid) -> float:
        outputs, total = model(x).detach(), 0.0
        for i in range(len(x)):
            jacobian = jacrev(lambda value: run(value[None])[0])(values[i])
            step = torch.einsum("zchw,chw->z", jacobian, (rounded(values[i], grid) - values[i]).double())
            total += float((0.5 * step @ curvature(outputs[i], task, outputs) @ step).detach())
        return total / len(x)

    runs = [
        perturbations(steps, {}, grids, x, batch=6, task=task, generator=seeded(seed), draws=32).activations
        for seed in range(10)
    ]
    for name, run, values in ((steps.inputs[0], model, x), (middle, rest, pooled)):
        for bits, grid in grids[name].items():
            found = torch.tensor([each[name, bits] for each in runs]).double()
            error = 4 * float(found.std()) / 10**0.5
            assert abs(float(found.mean()) - float(cost(run, values, grid))) <= error + 1e-6
    assert runs[0][middle, 2] > runs[0][middle, 4]


def test_it_is_the_divergence_of_small_changes():
    """``KL(p || p')`` of a linear network is the quadratic form to second order."""
    model = nn.Sequential(nn.Linear(6, 4)).double().eval()
    x = torch.randn(64, 6, generator=seeded(1)).double()
    found = measured(model, x, "classification", 64, 64, True)[0]["0.weight", 8]
    moved = changes(model)
    with torch.no_grad():
        other = F.linear(x, model[0].weight + 0.5 * moved["0.weight"], model[0].bias + 0.5 * moved["0.bias"])
        kl = float(F.kl_div(other.log_softmax(1), model(x).log_softmax(1), log_target=True, reduction="batchmean"))
    assert found == pytest.approx(kl, rel=0.1)


def test_the_same_generator_gives_the_same_costs():
    model, (x, _) = build(ConvNet), data(6)
    one, two = (measured(model, x, "classification", 4, 2, True) for _ in range(2))
    assert one == two


def test_no_change_costs_nothing():
    model, (x, _) = build(ConvNet), data(4)
    steps = Steps.of(trace(model, (x[:2],)))
    same = {"head.weight": {8: (steps.parameters["head.weight"], steps.parameters["head.bias"])}}
    found = perturbations(steps, same, {}, x, batch=4, task="classification", generator=seeded(), draws=2)
    assert found.weights == {("head.weight", 8): 0.0}


def test_inputs_that_are_merged_behind_tokens_are_mixed_up():
    """A limit: (tokens * inputs) can't be told from (inputs * windows) by its size, so only the scale is right."""
    model, (x, _) = build(Flattened), data(6)
    wanted = expected_of_weights(model, x, "classification", True)
    (found,) = measured(model, x, "classification", 6, 64, True)
    for name, value in wanted.items():
        assert 0.2 * value < found[name, 4] < 5 * value
