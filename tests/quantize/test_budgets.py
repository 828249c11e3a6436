"""Limits in a user's words: RAM, file, seconds, bit operations, held against what the rest of the project counts."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress import targets
from compress.building import build as builds
from compress.errors import BadInput, LimitsUnreachable
from compress.export.onnx import serialize
from compress.export.onnxruntime import weight_storage
from compress.graph.costs import layer_operators
from compress.graph.trace import kind, trace
from compress.job import Job, assess
from compress.quantize import budgets, quantize, roster
from compress.quantize.choices import Limits, stored_bits
from compress.quantize.hessian_aware import HessianAware
from compress.quantize.placement import JOINS
from compress.quantize.study import study
from compress.types import Budget, Plan, Precision, State, Target
from tests.graph.networks import Dense, Plain, Residual, UNet, build, images
from tests.rosters import crossed
from tests.support import context, random_data


class Wide(nn.Module):
    """Three layers whose weights take more than a file's own structure."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 96, 3), nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.two(F.relu(self.one(x)))).mean((2, 3)))


PRECISIONS = ((8, 8), (4, 8), (4, 4), (2, 4))
NETWORKS = (Residual, UNet, Dense)
networks = pytest.mark.parametrize("factory", NETWORKS, ids=lambda f: f.__name__)


@functools.cache
def device(*, weights_in_ram: bool = True) -> Target:
    """The machine's processor with kernels for 8- and 4-bit activations, the narrower the faster."""
    cpu = targets.load("cpu")
    rate = next(rate for rate in cpu.macs_per_s if rate.precision == Precision(8, 8, "integer"))
    rates = [
        replace(rate, precision=Precision(w, a, "integer"), macs_per_s=rate.macs_per_s * 64 / (w * a))
        for w, a in PRECISIONS
    ]
    return replace(cpu, macs_per_s=tuple(rates), weights_in_ram=weights_in_ram, launch_overhead_s=0.0)


@functools.cache
def studied(factory) -> tuple[nn.Module, dict[Any, Any]]:
    """A network, and what stages on it share: it is studied once, as in a job."""
    return build(factory), {}


@functools.cache
def plain(factory) -> State:
    """Quantized without limits."""
    return limited(factory, bits=8.0)


def ram(state: State, target: Target) -> int:
    return assess(state, target, images(2)).peak.bytes


def seconds(state: State) -> float:
    return assess(state, device(), images(2)).estimate(0).latency_s


def operations(state: State) -> int:
    layers = layer_operators(trace(state.model, (images(2),)))
    precisions = {layer.name: layer.precision for layer in state.plan.layers}
    return sum(o.macs * precisions[o.path].weight_bits * precisions[o.path].activation_bits for o in layers)


def limited(factory, target: Target | None = None, bits: float = 8.0, **limits) -> State:
    """What ``quantize`` does of it, but that the study is shared."""
    model, shared = studied(factory)
    setting = context(data=random_data(24), shared=shared)
    return HessianAware(bits, 8)(State(model), replace(setting, target=target or device(), budget=Budget(**limits)))


def least(factory, name: str, target: Target | None = None) -> float:
    """What the refusal of an impossible limit names."""
    with pytest.raises(LimitsUnreachable) as raised:
        limited(factory, target, **{name: 1e-12 if name == "latency_s" else 1})
    assert "\n" not in str(raised.value)
    assert set(raised.value.least) == {name, "weight_bits"}
    assert f"least possible {raised.value.least[name]:.10g}" in str(raised.value)
    return raised.value.least[name]


@crossed(("weights_in_ram", "factory"), [True, False], NETWORKS)
def test_ram_is_what_the_memory_model_counts_and_is_met(factory, weights_in_ram):
    target = device(weights_in_ram=weights_in_ram)
    top, bottom = ram(plain(factory), target), least(factory, "ram_bytes", target)
    assert bottom < top
    assert ram(limited(factory, target, ram_bytes=int(bottom)), target) == bottom
    between = (top + int(bottom)) // 2
    assert ram(limited(factory, target, ram_bytes=between), target) <= between


@networks
def test_bit_operations_are_met_and_the_least_possible_is_named(factory):
    state = limited(factory, bit_operations=int(least(factory, "bit_operations")))
    layers = layer_operators(trace(state.model, (images(2),)))
    assert operations(state) == sum(2 * 4 * layer.macs for layer in layers)
    middle = 24 * sum(layer.macs for layer in layers)
    assert operations(limited(factory, bit_operations=middle)) <= middle


