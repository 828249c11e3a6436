"""Quantization inside a user's own loop: what is trained is what is exported, and the module stays the user's."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import compress
from compress import targets
from compress.errors import BadInput, UnknownName
from compress.export.onnx import serialize
from compress.graph.fold import folded_parameters, put_folded
from compress.graph.qdq import integers, on_grid
from compress.quantize.session import Session
from compress.types import Precision, Rate
from tests.graph.networks import Plain, Residual, build, images
from tests.rosters import some

CLASSES = build(Plain)(images(2)).shape[1]


def any_width() -> compress.Target:
    """This machine, as if it ran every width."""
    device = targets.load("cpu")
    rate = device.macs_per_s[0]
    widths = [Precision(bits, activations, "integer") for bits in (1, 2, 3, 4, 8) for activations in (2, 4, 8)]
    return replace(device, macs_per_s=tuple(Rate(p, rate.macs_per_s, rate.efficiency) for p in widths))


def attach(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **asked) -> Session:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    asked = {"weight_bits": 8, "steps": 10, "warmup": 0.1, "target": any_width()} | asked
    return compress.attach(model, optimizer, **asked)


def train(session: Session, steps: int, first: int = 0) -> None:
    session.model.train()
    for step in range(first, first + steps):
        session.zero_grad()
        x = images(16, 100 + step)
        F.cross_entropy(session.model(x), torch.arange(16) % CLASSES).backward()
        session.step()


def parameters(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@some(
    ("factory", "method", "bits"),
    [(Residual, "uniform", bits) for bits in (1, 2, 3, 4, 8)] + [(Residual, "hessian", 2.5), (Plain, "hessian", 1)],
    quick=[(Residual, "hessian", 2.5)],
)
def test_the_result_computes_what_training_computed_to_the_last_bit(factory, method, bits):
    model = build(factory)
    with attach(model, weight_bits=bits, method=method) as session:
        train(session, 3)
        trained = model.eval()(images(4, 7))
    result = session.result()
    assert torch.equal(result.simulation(images(4, 7)), trained)
    assert type(result.model) is factory
    assert result.report.after.weight_bits <= bits
    for name, grid in result.state.quantization.weights.items():
        assert torch.equal(on_grid(result.model.get_parameter(name), grid), result.model.get_parameter(name))


def test_narrow_activations_too():
    model = build(Residual)
    with attach(model, weight_bits=4, activation_bits=4) as session:
        train(session, 3)
        trained = model.eval()(images(4, 7))
    result = session.result()
    assert {grid.bits for grid in result.state.quantization.activations.values()} == {4}
    assert torch.equal(result.simulation(images(4, 7)), trained)


def test_the_first_quantized_step_starts_at_what_quantize_gives():
    """Widths, integers and grids are those of ``compress.quantize.quantize`` on the same inputs."""
    model, x = build(Residual), images(64)
    wanted = compress.quantize.quantize(model, x, weight_bits=3, target=any_width())
    with attach(model, weight_bits=3, data=x, warmup=0.0) as session:
        found = session.result()
    assert found.plan == wanted.plan
    assert found.state.quantization == wanted.state.quantization
    for name, grid in wanted.state.quantization.weights.items():
        one, two = (integers(each.model.get_parameter(name), grid) for each in (found, wanted))
        assert torch.equal(one, two)


def test_the_module_stays_the_users():
    model = build(Residual)
    keys, held = list(model.state_dict()), [id(parameter) for parameter in model.parameters()]
    before = model.eval()(images(4, 7))
    with attach(model) as session:
        train(session, 3)
        assert list(model.state_dict()) == keys
        quantized = model.eval()(images(4, 7)).detach()
    assert "forward" not in vars(model)
    assert [id(parameter) for parameter in model.parameters()] == held
    after = model.eval()(images(4, 7)).detach()
    assert not torch.equal(after, quantized)
    assert not torch.equal(after, before)
    # 8 bits are near the float network that training found.
    assert float((after - quantized).norm() / after.norm()) < 0.1


def test_leaving_by_an_exception_gives_the_module_back():
    model = build(Plain)

    def failing() -> None:
        with attach(model) as session:
            train(session, 3)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        failing()
    assert "forward" not in vars(model)
    assert not model._forward_pre_hooks


def test_all_parameters_and_scales_train_and_statistics_stay():
    model = build(Residual)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    with attach(model, weight_bits=4, method="uniform") as session:
        train(session, 1)
        start, mean, grids = parameters(model), norm.running_mean.clone(), session.result().state.quantization
        train(session, 3, 1)
    assert torch.equal(norm.running_mean, mean)
    assert all(not torch.equal(a, b) for a, b in zip(start, parameters(model), strict=True))
    after = session.result().state.quantization
    assert all(after.weights[name] != grid for name, grid in grids.weights.items())
    assert all(after.activations[name] != grid for name, grid in grids.activations.items())


def test_the_warm_up_is_the_users_training_and_only_that_is_calibrated_on():
    one, two = build(Plain), build(Plain)
    with attach(one, steps=20, warmup=0.2) as session:
        train(session, 3)
        one.eval()(1e3 * images(8))
        assert session.quantized_layers == 0
        with pytest.raises(BadInput, match="nothing is quantized after 3 steps, the warm-up is 4"):
            session.result()
        warm = parameters(one)
        train(session, 1, 3)
        assert session.quantized_layers > 0
    optimizer = torch.optim.SGD(two.parameters(), lr=0.01, momentum=0.9)
    two.train()
    for step in range(3):
        optimizer.zero_grad()
        F.cross_entropy(two(images(16, 100 + step)), torch.arange(16) % CLASSES).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(warm, parameters(two), strict=True))
    assert max(grid.scale[0] for grid in session.result().state.quantization.activations.values()) < 1


def test_training_wins_back_what_rounding_to_two_bits_lost():
    model = build(Plain)
    x = images(64, 4)
    y = x.mean((2, 3)).argmax(1)
    losses = []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with attach(model, optimizer, weight_bits=2, method="uniform", warmup=0.5, steps=60) as session:
        for _ in range(60):
            session.zero_grad()
            loss = F.cross_entropy(model.train()(x), y)
            losses.append(float(loss.detach()))
            loss.backward()
            session.step()
    last_in_float, first_rounded = losses[29], losses[30]
    final = float(F.cross_entropy(session.result().simulation(x), y))
    assert first_rounded > 2 * last_in_float
    assert final < 0.2 * first_rounded


@pytest.mark.slow
def test_progressive_ends_with_every_layer_quantized():
    model = build(Residual)
    with attach(model, weight_bits=4, method="uniform", steps=12, progressive=True) as session:
        counts = []
        for step in range(12):
            train(session, 1, step)
            counts.append(session.quantized_layers)
        trained = model.eval()(images(4, 7))
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] == len(session.result().state.quantization.weights)
    assert torch.equal(session.result().simulation(images(4, 7)), trained)


@pytest.mark.slow
def test_leaving_a_progressive_run_early_is_reported():
    with attach(build(Residual), weight_bits=4, steps=100, warmup=0.01, progressive=True) as session:
        train(session, 2)
    assert any("not yet quantized in training" in note.why for note in session.result().report.notes)


def fresh() -> tuple[nn.Module, torch.optim.Optimizer, Session]:
    model = build(Residual)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return model, optimizer, attach(model, optimizer, weight_bits=4, method="uniform", warmup=0.2)


@functools.cache
def uninterrupted() -> compress.quantize.Quantized:
    """What five steps without a break give; nobody changes it."""
    _, _, session = fresh()
    with session:
        train(session, 5)
    return session.result()


@some("saved_after", [0, 1, 4], quick=[1])
def test_a_resumed_run_gives_what_an_uninterrupted_one_gives(saved_after):
    model, optimizer, first = fresh()
    with first:
        train(first, saved_after)
        saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), first.state_dict()])
    model, optimizer, second = fresh()
    for each, state in zip((model, optimizer, second), saved, strict=True):
        each.load_state_dict(state)
    with second:
        train(second, 5 - saved_after, saved_after)
    one, two = uninterrupted(), second.result()
    assert one.plan == two.plan
    assert one.state.quantization == two.state.quantization
    assert torch.equal(one.simulation(images(4, 7)), two.simulation(images(4, 7)))


def test_a_copy_of_the_model_computes_with_quantizers_of_its_own():
    """As an exponential average of weights needs."""
    model = build(Residual)
    with attach(model) as session:
        train(session, 2)
        twin = copy.deepcopy(model)
        was = twin.eval()(images(4, 7))
        assert torch.equal(was, model.eval()(images(4, 7)))
        train(session, 2, 2)
        assert torch.equal(twin(images(4, 7)), was)
        assert not torch.equal(model.eval()(images(4, 7)), was)


def test_the_result_is_exported_as_it_is():
    model = build(Residual)
    with attach(model, weight_bits=4, target="cpu") as session:
        train(session, 3)
    result, x = session.result(), images(8, 7)
    ran = onnxruntime.InferenceSession(serialize(result.state, x))
    (found,) = ran.run(None, {ran.get_inputs()[0].name: x.numpy()})
    wanted = result.simulation(x)
    assert float((torch.from_numpy(found) - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_put_into_a_layer_and_its_batch_norm_is_what_folding_gives(affine, bias):
    generator = torch.Generator().manual_seed(0)
    layer, norm = nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, affine=affine)
    norm.running_mean.normal_(generator=generator)
    norm.running_var.uniform_(0.5, 2.0, generator=generator)
    if affine:
        norm.weight.data.copy_(torch.tensor([1.5, -0.5, 0.0, 1e-3]))
    weight, shift = torch.randn(4, 3, 3, 3, generator=generator), torch.randn(4, generator=generator)
    old = layer.weight.detach().clone()
    put_folded(layer, norm, 0, weight, shift)
    found = folded_parameters(layer, norm, 0)
    seen = [0, 1, 3] if affine else [0, 1, 2, 3]
    torch.testing.assert_close(found[0][seen], weight[seen])
    torch.testing.assert_close(found[1], shift)
    if affine:
        assert torch.equal(layer.weight[2], old[2])


@pytest.mark.parametrize(
    ("asked", "error", "sentence"),
    [
        ({"macs": 0.5}, BadInput, r"prunes \(macs=, params=\) or quantizes .* one after the other"),
        ({"steps": None}, BadInput, r"needs steps=, the optimizer steps of the whole run: epochs \* len\(loader\)"),
        ({"weight_bits": 9}, BadInput, "1 to 8 bits"),
        ({"weight_bits": 0}, BadInput, "1 to 8 bits"),
        ({"activation_bits": 4, "target": "cpu"}, BadInput, "no integer kernels with 4-bit activations; it has 8"),
        ({"warmup": 1.0}, BadInput, r"a share of the steps lies in \[0, 1\)"),
        ({"method": "unifrom"}, UnknownName, "uniform"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(asked, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        attach(build(Plain), **asked)
    assert "\n" not in str(caught.value)


def test_neither_pruning_nor_quantizing_is_refused():
    model = build(Plain)
    with pytest.raises(BadInput, match=r"needs macs= or params=.*or weight_bits= or activation_bits="):
        compress.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=5)


def test_an_optimizer_of_another_model_and_a_session_that_is_not_open_are_refused():
    with pytest.raises(BadInput, match="holds none of the model's parameters"):
        attach(build(Plain), torch.optim.SGD(build(Plain).parameters(), lr=0.1))
    with pytest.raises(BadInput, match="the session isn't open"):
        attach(build(Plain)).step()


def test_a_model_that_was_never_called_is_refused():
    model = build(Plain)
    with attach(model) as session, pytest.raises(BadInput, match="give data="):
        session.step()


def test_an_average_that_the_target_cannot_reach_is_refused():
    with pytest.raises(BadInput), attach(build(Plain), weight_bits=1, target="cpu") as session:
        train(session, 2)
