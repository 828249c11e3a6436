"""The default stage: the average is met, bits go where they matter, equal seeds give equal bytes, odd networks work."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress import data as datasets
from compress.errors import BadInput, LimitsUnreachable
from compress.export.onnx import serialize
from compress.graph.costs import layer_operators, size
from compress.graph.qdq import insert, on_grid
from compress.graph.trace import trace
from compress.quantize import quantize
from compress.quantize import study as studying
from compress.quantize.hessian_aware import HessianAware
from compress.types import Precision, State
from tests.graph.convolutional import Transposed
from tests.graph.networks import Attention, Plain, UNet, build, images
from tests.rosters import crossed
from tests.support import context, random_data


class Sensitive(nn.Module):
    """Two equal layers, of which one is heard a thousand times louder at the output."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet = nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :16]
        return self.head(F.relu(self.loud(x)) + 0.001 * F.relu(self.quiet(x)))


class Twice(nn.Module):
    """A weight that two layers share, a layer that runs twice, padding that is given as a word."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding="same")
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(F.relu(self.again(F.relu(self.conv(x)))))
        return self.head(F.relu(self.two(F.relu(self.one(x.mean((2, 3)))))))


class FixedBatch(nn.Module):
    """Its code fixes the batch size at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(48, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.one(x[:, :, ::4, ::4].reshape(1, 48))))


