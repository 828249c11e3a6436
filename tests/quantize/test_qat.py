"""Quantization-aware training: the network in training is, bit for bit, the one that is exported."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from brevitas.core.function_wrapper import Identity
from brevitas.core.quant import IntQuant
from torch import nn

from compress import lessons
from compress.graph.qdq import insert, integers, on_grid
from compress.graph.trace import trace
from compress.quantize.progressive import groups, quantized_groups, squared_error
from compress.quantize.quantizers import Quantizer, learned, with_quantizers
from compress.quantize.ranges import activation_grid, rounded_, weight_grid
from compress.quantize.rounding import weight_levels
from compress.quantize.training import QuantizationAware, trained
from compress.quantize.uniform import Uniform
from compress.training import unexplained
from compress.types import Context, Grid, Quantization, State
from tests.graph.networks import ROSTER, Attention, Depthwise, Plain, Residual, build, images
from tests.rosters import crossed, some
from tests.support import context

WIDTHS = (1, 2, 3, 4, 8)
networks = pytest.mark.parametrize("factory", ROSTER, ids=lambda factory: factory.__name__)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- one quantizer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_weights_quantizer_equals_the_exported_grid_to_the_last_bit(bits):
    weight = normal(6, 40)
    weight[0, :4] = torch.tensor([0.0, 1e3, -1e3, -0.0])
    quantizer = Quantizer(weight_grid(weight, bits, 0), 2)
    assert torch.equal(quantizer(weight), on_grid(weight, quantizer.grid))
    assert quantizer.learned() == quantizer.grid
    # Wherever training takes the scales, too.
    for parameter in quantizer.parameters():
        parameter.data += 0.3 * normal(*parameter.shape, seed=1)
    moved = quantizer.learned()
    assert moved.scale != quantizer.grid.scale
    assert torch.equal(quantizer(weight), on_grid(weight, moved))
    assert torch.equal(integers(quantizer(weight).detach(), moved), integers(weight, moved))


@pytest.mark.parametrize("signedness", ["signed", "unsigned"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_an_activations_quantizer_equals_the_exported_pair_to_the_last_bit(bits, signedness):
    values = normal(5000)
    grid = activation_grid(values, bits, signedness)
    # Half-way values are where the zero point could send rounding the other way.
    halves = (torch.arange(-300, 300) + 0.5) * torch.tensor(grid.scale[0])
    for zero_point in (grid.zero_point, grid.zero_point + int(not grid.signed)):
        given = replace(grid, zero_point=zero_point)
        x = torch.cat([values, halves])
        wanted = torch.ops.compress.quantize_dequantize(x, grid.scale[0], zero_point, bits, grid.signed)
        assert torch.equal(Quantizer(given, 0)(x), wanted)


@pytest.mark.parametrize("bits", WIDTHS)
def test_gradients_pass_straight_through_to_weights(bits):
    weight = normal(3, 20).requires_grad_(True)
    upstream = normal(3, 20, seed=1)
    Quantizer(weight_grid(weight, bits, 0), 2)(weight).backward(upstream)
    torch.testing.assert_close(weight.grad, upstream)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_weight_scales_gradient_is_that_of_learned_step_size_quantization(bits):
    """Equation 3 of Esser et al.: round(w/s) - w/s within the grid, its end outside; times s ln 2 for the logarithm."""
    weight, upstream = 3 * normal(3, 40), normal(3, 40, seed=1)
    quantizer = Quantizer(weight_grid(normal(3, 40), bits, 0), 2)
    quantizer(weight).backward(upstream)
    grid, scale = quantizer.grid, torch.tensor(quantizer.grid.scale)
    steps = weight / scale[:, None]
    slope = torch.where(
        steps <= grid.low, float(grid.low), torch.where(steps >= grid.high, float(grid.high), steps.round() - steps)
    )
    assert (steps > grid.high).any()
    wanted = (upstream * slope).sum(1) * scale * torch.log(torch.tensor(2.0))
    torch.testing.assert_close(next(quantizer.parameters()).grad, wanted, rtol=1e-4, atol=1e-5)


def test_clipped_activations_have_no_gradient():
    x = torch.tensor([-3.0, 0.4, 0.6, 9.0], requires_grad=True)
    Quantizer(Grid((0.1,), 3, 4, False), 0)(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 1.0, 1.0, 0.0]))


def int_quant(grid: Grid) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """brevitas's own, of a scale and values, with the zero point in the ends."""
    low, high = grid.low - grid.zero_point, grid.high - grid.zero_point

    class Clamp(nn.Module):
        def forward(self, x: torch.Tensor, min_val: torch.Tensor, max_val: torch.Tensor) -> torch.Tensor:
            return x.clamp(low, high)

    rounding = IntQuant(grid.narrow, grid.signed, Identity(), tensor_clamp_impl=Clamp())
    zero, bits = torch.tensor(0.0), torch.tensor(float(grid.bits))
    return lambda scale, x: rounding(scale, zero, bits, x)


