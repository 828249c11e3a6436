"""Networks between stages come back equal, bit for bit, or aren't kept."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from compress import pipeline
from compress.job import Job
from compress.kept_networks import STATE, TENSORS, read, write
from compress.prune import roster as pruning
from compress.prune.goal import Goal
from compress.quantize import roster as quantizing
from compress.serial import to_json
from compress.types import Size, State
from tests.graph.networks import Residual, build
from tests.small_jobs import device, network
from tests.support import random_data


def job(model: nn.Module) -> Job:
    return Job("Small", model, random_data(24), device(), samples=16)


def after(asked: Job, *stages) -> State:
    return pipeline.run(stages, State(asked.model), asked.context("", lambda _: None), lambda _: Size(1, 1, 32.0))


def came_back(state: State, again: State | None) -> None:
    assert again is not None
    assert type(again.model) is type(state.model)
    assert (again.plan.digest(), again.quantization) == (state.plan.digest(), state.quantization)
    assert (to_json(again.records), again.notes) == (to_json(state.records), state.notes)
    first, second = state.model.state_dict(), again.model.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", ["norm", "random", "bn-scale"])
def test_a_pruned_network_comes_back(method, tmp_path):
    asked = job(build(Residual))
    state = after(asked, pruning.METHODS[method](Goal(0.5, None)))
    assert sum(p.numel() for p in state.model.parameters()) < sum(p.numel() for p in asked.model.parameters())
    assert write(asked, state, tmp_path)
    # In another process there is nothing but the folder and the user's network.
    came_back(state, read(job(build(Residual)), tmp_path))


@pytest.mark.parametrize("method", ["uniform", "layer-error", "hessian"])
def test_a_pruned_and_quantized_network_comes_back_with_its_grids(method, tmp_path):
    asked = job(network())
    stages = pruning.METHODS["norm"](Goal(0.6, None)), quantizing.METHODS[method](8, 8)
    state = after(asked, *stages)
    assert state.quantization is not None
    assert any(isinstance(module, nn.Identity) for module in state.model.modules())  # where batch norms were folded
    assert write(asked, state, tmp_path)
    came_back(state, read(job(network()), tmp_path))


class Scaled(nn.Module):
    """Its function depends on an attribute that no plan knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.factor = network(), 1.0

    def forward(self, x):
        return self.inner(x) * self.factor


def test_what_would_come_back_otherwise_is_not_kept(tmp_path):
    asked = job(Scaled().eval())
    state = after(asked, pruning.METHODS["norm"](Goal(0.6, None)))
    for name, factor in (("kept", 1.0), ("none", 2.0)):
        state.model.factor = factor
        (tmp_path / name).mkdir()
        assert write(asked, state, tmp_path / name) == (factor == 1.0)
    assert list((tmp_path / "none").iterdir()) == []


def test_what_was_tampered_with_is_not_read(tmp_path):
    asked = job(network())
    state = after(asked, pruning.METHODS["norm"](Goal(0.6, None)))
    assert write(asked, state, tmp_path)
    document = (tmp_path / STATE).read_text()
    for wrong in ("{", "[]", json.dumps({**json.loads(document), "plan": {"layers": "none"}})):
        (tmp_path / STATE).write_text(wrong)
        assert read(asked, tmp_path) is None
    (tmp_path / STATE).write_text(document)
    (tmp_path / TENSORS).write_bytes((tmp_path / TENSORS).read_bytes()[:40])
    assert read(asked, tmp_path) is None
