"""Fine-tuning after pruning: how large its steps are, and that it recovers what was lost."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compress import data as datasets
from compress import targets
from compress.prune.finetune import HIGHEST_RATE, LEAST_RATE, FineTune, rate
from compress.training import evaluate, unexplained
from compress.types import Budget, Context, Plan, State


def teacher() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))


def images(n: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def test_a_copy_of_the_teacher_takes_the_smallest_steps_and_a_stranger_the_largest():
    model = teacher()
    assert rate(copy.deepcopy(model), model, images()) == pytest.approx(LEAST_RATE)
    stranger = copy.deepcopy(model)
    with torch.no_grad():
        stranger[3].weight.mul_(-1)
    assert unexplained(stranger, model, images()) > 1
    assert rate(stranger, model, images()) == pytest.approx(HIGHEST_RATE)
    assert rate(model, None, images()) == HIGHEST_RATE


def test_half_of_the_output_missing_is_the_geometric_middle():
    model = teacher()
    half = copy.deepcopy(model)
    with torch.no_grad():  # output (1 - s) y + s mean(y) misses s^2 of the variance
        share = 0.5**0.5
        middle = model(images()).mean(0)
        half[3].weight.mul_(1 - share)
        half[3].bias.mul_(1 - share).add_(share * middle)
    assert rate(half, model, images()) == pytest.approx((LEAST_RATE * HIGHEST_RATE) ** 0.5, rel=1e-3)


def test_it_recovers_what_pruning_lost_and_changes_no_other_network():
    model = teacher()
    labels = model(images()).argmax(1)
    data = datasets.from_python((images(), labels), divisible=False)
    smaller = copy.deepcopy(model)
    with torch.no_grad():
        smaller[1].weight[:10].zero_()
    context = Context(targets.load("cpu"), Budget(), data, torch.Generator().manual_seed(0), teacher=model)
    before = copy.deepcopy(smaller.state_dict())
    tuned = FineTune(epochs=20)(State(smaller, Plan()), context).model
    lost = data.train.n - evaluate(smaller, data.train)[0]
    assert lost >= 4
    assert data.train.n - evaluate(tuned, data.train)[0] <= lost // 2
    assert all(torch.equal(before[name], tensor) for name, tensor in smaller.state_dict().items())