@pytest.mark.parametrize("factory", [Plain, Residual], ids=lambda f: f.__name__)
def test_predicted_seconds_are_met(factory):
    bottom = least(factory, "latency_s")
    assert seconds(limited(factory, latency_s=bottom)) == pytest.approx(bottom, rel=1e-9)
    between = (bottom + seconds(plain(factory))) / 2
    assert seconds(limited(factory, latency_s=between)) <= between * (1 + 1e-9)


@pytest.mark.parametrize("factory", [Plain, Residual], ids=lambda f: f.__name__)
def test_stored_weights_are_met_with_the_biases_counted(factory):
    bottom = least(factory, "flash_bytes")
    state = limited(factory, flash_bytes=int(bottom))
    parameters = dict(state.model.named_parameters())
    weights = {name: tensor for name, tensor in parameters.items() if name in state.quantization.weights}
    packed = sum(-(-tensor.numel() * 2 // 8) for tensor in weights.values())
    assert bottom == packed + 4 * sum(t.numel() for name, t in parameters.items() if name not in weights)
    assert {grid.bits for grid in state.quantization.weights.values()} == {2}


def size(state: State) -> int:
    return len(serialize(state, images(2)))


@functools.cache
def in_a_file(factory, flash: int | None) -> State:
    """What the limit on a whole file gives."""
    model, shared = studied(factory)
    setting = replace(context(data=random_data(24), shared=shared), target=device(), budget=Budget(flash_bytes=flash))
    return HessianAware(8.0, 8, nearest=True)(State(model), replace(setting, file_bytes=size))


@crossed(("factory", "share"), [Wide, Dense], [0.6, 0.05])
def test_a_file_is_no_larger_than_the_limit(factory, share):
    """With what the file takes beside its weights counted."""
    top, bottom = size(in_a_file(factory, None)), size(in_a_file(factory, 1))
    limit = round(bottom + share * (top - bottom))
    found = in_a_file(factory, limit)
    assert size(found) <= limit
    if factory is Wide and share > 0.5:
        assert {grid.bits for grid in found.quantization.weights.values()} != {2}, "the limit leaves room for more"


def test_without_limits_every_activation_is_as_wide_as_asked():
    """Averages apart that need weights which the device has with narrow activations alone."""
    for bits in (8, 4):
        result = quantize(build(Plain), images(24), activation_bits=bits, target=device())
        assert {grid.bits for grid in result.state.quantization.activations.values()} == {bits}
        assert {layer.precision.activation_bits for layer in result.plan.layers} == {bits}


def test_average_weight_bits_below_what_wide_activations_have_take_narrow_ones():
    """The device has 2-bit weights with 4-bit activations alone."""
    result = quantize(build(Plain), images(24), weight_bits=3.0, target=device())
    assert result.report.after.weight_bits <= 3.0
    assert {p.precision for p in result.plan.layers} <= {Precision(w, a, "integer") for w, a in PRECISIONS}


@networks
def test_layers_take_the_width_of_what_they_read_and_joins_equal_widths(factory):
    state = limited(factory, bit_operations=int(0.6 * operations(plain(factory))))
    quantization = state.quantization
    network = trace(state.model, (images(2),))
    for node in network.nodes:
        grids = [quantization.grid_of(each.name) for each in node.all_input_nodes if _has_grid(quantization, each.name)]
        if kind(node) in JOINS and grids:
            assert len({grid.bits for grid in grids}) == 1
    for operator in layer_operators(network):
        precision = state.plan.layer(operator.path).precision
        assert (precision.weight_bits, precision.activation_bits) in PRECISIONS
        assert quantization.weights[f"{operator.path}.weight"].bits == precision.weight_bits
        assert quantization.grid_of(operator.inputs[0]).bits == precision.activation_bits


def _has_grid(quantization, name: str) -> bool:
    return name in quantization.activations or name in quantization.carried


def test_a_device_that_is_too_small_is_told_of_and_gets_the_least():
    tiny = replace(device(), ram_bytes=1000)
    result = quantize(build(Plain), images(24), target=tiny)
    notes = [note.why for note in result.report.notes if "the nearest was taken" in note.why]
    assert len(notes) == 1
    assert "least possible" in notes[0]
    assert ram(result.state, tiny) == least(Plain, "ram_bytes")


def test_limits_that_cannot_be_met_together_are_met_as_far_as_they_can():
    setting = replace(context(data=random_data(24)), target=device())
    known = study(State(build(Plain)), setting, tuple(sorted(p for p in device().precisions)))
    limits = Limits(weight_bits=2.5, bit_operations=1, ram_bytes=10**9)
    found = budgets.problem(known, setting, limits)
    allocation, notes = budgets.allocate(found, limits, limits, nearest=True)
    assert len(notes) == 1
    assert allocation.weight_bits == 2
    with pytest.raises(LimitsUnreachable):
        budgets.allocate(found, limits, limits, nearest=False)


@pytest.mark.parametrize("method", ["uniform", "layer-error"])
def test_methods_that_heed_no_limits_say_so(method):
    with pytest.raises(BadInput, match="chooses no bits under ram_bytes; take method 'hessian'"):
        quantize(build(Plain), images(8), method=method, budget=Budget(ram_bytes=1000))


@pytest.mark.parametrize("name", ["ram_bytes", "flash_bytes", "latency_s", "bit_operations"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_of_nothing_are_refused(name, value):
    with pytest.raises(BadInput, match=f"{name}={value}: a limit must be above 0"):
        quantize(build(Plain), images(8), budget=Budget(**{name: value}))


def test_activation_bits_that_the_device_lacks_are_refused_with_those_that_it_has():
    with pytest.raises(BadInput, match="no integer kernels with 6-bit activations; it has 4, 8"):
        quantize(build(Plain), images(8), activation_bits=6, target=device())
    with pytest.raises(BadInput, match="no integer kernels with 0-bit activations"):
        quantize(build(Plain), images(8), activation_bits=0, target=device())


def test_every_width_takes_the_bits_of_a_packed_type():
    assert [stored_bits(bits) for bits in (1, 2, 3, 4, 5, 8, 16, 32)] == [2, 2, 4, 4, 8, 8, 16, 32]


def job(**limits) -> Job:
    return Job("Plain", build(Plain), random_data(24), device(), Budget(**limits), prune=None, candidates=2)


def test_a_jobs_candidates_choose_bits_under_its_limits():
    assert not job(max_accuracy_drop=1.0).limited
    assert all(not proposal.mixed or proposal.weight_bits < 8 for proposal in job().proposals())
    tight = job(flash_bytes=10**6)
    assert tight.limited
    assert all(proposal.mixed for proposal in tight.proposals())
    assert not replace(tight, quantize="uniform").limited
    for proposal in tight.proposals():
        (stage,) = tight.stages(proposal)
        assert stage == roster.METHODS["hessian"](proposal.weight_bits, 8, nearest=True)


@pytest.mark.parametrize("target", ["cpu", "x86-64", "raspberry-pi-5"])
def test_a_job_counts_files_as_it_writes_them(target):
    state = replace(plain(Plain), plan=Plan())
    asked = replace(job(), target=targets.load(target))
    file = serialize(state, images(2), weights=weight_storage(asked.target))
    assert asked.context("any", lambda message: None).file_bytes(state) == len(file)


@pytest.mark.slow
def test_the_same_limits_give_the_same_plan():
    asked = {"target": device(), "budget": Budget(ram_bytes=20_000)}
    first, second = (quantize(build(Residual), images(24), **asked) for _ in range(2))
    assert first.plan == second.plan
    assert first.state.quantization == second.state.quantization
    assert torch.equal(first.simulation(images(4)), second.simulation(images(4)))


@pytest.mark.slow
def test_a_candidate_of_a_job_meets_its_file_and_counts_its_bit_operations(tmp_path):
    def made(**limits):
        asked = replace(job(**limits), model=build(Wide), samples=24)
        proposal = asked.proposals()[0]
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return builds(asked, proposal.id, asked.stages(proposal), folder, None, lambda message: None)

    free = made()
    candidate = made(flash_bytes=free.best.bytes - 20_000)
    assert candidate.best.bytes <= free.best.bytes - 20_000
    macs = {layer.name: layer.macs for layer in free.layers}
    assert free.bit_operations == sum(64 * count for count in macs.values())
    assert candidate.bit_operations == sum(
        macs[each.name] * each.precision.weight_bits * each.precision.activation_bits for each in candidate.plan.layers
    )
    nothing = made(flash_bytes=1000)
    assert any("flash_bytes 1000 (least possible" in note.why for note in nothing.records[0].notes)
    assert {layer.weight_bits for layer in nothing.layers} == {2}
