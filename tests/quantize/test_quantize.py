"""Laws of quantization over the rosters of methods and networks; ranges against an exhaustive search."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from compress import data, models
from compress.errors import BadInput, UnknownName
from compress.export.onnx import serialize
from compress.graph import costs
from compress.graph.qdq import insert, integers, on_grid
from compress.graph.trace import trace
from compress.quantize import quantize
from compress.quantize.mixed import LayerError, allocate, layer_errors
from compress.quantize.placement import place
from compress.quantize.quantizers import with_quantizers
from compress.quantize.ranges import activation_grid, weight_grid
from compress.quantize.roster import METHODS
from compress.quantize.training import QuantizationAware
from compress.quantize.uniform import Uniform
from compress.serial import from_json, to_json
from compress.types import Budget, Grid, LayerPlan, Plan, Precision, State
from tests.graph.networks import ROSTER, Attention, Plain, Residual, build, images
from tests.graph.traced import traced
from tests.rosters import crossed, some
from tests.support import context, quantized

methods_and_networks = crossed(("method", "factory"), METHODS, ROSTER)
networks = pytest.mark.parametrize("factory", ROSTER, ids=lambda factory: factory.__name__)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@networks
def test_32_bits_are_the_identity(factory):
    model, x = build(factory), images(6)
    result = quantize(model, x, weight_bits=32)
    assert torch.equal(result.simulation(x), model(x))
    assert torch.equal(result.model(x), model(x))
    assert result.model is not model
    assert result.report.after == result.report.before
    assert result.plan == Plan()


@some("factory", ROSTER, quick=(Plain, Attention))
def test_32_bits_give_the_file_of_the_float_network(factory):
    model, x = build(factory), images(6)
    assert serialize(quantize(model, x, weight_bits=32).state, x[:2]) == serialize(State(model), x[:2])


def test_32_bit_weights_take_no_integer_inputs():
    with pytest.raises(BadInput, match="no kernel reads integers with float weights"):
        quantize(build(Plain), images(6), weight_bits=32, activation_bits=8)
    with pytest.raises(BadInput, match="32 leave the network in float"):
        quantize(build(Plain), images(6), weight_bits=32, budget=Budget(flash_bytes=10**6))


@methods_and_networks
def test_the_simulation_is_near_the_float_network(method, factory):
    model = build(factory)
    result = quantized(factory, 8, method)
    assert relative(result.simulation(images(16, 7)), model(images(16, 7))) < 0.05
    assert type(result.model) is factory


@methods_and_networks
def test_more_bits_come_nearer(method, factory):
    model, x = build(factory), images(16, 7)
    errors = [relative(quantized(factory, bits, method).simulation(x), model(x)) for bits in (8, 4)]
    assert errors[0] < errors[1]


@methods_and_networks
def test_weights_lie_on_their_grid_within_range(method, factory):
    result = quantized(factory, 4 if method == "uniform" else 5, method)
    assert result.state.quantization.weights
    for name, grid in result.state.quantization.weights.items():
        weight = result.model.get_parameter(name)
        whole = integers(weight, grid)
        assert int(whole.min()) >= grid.low
        assert int(whole.max()) <= grid.high
        assert torch.equal(on_grid(weight, grid), weight)


@methods_and_networks
def test_the_plan_round_trips_and_is_equal_for_the_same_seed(method, factory):
    one, two = quantized(factory, 8, method), quantize(build(factory), images(64), weight_bits=8, method=method)
    assert one.plan == from_json(Plan, to_json(two.plan))
    assert one.state.quantization == two.state.quantization


@networks
def test_an_average_is_met_and_nearly_spent(factory):
    result = quantize(build(factory), images(64), weight_bits=6.0, method="layer-error")
    layers = costs.layer_operators(traced(factory)[1])
    total, smallest = sum(layer.weights for layer in layers), min(layer.weights for layer in layers)
    average = result.report.after.weight_bits
    assert average <= 6.0
    eight = {layer.name for layer in result.plan.layers if layer.precision.weight_bits == 8}
    if len(eight) < len(layers):
        # The narrow layer with the fewest weights doesn't fit at 8 bits any more.
        narrow = min(layer.weights for layer in layers if layer.path not in eight)
        assert average + 4 * narrow / total > 6.0
    assert smallest > 0


def test_greedy_allocation_is_near_the_best_of_all_on_a_small_network():
    network = trace(build(Plain), (images(2),))
    layers = costs.layer_operators(network)
    errors = layer_errors(network, images(32), (4, 8))
    total = sum(layer.weights for layer in layers)
    chosen = allocate(layers, errors, (4, 8), 5.0)
    best = min(
        sum(errors[layer.path, width] for layer, width in zip(layers, widths, strict=True))
        for widths in itertools.product((4, 8), repeat=len(layers))
        if sum(layer.weights * width for layer, width in zip(layers, widths, strict=True)) <= 5.0 * total
    )
    assert sum(errors[path, width] for path, width in chosen.items()) <= 1.5 * best


def test_a_layers_error_is_that_of_its_output():
    model = build(Plain)
    x = images(8)
    errors = layer_errors(trace(model, (x,)), x, (4,))
    grid = weight_grid(model.conv1.weight, 4, 0)
    exact = model.conv1(x)
    rounded = torch.nn.functional.conv2d(x, on_grid(model.conv1.weight, grid), model.conv1.bias, padding=1)
    assert errors["conv1", 4] == pytest.approx(float((rounded - exact).square().sum() / exact.square().sum()), rel=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_scales_are_near_the_best_of_a_fine_search(bits):
    weight = torch.randn(6, 400, generator=torch.Generator().manual_seed(0)).double()
    grid = weight_grid(weight.float(), bits, 0)
    high = 2 ** (bits - 1) - 1
    for row, scale in zip(weight, grid.scale, strict=True):
        trials = torch.linspace(0.05, 1.0, 4000, dtype=torch.float64) * row.abs().max() / high
        errors = ((row / trials[:, None]).round().clamp(-high, high) * trials[:, None] - row).square().sum(1)
        found = float(((row / scale).round().clamp(-high, high) * scale - row).square().sum())
        assert found <= 1.2 * float(errors.min())


def test_a_relus_output_uses_every_unsigned_integer():
    grid = activation_grid(torch.rand(5000, generator=torch.Generator().manual_seed(0)), 8, "unsigned")
    assert (grid.zero_point, grid.low, grid.high) == (0, 0, 255)
    assert grid.scale[0] == pytest.approx(1 / 255, rel=0.03)


def test_signed_activations_are_symmetric():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    grid = activation_grid(values, 8, "signed")
    assert grid.zero_point == 0
    assert grid.signed


@pytest.mark.parametrize("power", [1, 3])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signedness", ["signed", "unsigned"])
def test_of_all_shrunken_ranges_the_one_of_least_squared_error_is_taken(bits, signedness, power):
    """Each value rounded by itself; of a tensor that isn't negative both kinds of grid have 0 for zero point."""
    values = torch.randn(4000, generator=torch.Generator().manual_seed(bits)) ** power
    values = values if signedness == "signed" else values.abs()
    highest = 2 ** (bits - 1) - 1 if signedness == "signed" else 2**bits - 1
    lowest = -highest - 1 if signedness == "signed" else 0
    scales = [float(values.abs().max()) * float(f) / highest for f in torch.linspace(1.0, 0.2, 41)]

    def error(scale: float) -> float:
        return float(((values / scale).round().clamp(lowest, highest).double() * scale - values).square().sum())

    assert activation_grid(values, bits, signedness).scale[0] == pytest.approx(min(scales, key=error), rel=1e-6)