def as_brevitas(quantizer: Quantizer, x: torch.Tensor, upstream: torch.Tensor) -> None:
    """Its values are those of brevitas to the last bit, its gradients to rounding."""
    reference, found = int_quant(quantizer.grid), []
    for run in (quantizer, lambda x: reference(quantizer._shaped(x), x)):
        given = x.clone().requires_grad_(True)
        quantizer.zero_grad()
        made = run(given)
        made.backward(upstream)
        found.append((made.detach(), given.grad, next(quantizer.parameters()).grad.clone()))
    (made, gradient, of_scale), (wanted, wanted_gradient, wanted_of_scale) = found
    assert torch.equal(made, wanted)
    torch.testing.assert_close(gradient, wanted_gradient)
    torch.testing.assert_close(of_scale, wanted_of_scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_inside_their_grid_have_the_values_and_gradients_of_brevitas(bits, axis):
    weight = normal(6, 4, 3, 3)
    quantizer = Quantizer(weight_grid(weight, bits, axis), 4)
    scale = quantizer.scale().detach().view(quantizer.view)
    inside = weight.clamp(quantizer.grid.low * scale, quantizer.grid.high * scale) == weight
    assert inside.any()
    as_brevitas(quantizer, weight.where(inside, torch.zeros(())), normal(6, 4, 3, 3, seed=1))


@pytest.mark.parametrize("grid", [Grid((0.3,), 0, 4, True), Grid((0.25,), 5, 4, False), Grid((0.01,), 128, 8, False)])
def test_activations_have_the_values_and_gradients_of_brevitas(grid):
    x = torch.cat([3 * normal(1900), (torch.arange(-50, 50) + 0.5) * grid.scale[0]])
    as_brevitas(Quantizer(grid, 0), x, normal(2000, seed=1))


def test_a_binary_scales_gradient_is_that_of_sign_times_scale():
    weight, upstream = normal(3, 20), normal(3, 20, seed=1)
    quantizer = Quantizer(weight_grid(weight, 1, 0), 2)
    quantizer(weight).backward(upstream)
    scale = torch.tensor(quantizer.grid.scale)
    wanted = (upstream * weight.sign()).sum(1) * scale * torch.log(torch.tensor(2.0))
    torch.testing.assert_close(next(quantizer.parameters()).grad, wanted)


def test_binary_weights_have_the_scale_of_least_squared_error():
    weight = normal(4, 200)
    grid = weight_grid(weight, 1, 0)
    assert (grid.low, grid.high) == (-1, 1)
    for row, scale in zip(weight, grid.scale, strict=True):
        trials = torch.linspace(0.1, 2.0, 2000)
        errors = (row - trials[:, None] * row.sign()).square().sum(1)
        assert (row - scale * row.sign()).square().sum() <= errors.min() * (1 + 1e-6)
    assert on_grid(torch.zeros(1, 5), weight_grid(torch.zeros(1, 5), 1, 0)).abs().max() < 1e-20


# --- a whole network --------------------------------------------------------------------------------------------------


@functools.cache
def calibrated(factory: type[nn.Module]) -> State:
    return Uniform()(State(build(factory)), context())


def narrow(factory: type[nn.Module], bits: int | None = None, activation_bits: int = 8) -> State:
    """A calibrated state of any width, or of every width in turn, whether or not a device runs it."""
    state = calibrated(factory)
    weights = {}
    for (name, grid), width in zip(state.quantization.weights.items(), itertools.cycle(WIDTHS), strict=False):
        scale = weight_grid(state.model.get_parameter(name), bits or width, grid.axis).scale
        weights[name] = weight_levels(bits or width, scale, grid.axis)
    activations = {
        name: activation_grid(4 * normal(2000), activation_bits, "unsigned") if activation_bits < 8 else grid
        for name, grid in state.quantization.activations.items()
    }
    model = copy.deepcopy(state.model)
    rounded_(model, weights)
    return replace(
        state, model=model, quantization=replace(state.quantization, weights=weights, activations=activations)
    )


def simulated(state: State, x: torch.Tensor) -> torch.Tensor:
    return insert(trace(state.model, (x[:2],)), state.quantization)(x)


def student_of(state: State) -> nn.Module:
    return with_quantizers(trace(state.model, (images(2),)), state.quantization).eval()


@some("factory", ROSTER, quick=[Plain, Residual, Depthwise, Attention])
def test_training_starts_and_ends_with_what_is_exported(factory):
    """The network in training equals the simulation bit for bit: biases, weights and activations."""
    state, x = narrow(factory), images(4, 7)
    network = trace(state.model, (x[:2],))
    student = with_quantizers(network, state.quantization).eval()
    assert torch.equal(student(x), insert(network, state.quantization)(x))
    # Wherever training takes it.
    for number, parameter in enumerate(student.parameters()):
        parameter.data += 0.05 * normal(*parameter.shape, seed=number)
    after = trained(state, student, state.quantization)
    assert all(grid != state.quantization.weights[name] for name, grid in after.quantization.weights.items())
    assert torch.equal(student(x), simulated(after, x))


@crossed(("factory", "activation_bits"), [Plain, Residual, Attention], [4, 2])
def test_narrow_activations_too(factory, activation_bits):
    state, x = narrow(factory, 4, activation_bits), images(4, 7)
    network = trace(state.model, (x[:2],))
    student = with_quantizers(network, state.quantization).eval()
    assert torch.equal(student(x), insert(network, state.quantization)(x))


def test_the_stage_gives_the_same_for_the_same_seed():
    state = narrow(Plain, 2)
    one, two = (QuantizationAware(1)(state, context(teacher=build(Plain))) for _ in range(2))
    assert one.quantization == two.quantization != state.quantization
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, two.model.get_parameter(name))


