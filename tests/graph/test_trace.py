"""Tracing: an open batch size, and errors that name the operator and the module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.errors import Untraceable
from compress.graph.trace import kind, trace
from tests.graph.networks import ROSTER, build, images


class Branch(nn.Module):
    def forward(self, x):
        return x if torch.relu(x).sum() > 0 else -x


class Holder(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.conv, self.inner = nn.Conv2d(3, 4, 3), inner

    def forward(self, x):
        return self.inner(self.conv(x))


class ToNumpy(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.detach().numpy() * 2)


@pytest.mark.parametrize("factory", ROSTER, ids=lambda factory: factory.__name__)
def test_the_batch_size_is_open_and_the_model_is_not_changed(factory):
    model = build(factory).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = trace(model, (images(1),))
    assert network.dynamic_batch
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_branch_on_a_value_is_named_with_its_module():
    with pytest.raises(Untraceable, match=r"a branch on a tensor's value .* in module 'inner'") as caught:
        trace(Holder(Branch()), (images(1),))
    assert "\n" not in str(caught.value)


def test_leaving_torch_is_named_with_its_module():
    with pytest.raises(Untraceable, match=r"numpy in module 'inner'"):
        trace(Holder(ToNumpy()), (images(1),))


def test_a_wrong_shape_is_named_with_its_layer():
    with pytest.raises(Untraceable, match=r"linear in module 'inner.1'"):
        trace(Holder(nn.Sequential(nn.Flatten(), nn.Linear(7, 2))), (images(1),))


def test_a_batch_size_that_the_code_fixes_is_noted():
    class One(nn.Module):
        def forward(self, x):
            return x.view(1, 768)

    network = trace(One(), (images(1),))
    assert not network.dynamic_batch
    assert network.notes[0].what == "batch size"


def test_pooling_to_one_pixel_is_a_mean_also_for_one_channel():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    kinds = [kind(node) for node in trace(model, (torch.randn(2, 1, 8, 8),)).nodes]
    assert "mean" in kinds
    assert "adaptive_avg_pool2d" not in kinds