def rarely(scale: float, seed: int = 0) -> torch.Tensor:
    """One value in a hundred isn't 0: an exponential tail."""
    generator = torch.Generator().manual_seed(seed)
    size = scale * torch.empty(30_000).exponential_(generator=generator)
    return torch.where(torch.rand(30_000, generator=generator) < 0.01, size, 0.0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
@pytest.mark.slow
def test_what_is_nearly_always_zero_keeps_room_for_peaks_that_no_sample_had(scale):
    """The range is, of 31 up to four times the sample's, the one of least rounding error and expected loss of the tail
    beyond it together, the latter by numerical integration of the tail's density."""
    values = rarely(scale)
    top, positive = float(values.max()), values[values > 0].double()
    count = math.isqrt(len(positive))
    largest = positive.sort(descending=True).values
    mean = float((largest[:count] - largest[count]).mean())
    sigma = 0.75 * mean
    excess = torch.linspace(0, 4000 * mean, 4_000_001, dtype=torch.float64)
    density = (1 + excess / (4 * sigma)) ** -5 / sigma

    def loss(end: float) -> float:
        step = end / 255
        rounding = float(((positive / step).round().clamp(0, 255) * step - positive).square().sum())
        return rounding + float(torch.trapezoid(density * (excess - (end - top)).clamp_min(0).square(), excess))

    best = min((top * float(f) for f in torch.linspace(1, 4, 31)), key=loss)
    grid = activation_grid(values, 8, "unsigned")
    assert grid.scale[0] * 255 > top
    assert loss(grid.scale[0] * 255) <= 1.0001 * loss(best)
    dense = values + scale * 0.01 * torch.rand(len(values), generator=torch.Generator().manual_seed(1))
    assert activation_grid(dense, 8, "unsigned").scale[0] * 255 <= float(dense.max()) * (1 + 1e-6)


@pytest.mark.parametrize("few", [[0.5], [0.1, 0.7, 0.4]])
def test_a_few_values_are_taken_for_the_first_of_more(few):
    """Their mean is that of the tail, and the largest is no end."""
    values = torch.zeros(10_000)
    values[: len(few)] = torch.tensor(few)
    assert activation_grid(values, 8, "unsigned").scale[0] * 255 > 1.5 * max(few)


def test_both_ends_of_a_tensor_that_is_nearly_always_zero_have_their_own_room():
    values = torch.cat([rarely(1.0), -rarely(0.1, 1)])
    grid = activation_grid(values, 8, "unsigned")
    below, above = (grid.scale[0] * abs(end - grid.zero_point) for end in (grid.low, grid.high))
    assert above > float(values.max())
    assert below < 0.5 * above


def test_zero_is_always_on_the_grid_and_a_dead_tensor_has_one():
    grid = activation_grid(torch.linspace(3.0, 5.0, 100), 8, "unsigned")
    assert grid.low <= grid.zero_point <= grid.high
    assert activation_grid(torch.zeros(10), 8, "unsigned").scale == (1.0,)


def test_both_ends_of_integer_layers_and_additions_get_a_grid():
    model = quantized(Residual).model
    network = trace(model, (images(2),))
    plan = Plan(
        tuple(LayerPlan(layer.path, None, Precision(8, 8, "integer")) for layer in costs.layer_operators(network))
    )
    placement = place(network, plan)
    grids = {*placement.tensors, *placement.carried}
    outputs = {node.name for node in network.outputs()}
    for node in network.nodes:
        name = node.target._schema.name.split("::")[1] if hasattr(node.target, "_schema") else ""
        if name in ("conv2d", "linear", "add"):
            assert {arg.name for arg in node.all_input_nodes if network.parameter(arg) is None} <= grids
            behind = node if not any("relu" in user.name for user in node.users) else next(iter(node.users))
            assert behind.name in grids or behind.name in outputs


def test_the_networks_output_stays_in_float():
    result = quantized(Plain)
    output = next(iter(trace(result.model, (images(2),)).outputs())).name
    assert output not in result.state.quantization.activations


def test_a_float_layer_in_the_plan_keeps_its_weights():
    stage, model = Uniform(), build(Plain)
    state = stage(State(model), context())
    network = trace(state.model, (images(2),))
    plan = state.plan.updated(LayerPlan("conv2", None, Precision()))
    assert "conv2.weight" not in place(network, plan).weights
    assert "conv1.weight" in place(network, plan).weights


@crossed(("target", "factory"), ["cpu", "jetson", "cortex-m7"], ROSTER)
def test_activations_are_signed_where_the_target_wants_it(target, factory):
    state = Uniform()(State(build(factory)), context(target))
    signed = context(target).target.activations == "signed"
    assert all(grid.signed == signed for grid in state.quantization.activations.values())
    assert all(grid.zero_point == 0 for grid in state.quantization.activations.values() if signed)


@pytest.mark.slow
def test_training_with_quantizers_comes_nearer_to_the_teacher_and_stays_on_the_grid():
    loaded = models.load("resnet")
    digits = data.load("digits", mean=loaded.mean, std=loaded.std)
    setting = context(teacher=loaded.model, data=digits)
    start = Uniform(4, 8)(State(loaded.model), setting)
    trained = QuantizationAware(epochs=1)(start, setting)
    x = digits.train.inputs(256, torch.Generator().manual_seed(0))

    def distance(state: State) -> float:
        with torch.no_grad():
            student = insert(trace(state.model, (x[:2],)), state.quantization)(x)
            return float(
                torch.nn.functional.kl_div(student.log_softmax(1), loaded.model(x).softmax(1), reduction="batchmean")
            )

    assert distance(trained) < 0.7 * distance(start)
    for name, grid in trained.quantization.weights.items():
        assert torch.equal(on_grid(trained.model.get_parameter(name), grid), trained.model.get_parameter(name))


def test_brevitas_starts_where_calibration_ended():
    for factory in (Residual, Attention):
        state = Uniform()(State(build(factory)), context())
        network = trace(state.model, (images(2),))
        # Weights on the grid stay there; activations may differ where a value lies within an ulp of a tie.
        torch.testing.assert_close(
            with_quantizers(network, state.quantization).eval()(images()),
            insert(network, state.quantization)(images()),
            rtol=0.02,
            atol=0.02,
        )


def test_zero_epochs_and_a_float_state_come_back_as_they_are():
    state = State(build(Plain))
    assert QuantizationAware(3)(state, context()) is state
    quantized = Uniform()(state, context())
    assert QuantizationAware(0)(quantized, context()) is quantized


def test_bits_that_the_target_cannot_run_are_refused_with_those_it_can():
    with pytest.raises(BadInput, match=r"no kernel for W5A8; it runs .*W8A8"):
        quantize(build(Plain), images(64), weight_bits=5, method="uniform")
    with pytest.raises(BadInput, match="out of reach"):
        LayerError(3.0)(State(build(Plain)), context())
    with pytest.raises(UnknownName, match="uniform"):
        quantize(build(Plain), images(64), method="unifrom")
    with pytest.raises(BadInput, match="1 to 8 bits"):
        quantize(build(Plain), images(64), weight_bits=16)


def test_data_that_overflows_is_refused():
    with pytest.raises(BadInput):
        quantize(build(Plain), torch.full((8, 3, 16, 16), float("nan")))


def test_a_grids_ends():
    assert (
        Grid((1.0,), 0, 4, True, 0, narrow=True).low,
        Grid((1.0,), 0, 4, True).low,
        Grid((1.0,), 0, 4, True).high,
    ) == (-7, -8, 7)
    assert (Grid((1.0,), 3, 8, False).low, Grid((1.0,), 3, 8, False).high) == (0, 255)
