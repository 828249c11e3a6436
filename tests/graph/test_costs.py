"""Costs by formula, and batch norm folding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.graph import costs
from compress.graph.fold import fold_batch_norm
from compress.graph.trace import trace
from tests.graph import convolutional, transformers
from tests.graph.networks import ROSTER, Depthwise, Plain, Residual, UNet, build, images

PIXELS = 16 * 16
BY_HAND = {
    Plain: PIXELS * 3 * 8 * 9 + PIXELS // 4 * 8 * 12 * 9 + 12 * 16 * 16 + 16 * 5,
    Residual: PIXELS * (3 * 8 + 8 * 8 + 8 * 8) * 9 + PIXELS // 4 * (8 * 16 * 9 + 16 * 16 * 9 + 8 * 16) + 16 * 5,
    Depthwise: PIXELS * (3 * 8 * 9 + 8 * 24 + 24 * 9 + 24 * 8) + 8 * 5,
    convolutional.WeightNormed: PIXELS * 3 * 16 * 9 + 14 * 14 * 16 * 12 * 9 + 12 * 5,
    # 5 queries and 16 tokens of width 12, and each pair's product twice.
    transformers.CrossAttention: 16 * 3 * 12 * 16 + (5 + 16 + 16) * 12 * 12 + 2 * 5 * 16 * 12 + 5 * 12 * 12 + 12 * 5,
    UNet: PIXELS * (3 * 6 * 9 + 13 * 6 * 9 + 6 * 3) + PIXELS // 4 * (6 * 10 * 9 + 10 * 7 * 4),
}


@pytest.mark.parametrize("factory", BY_HAND, ids=lambda factory: factory.__name__)
def test_macs_are_those_of_the_formula(factory):
    assert costs.total_macs(trace(build(factory), (images(2),))) == BY_HAND[factory]


@pytest.mark.parametrize("factory", ROSTER, ids=lambda factory: factory.__name__)
def test_parameters_are_counted_once_each(factory):
    model = build(factory)
    assert costs.size(trace(model, (images(2),))).params == sum(p.numel() for p in model.parameters())


def test_average_bits_weigh_every_layer_by_its_weights():
    network = trace(build(Plain), (images(2),))
    weights = {"conv1": 216, "conv2": 864, "linear1": 3072, "linear2": 80}
    bits = {"conv1": 8, "conv2": 4, "linear1": 2, "linear2": 8}
    expected = sum(bits[name] * n for name, n in weights.items()) / sum(weights.values())
    assert costs.size(network, bits).weight_bits == pytest.approx(expected)


@pytest.mark.parametrize("factory", ROSTER, ids=lambda factory: factory.__name__)
def test_folding_batch_norm_changes_no_output(factory):
    model = build(factory)
    folded, notes = fold_batch_norm(model, trace(model, (images(2),)))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert notes == ()
    torch.testing.assert_close(folded(images()), model(images()), rtol=1e-4, atol=1e-5)


def test_a_batch_norm_that_follows_no_layer_is_noted_and_kept():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)).eval()
    folded, notes = fold_batch_norm(model, trace(model, (images(2),)))
    assert isinstance(folded[0], nn.BatchNorm2d)
    assert notes[0].where == "0"
