"""A changed graph as a program is what torch.export captures of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export.graph_signature import InputKind

from compress.graph.module import plain_module
from compress.graph.program import as_program
from compress.graph.qdq import insert
from compress.graph.trace import trace
from compress.quantize import quantize
from tests.graph.networks import ARCHITECTURES, Attention, PaddedShortcut, Residual, build, images, inputs_of
from tests.graph.transformers import Text, TwoInputs
from tests.rosters import some

ALONE = [each for each in ARCHITECTURES if each not in (TwoInputs, Text)]


class Again(nn.Module):
    """One convolution, applied twice, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = torch.relu(self.layer(x))
        return first, self.layer(first)


@some("factory", ALONE, quick=(Residual, PaddedShortcut, Attention))
def test_a_quantized_graph_computes_what_it_did_at_any_batch(factory):
    (x,) = inputs_of(factory, 8)
    state = quantize(build(factory), x, method="uniform").state
    network = trace(state.model, (x[:2],))
    module = insert(network, state.quantization)
    program = as_program(module, network)
    for part in (x[:2], x[:5]) if network.dynamic_batch else (x[:1],):
        assert torch.equal(program.module(check_guards=False)(part), module(part))


def test_every_tensor_is_an_input_once_and_integers_are_buffers():
    state = quantize(build(Residual), images(8), method="uniform").state
    network = trace(state.model, (images(2),))
    module = insert(network, state.quantization)
    program = as_program(module, network)
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind != InputKind.USER_INPUT]
    assert sorted(spec.target for spec in specs) == sorted(held) == sorted(program.state_dict)
    for spec in specs:
        tensor = held[spec.target]
        assert (spec.kind == InputKind.BUFFER) == (tensor.dtype in (torch.int8, torch.int32) or "scale" in spec.target)
        node = next(node for node in program.graph.nodes if node.name == spec.arg.name)
        assert (node.meta["val"].shape, node.meta["val"].dtype) == (tensor.shape, tensor.dtype)


def test_several_outputs_and_a_tensor_that_is_read_twice():
    model, x = Again().eval(), images(4)
    network = trace(model, (x[:2],))
    program = as_program(plain_module(network), network)
    assert len(program.graph_signature.input_specs) == 3
    for got, expected in zip(program.module(check_guards=False)(x), model(x), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("factory", [Residual, Attention])
def test_its_nodes_are_those_of_a_trace(factory):
    network = trace(build(factory), (images(2),))
    module = plain_module(network)
    made, traced = as_program(module, network), trace(module, (images(2),)).program
    assert [str(node.target) for node in made.graph.nodes if node.op == "call_function"] == [
        str(node.target) for node in traced.graph.nodes if node.op == "call_function"
    ]
    made.validate()
