"""Networks that differ in nothing but their tensors' values share a trace; any other difference gives a new one."""

from __future__ import annotations

import copy
import functools
import gc
import weakref

import pytest
import torch
from torch import nn

from compress.export import onnx as interchange
from compress.graph import traces
from compress.graph.fold import fold_batch_norm
from compress.graph.trace import trace
from compress.graph.traces import traced
from compress.quantize import roster as quantizing
from compress.quantize.training import QuantizationAware
from compress.types import State
from tests.graph.networks import ARCHITECTURES, Attention, PaddedShortcut, Plain, Residual, build, inputs_of
from tests.rosters import crossed, some
from tests.test_kept_networks import job

EXAMPLE = torch.zeros(2, 3, 16, 16)


def with_other_values(model: nn.Module) -> nn.Module:
    made = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5).add_(0.1)
    return made


def assert_same(found, fresh):
    assert [str(node) for node in found.graph.nodes] == [str(node) for node in fresh.graph.nodes]
    assert found.parameters == fresh.parameters
    assert (found.inputs, found.notes, found.hardware) == (fresh.inputs, fresh.notes, fresh.hardware)
    assert found.program.state_dict.keys() == fresh.program.state_dict.keys()
    for name, tensor in fresh.program.state_dict.items():
        assert found.program.state_dict[name] is tensor
    for one, other in zip(found.example_inputs, fresh.example_inputs, strict=True):
        assert torch.equal(one, other)


def counted(monkeypatch) -> list[nn.Module]:
    """The modules that are really traced from now on."""
    seen: list[nn.Module] = []

    def watched(model, example_inputs):
        seen.append(model)
        return trace(model, example_inputs)

    monkeypatch.setattr(traces, "trace", watched)
    return seen


@some("factory", ARCHITECTURES, quick=(Residual, PaddedShortcut, Attention))
def test_a_copy_with_other_values_has_the_trace_that_it_would_have_had(factory):
    model, shared, (given, others) = build(factory), {}, (inputs_of(factory, count) for count in (2, 3))
    assert_same(traced(model, given, shared), trace(model, given))
    other = with_other_values(model)
    assert_same(traced(other, others, shared), trace(other, others))


def test_copies_and_folded_copies_are_traced_once(monkeypatch):
    model, shared = build(Residual), {}
    seen = counted(monkeypatch)
    for each in (model, with_other_values(model), with_other_values(model)):
        network = traced(each, (EXAMPLE,), shared)
        traced(fold_batch_norm(each, network)[0], (EXAMPLE,), shared)
    assert len(seen) == 2


class Attributes(nn.Module):
    def __init__(self, **given):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        for name, value in given.items():
            setattr(self, name, value)

    def forward(self, x):
        for _ in range(getattr(self, "times", 1)):
            x = self.layer(x)
        if hasattr(self, "mask"):
            x = x * self.mask
        return x


class Times:
    """An object of which nobody knows whether another is equal."""


class Masked(Attributes):
    def __init__(self, value, persistent):
        super().__init__()
        self.register_buffer("mask", torch.full((3, 1, 1), value), persistent=persistent)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model[1].weight = model[0].weight
    return model


DIFFERENT = [
    (lambda: Attributes(times=1), lambda: Attributes(times=2), "an attribute"),
    (lambda: Attributes(times=1), lambda: Attributes(times=True), "an attribute's class"),
    (lambda: Attributes(kept=Times()), lambda: Attributes(kept=Times()), "an object"),
    (lambda: Attributes(mask=torch.ones(3, 1, 1)), lambda: Attributes(mask=torch.ones(3, 1, 1)), "a tensor"),
    (lambda: Masked(1.0, False), lambda: Masked(2.0, False), "a constant's values"),
    (lambda: nn.Conv2d(3, 4, 3, padding=1), lambda: nn.Conv2d(3, 4, 3, padding=0), "an attribute of torch's"),
    (lambda: nn.Conv2d(3, 4, 3), lambda: nn.Conv2d(3, 5, 3), "a shape"),
    (lambda: nn.Conv2d(3, 4, 3), lambda: nn.Conv2d(3, 4, 3).double(), "a type"),
    (lambda: nn.Sequential(nn.ReLU()), lambda: nn.Sequential(nn.Sigmoid()), "a class"),
    (tied, lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), "a tie"),
]


