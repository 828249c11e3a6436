"""Sizes along a candidate's stages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.building import size_of
from compress.graph import costs, traces
from compress.graph.trace import trace
from compress.prune import roster as pruning
from compress.prune.goal import Goal
from compress.quantize import roster as quantizing
from compress.types import State
from tests.graph.networks import Residual, build
from tests.test_kept_networks import after, job


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("bits", [None, 4, 8])
def test_the_size_is_that_of_the_networks_own_trace(share, bits):
    asked = job(build(Residual))
    size_of(asked, State(asked.model))  # what it knows of other networks doesn't matter
    stages = [pruning.METHODS["norm"](Goal(share, None))] if share < 1 else []
    stages += [quantizing.METHODS["uniform"](bits, 8)] if bits else []
    state = after(asked, *stages)
    layers = state.quantization.layer_bits if state.quantization else {}
    assert size_of(asked, state) == costs.size(trace(state.model, (asked.example,)), layers)
    assert size_of(asked, state).weight_bits == (bits or 32)


def test_a_job_traces_for_sizes_once_a_shape(monkeypatch):
    asked, traced = job(build(Residual)), []

    def counted(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> object:
        traced.append(model)
        return trace(model, inputs)

    monkeypatch.setattr(traces, "trace", counted)
    half = after(asked, pruning.METHODS["norm"](Goal(0.5, None)))
    for _ in range(2):  # candidates
        assert size_of(asked, half).macs < size_of(asked, State(asked.model)).macs
    assert traced == [asked.model, half.model]
