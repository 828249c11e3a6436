"""A quantized network isn't traced again where it is a copy of one that was: the same graph, its own tensors."""

from __future__ import annotations

import torch

from compress.export import onnx as interchange
from compress.graph.trace import trace
from compress.quantize import roster as quantizing
from compress.quantize.calibrate import known_trace
from compress.quantize.training import QuantizationAware
from compress.types import State
from tests.graph.networks import Plain, Residual, build
from tests.rosters import crossed
from tests.test_kept_networks import job


def stages(method: str, trained: int):
    return [quantizing.METHODS[method](4, 8), *[QuantizationAware(1) for _ in range(trained)]]


@crossed(("factory", "method", "trained"), [Residual, Plain], ["uniform", "hessian", "layer-error"], [0, 1, 2])
def test_what_is_known_is_what_a_trace_would_find(factory, method, trained, tmp_path):
    asked = job(build(factory))
    state, context = State(asked.model), asked.context("", lambda _: None)
    for stage in stages(method, trained):
        state = stage(state, context)
    known, fresh = known_trace(state.model, asked.shared), trace(state.model, (asked.example,))
    assert known is not None
    assert [str(node) for node in known.graph.nodes] == [str(node) for node in fresh.graph.nodes]
    assert known.parameters == fresh.parameters
    assert known.program.state_dict.keys() == fresh.program.state_dict.keys()
    for name, tensor in fresh.program.state_dict.items():
        assert known.program.state_dict[name] is tensor
    files = [tmp_path / "known.onnx", tmp_path / "fresh.onnx"]
    for network, path in zip((known, fresh), files, strict=True):
        interchange.export(state, asked.example, path, network, "signed")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_trace_of_another_network_is_not_taken_for_it():
    asked = job(build(Plain))
    context = asked.context("", lambda _: None)
    first, second = (quantizing.METHODS["uniform"](8, 8)(State(asked.model), context) for _ in range(2))
    assert known_trace(first.model, asked.shared) is None
    assert known_trace(second.model, asked.shared) is not None


def test_the_traced_network_keeps_its_own_tensors():
    model, copied = build(Plain), build(Plain)
    network = trace(model, (torch.zeros(2, 3, 16, 16),))
    other = network.of(copied)
    name = next(iter(network.program.state_dict))
    assert other.program.state_dict[name] is copied.get_parameter(name)
    assert network.program.state_dict[name] is model.get_parameter(name)