@pytest.mark.parametrize(("one", "other"), [each[:2] for each in DIFFERENT], ids=[each[2] for each in DIFFERENT])
def test_networks_that_differ_are_both_traced(one, other, monkeypatch):
    seen, shared = counted(monkeypatch), {}
    for make in (one, other):
        model = make()
        x = EXAMPLE.to(next((p.dtype for p in model.parameters()), torch.float32))
        assert_same(traced(model, (x,), shared), trace(model, (x,)))
    assert len(seen) == 2


EQUAL = [
    (lambda: Attributes(times=2, name="a", sizes=[1, (2, 3)], of={"b": {1.5}}), "plain attributes"),
    (lambda: Attributes(norm=functools.partial(nn.BatchNorm2d, eps=1e-3), act=nn.functional.relu), "functions"),
    (lambda: Masked(2.0, True), "a buffer"),
    (lambda: Masked(2.0, False), "a constant"),
    (tied, "a tie"),
]


@pytest.mark.parametrize("make", [each[0] for each in EQUAL], ids=[each[1] for each in EQUAL])
def test_networks_that_are_equal_are_traced_once(make, monkeypatch):
    seen, shared = counted(monkeypatch), {}
    for _ in range(2):
        model = make()
        assert_same(traced(model, (EXAMPLE,), shared), trace(model, (EXAMPLE,)))
    assert len(seen) == 1


def test_another_size_of_images_is_traced_and_another_number_is_not(monkeypatch):
    seen, shared, model = counted(monkeypatch), {}, build(Residual)
    for x in (EXAMPLE, EXAMPLE[:1], EXAMPLE.repeat(2, 1, 1, 1)):
        assert_same(traced(model, (x,), shared), trace(model, (x,)))
    assert len(seen) == 1
    traced(model, (torch.zeros(2, 3, 24, 24),), shared)
    assert len(seen) == 2


def test_what_is_kept_holds_no_network_in_memory():
    model, shared = build(Plain), {}
    traced(model, (EXAMPLE,), shared)
    gone = [weakref.ref(parameter) for parameter in model.parameters()]
    del model
    gc.collect()
    assert [each() for each in gone] == [None] * len(gone)


def test_the_graphs_that_were_asked_for_last_are_kept(monkeypatch):
    seen, shared = counted(monkeypatch), {}
    models = [nn.Conv2d(3, 1 + i, 1) for i in range(traces.MOST + 1)]
    for model in models:
        traced(model, (EXAMPLE,), shared)
    assert len(shared[traces.KEY]) == traces.MOST
    traced(models[-1], (EXAMPLE,), shared)
    assert len(seen) == len(models)
    traced(models[0], (EXAMPLE,), shared)
    assert len(seen) == len(models) + 1


@crossed(("factory", "method", "trained"), [Residual, Plain], ["uniform", "hessian", "layer-error"], [0, 1, 2])
def test_a_quantized_network_gives_the_file_that_a_trace_of_its_own_gives(factory, method, trained, tmp_path):
    asked = job(build(factory))
    state, context = State(asked.model), asked.context("", lambda _: None)
    for stage in (quantizing.METHODS[method](4, 8), *[QuantizationAware(1) for _ in range(trained)]):
        state = stage(state, context)
    known, fresh = traced(state.model, (asked.example,), asked.shared), trace(state.model, (asked.example,))
    assert_same(known, fresh)
    files = [tmp_path / "known.onnx", tmp_path / "fresh.onnx"]
    for network, path in zip((known, fresh), files, strict=True):
        interchange.export(state, asked.example, path, network, "signed")
    assert files[0].read_bytes() == files[1].read_bytes()