def missed_by(state: State, setting: Context) -> float:
    x, wanted = lessons.compared(setting, setting.teacher)
    return unexplained(insert(trace(state.model, (x[:2],)), state.quantization), wanted, x)


def test_a_network_that_misses_no_more_than_enough_is_left_as_it_is_and_says_so():
    state, setting = narrow(Plain, 8), context(teacher=build(Plain))
    missed = missed_by(state, setting)
    assert 0 < missed < 0.01
    left = QuantizationAware(1, enough=missed)(state, setting)
    assert left.model is state.model
    assert left.quantization == state.quantization
    (note,) = left.notes
    assert note.what == QuantizationAware.label
    assert f"misses {missed:.2%} of its teacher's output" in note.why


@pytest.mark.parametrize("taught", [True, False], ids=["more missed", "no teacher"])
def test_any_other_is_trained_as_without_that_rule(taught):
    state, setting = narrow(Plain, 8), context(teacher=build(Plain))
    enough = 0.999 * missed_by(state, setting) if taught else 1.0
    one, two = (
        QuantizationAware(1, enough=each)(state, context(teacher=setting.teacher if taught else None))
        for each in (enough, 0.0)
    )
    assert one.quantization == two.quantization != state.quantization
    assert one.notes == two.notes == state.notes
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, two.model.get_parameter(name))


# --- one block after the other ----------------------------------------------------------------------------------------


def test_the_first_block_is_quantized_from_the_start_and_all_after_half():
    assert [quantized_groups(step, 20, 5) for step in (0, 1, 2, 3, 4, 5, 10, 19)] == [1, 1, 1, 2, 2, 3, 5, 5]
    assert quantized_groups(0, 20, 1) == 1
    assert quantized_groups(0, 20, 0) == 0


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_expected_error_is_that_of_weights_that_fill_the_grid(bits):
    grid = weight_levels(bits, (0.5,), 0)
    spread = (
        torch.rand(1, 100_000, generator=torch.Generator().manual_seed(0)) * (grid.high - grid.low) + grid.low
    ) / 2
    error = float((on_grid(spread, grid) - spread).square().sum())
    assert squared_error(grid, 100_000) == pytest.approx(error, rel=0.02)


@networks
def test_the_blocks_hold_every_weight_once(factory):
    state = narrow(factory, 4)
    network = trace(state.model, (images(2),))
    order = groups(
        state.model, network, state.quantization, images(8), torch.Generator().manual_seed(0), lambda message: None
    )
    assert sorted(name for names in order for name in names) == sorted(state.quantization.weights)


def test_the_block_that_suffers_most_comes_first():
    """Coarser grids on one layer bring its block to the front."""
    state = narrow(Residual, 8)
    network = trace(state.model, (images(2),))

    def first(quantization: Quantization) -> tuple[str, ...]:
        generator = torch.Generator().manual_seed(0)
        return groups(state.model, network, quantization, images(8), generator, lambda message: None)[0]

    for name, grid in state.quantization.weights.items():
        coarse = replace(grid, scale=tuple(1e4 * scale for scale in grid.scale))
        weights = {**state.quantization.weights, name: coarse}
        assert name in first(replace(state.quantization, weights=weights))


def test_progressive_training_ends_with_everything_quantized():
    state, x = narrow(Residual, 2), images(4, 7)
    setting = context(teacher=build(Residual))
    after = QuantizationAware(2, progressive=True)(state, setting)
    assert after.quantization != QuantizationAware(2)(state, setting).quantization
    for name, grid in after.quantization.weights.items():
        assert torch.equal(on_grid(after.model.get_parameter(name), grid), after.model.get_parameter(name))
    assert torch.equal(student_of(after)(x), simulated(after, x))


def test_weights_that_are_not_reached_pass_as_they_are():
    state = narrow(Plain, 2)
    student = student_of(state)
    for module in student.modules():
        if isinstance(module, Quantizer) and module.grid.axis is not None:
            module.active = False
    moved = {name: parameter + 0.01 for name, parameter in student.named_parameters() if "quantizers" not in name}
    x = images(4, 7)
    assert not torch.equal(torch.func.functional_call(student, moved, (x,)), student(x))
    assert learned(student, state.quantization) == state.quantization