class TinyFilters(nn.Module):
    """Batch norms have switched some channels off: weights of 1e-12, biases of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


@functools.cache
def made(factory, bits: float, seed: int = 0):
    return quantize(build(factory), images(32), weight_bits=bits, method="hessian", seed=seed)


def divergence(factory, state: State, x: Tensor) -> float:
    with torch.no_grad():
        found = insert(trace(state.model, (x[:2],)), state.quantization)(x).log_softmax(1)
        wanted = build(factory)(x).log_softmax(1)
    return float(F.kl_div(found, wanted, log_target=True, reduction="batchmean"))


@crossed(("factory", "bits"), [Plain, Attention], [4.0, 5.3, 8.0])
def test_the_average_is_met_and_what_is_left_would_widen_no_layer(factory, bits):
    result = made(factory, bits)
    network = trace(result.model, (images(2),))
    layers = layer_operators(network)
    widths = {layer.path: result.plan.layer(layer.path).precision.weight_bits for layer in layers}
    total = sum(layer.weights for layer in layers)
    spent = sum(layer.weights * widths[layer.path] for layer in layers)
    assert set(widths.values()) <= {4, 8}
    assert spent <= bits * total
    assert size(network, result.state.quantization.layer_bits).weight_bits == spent / total
    costs = {n.where for n in result.state.notes if "perturbation rises" in n.why}
    for layer in layers:
        if widths[layer.path] == 4 and layer.path not in costs:
            assert spent + 4 * layer.weights > bits * total


def test_an_average_below_the_narrowest_kernel_is_refused_in_one_line():
    with pytest.raises(LimitsUnreachable, match="weight_bits 3") as raised:
        quantize(build(Plain), images(16), weight_bits=3.0, method="hessian")
    assert "\n" not in str(raised.value)


def test_the_layer_that_matters_more_gets_more_bits():
    bits = made(Sensitive, 6.0).plan
    assert bits.layer("loud").precision.weight_bits == 8
    assert bits.layer("quiet").precision.weight_bits == 4


def test_the_same_seed_gives_the_same_plan_and_the_same_bytes():
    one, two = (quantize(build(Plain), images(16), weight_bits=6, method="hessian", seed=3) for _ in range(2))
    assert one.plan.digest() == two.plan.digest()
    assert serialize(one.state, images(2)) == serialize(two.state, images(2))


def test_two_budgets_of_a_job_share_one_study_and_get_what_they_get_alone(monkeypatch):
    model, set_of_images, shared, calls = build(Sensitive), random_data(32, 4), {}, []
    original = studying.study
    monkeypatch.setattr(studying, "study", lambda *args: calls.append(1) or original(*args))

    def states(shared_by: dict) -> list[State]:
        found = []
        for bits in (5.0, 6.5):
            # Each candidate has a generator of its own, and the job's seed.
            setting = context(data=set_of_images, shared=shared_by if shared_by is shared else {})
            found.append(HessianAware(bits)(State(model), setting))
        return found

    together = states(shared)
    assert len(calls) == 1
    apart = states({})
    assert len(calls) == 3
    for a, b in zip(together, apart, strict=True):
        assert a.plan == b.plan
        assert a.quantization == b.quantization
        assert serialize(a, images(2)) == serialize(b, images(2))


def test_another_network_is_studied_anew(monkeypatch):
    shared, calls = {}, []
    original = studying.study
    monkeypatch.setattr(studying, "study", lambda *args: calls.append(1) or original(*args))
    for seed in (0, 1):
        HessianAware(6.0)(State(build(Sensitive, seed)), context(shared=shared))
    assert len(calls) == 2


def test_the_network_that_was_given_is_as_it_was():
    model = build(TinyFilters)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = quantize(model, images(16), weight_bits=5, method="hessian")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert type(result.model) is TinyFilters


@pytest.mark.parametrize("factory", [Plain, Sensitive], ids=lambda factory: factory.__name__)
def test_more_bits_never_cost_more(factory):
    """But for noise: rounding activations costs something at every width."""
    x = images(128, 9)
    costs = [divergence(factory, made(factory, bits).state, x) for bits in (4.0, 5.3, 8.0)]
    assert costs[-1] < 0.5 * costs[0]
    for fewer, more in itertools.pairwise(costs):
        assert more <= 1.1 * fewer + 0.02 * costs[0]


@pytest.mark.parametrize("factory", [Attention, UNet, Transposed, Twice], ids=lambda factory: factory.__name__)
def test_networks_with_layers_that_are_no_products_are_quantized_too(factory):
    result = made(factory, 6.0)
    model, x = build(factory), images(16, 7)
    with torch.no_grad():
        assert float((result.simulation(x) - model(x)).norm() / model(x).norm()) < 0.15
    paths = {layer.path for layer in layer_operators(trace(result.model, (x[:2],)))}
    assert {name.removesuffix(".weight") for name in result.state.quantization.weights} <= paths
    for name, grid in result.state.quantization.weights.items():
        assert torch.equal(on_grid(result.model.get_parameter(name), grid), result.model.get_parameter(name))
    if factory is Twice:
        assert result.model.one.weight is result.model.two.weight


def test_a_network_whose_code_fixes_the_batch_runs_an_input_at_a_time():
    state = HessianAware(6.0)(State(build(FixedBatch)), context(samples=32))
    x = images(1, 7)
    with torch.no_grad():
        found = insert(trace(state.model, (x,)), state.quantization)(x)
        assert float((found - build(FixedBatch)(x)).norm()) < 0.1


@pytest.mark.parametrize("method", ["hessian", "uniform"])
def test_filters_that_are_switched_off_keep_their_bias(method):
    model = build(TinyFilters)
    with torch.no_grad():
        model.conv.weight[:4] *= 1e-12
        model.conv.bias[:4] = 1.0
        model.conv.weight[4] = 0
    result = quantize(model, images(64), weight_bits=8, method=method)
    with torch.no_grad():
        assert float((result.simulation(images(8, 7)) - model(images(8, 7))).norm() / model(images(8, 7)).norm()) < 0.05


BAD = {
    "NaN": torch.full((16, 3, 16, 16), float("nan")),
    "infinity": torch.full((16, 3, 16, 16), float("inf")),
    "all inputs alike": torch.full((16, 3, 16, 16), 0.5),
}


@pytest.mark.parametrize("name", BAD)
def test_inputs_that_show_nothing_are_refused_in_one_line(name):
    with pytest.raises(BadInput) as raised:
        quantize(build(Plain), BAD[name], weight_bits=6, method="hessian")
    assert "\n" not in str(raised.value)


def test_weights_that_are_not_numbers_are_refused_in_one_line():
    model = build(Plain)
    with torch.no_grad():
        model.linear2.weight[0, 0] = float("nan")
    with pytest.raises(BadInput) as raised:
        quantize(model, images(16), weight_bits=6, method="hessian")
    assert "\n" not in str(raised.value)


def test_a_float64_network_is_refused_in_one_line():
    with pytest.raises(BadInput, match="float") as raised:
        quantize(build(Plain).double(), images(16).double(), weight_bits=6, method="hessian")
    assert "\n" not in str(raised.value)


def test_the_seed_reaches_what_is_drawn(monkeypatch):
    seeds = []
    original = studying.study
    monkeypatch.setattr(
        studying,
        "study",
        lambda state, context, *more: seeds.append(context.seed) or original(state, context, *more),
    )
    quantize(build(Sensitive), images(16), weight_bits=6, method="hessian", seed=5)
    assert seeds == [5]


def test_reconstruction_is_measured_by_squared_error():
    labels = images(32, 5)
    dataset = datasets.from_python((images(32), labels), divisible=False)
    setting = context(data=dataset)
    state = HessianAware(6.0)(State(build(UNet)), setting)
    assert {layer.precision for layer in state.plan.layers} <= {Precision(b, 8, "integer") for b in (4, 8)}
