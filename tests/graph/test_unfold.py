"""Unfolding, the inverse of folding: a layer and its batch norm compute given weights, in both modes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compress.graph.fold import fold_batch_norm, foldable, unfold
from compress.graph.trace import trace
from tests.graph.networks import Depthwise, Plain, Residual, build, images

LAYERS = {
    "conv2d": (nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d, 0, (3, 7, 7)),
    "conv2d with a bias": (nn.Conv2d(3, 5, 3), nn.BatchNorm2d, 0, (3, 7, 7)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d, 0, (4, 7, 7)),
    "transposed": (nn.ConvTranspose2d(3, 5, 2, 2), nn.BatchNorm2d, 1, (3, 7, 7)),
    "conv1d": (nn.Conv1d(3, 5, 3), nn.BatchNorm1d, 0, (3, 9)),
    "linear": (nn.Linear(7, 5), nn.BatchNorm1d, 0, (7,)),
}


@pytest.fixture(params=LAYERS)
def case(request):
    """A layer, a norm for it, its output axis, inputs, new weights and the values that these make."""
    layer, make, axis, size = LAYERS[request.param]
    layer = copy.deepcopy(layer)
    generator = torch.Generator().manual_seed(0)
    norm = make(layer.weight.shape[axis] * (1 if axis == 0 else layer.groups)).eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.uniform_(0.3, 1.5, generator=generator)
    x = torch.randn(64, *size, generator=generator)
    weight = torch.randn(layer.weight.shape, generator=generator)
    bias = torch.randn(norm.num_features, generator=generator)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.copy_(weight)
        if other.bias is not None:
            other.bias.zero_()
        made = other(x)
    return layer, norm, axis, x, weight, bias, made


def statistics(made: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    flat = made.movedim(1, 0).flatten(1)
    return flat.mean(1), flat.var(1, unbiased=False)


def shifted(made: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return made + bias.view(1, -1, *[1] * (made.dim() - 2))


def test_the_two_compute_the_given_weights_in_evaluation(case):
    layer, norm, axis, x, weight, bias, made = case
    unfold(layer, norm, axis, weight, bias, *statistics(made))
    with torch.no_grad():
        torch.testing.assert_close(norm(layer(x)), shifted(made, bias), rtol=1e-4, atol=1e-4)


def test_and_the_same_in_training_on_the_data_of_the_statistics(case):
    layer, norm, axis, x, weight, bias, made = case
    unfold(layer, norm, axis, weight, bias, *statistics(made))
    with torch.no_grad():
        torch.testing.assert_close(norm.train()(layer(x)), shifted(made, bias), rtol=1e-4, atol=1e-4)


def test_the_statistics_are_those_that_training_would_find(case):
    layer, norm, axis, x, weight, bias, made = case
    unfold(layer, norm, axis, weight, bias, *statistics(made))
    with torch.no_grad():
        mean, var = statistics(layer(x))
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.running_var, var, rtol=1e-4, atol=1e-4)


def test_each_output_keeps_the_norm_of_its_weights(case):
    layer, norm, axis, _, weight, bias, made = case
    before = layer.weight.detach().movedim(axis, 0).flatten(1).norm(dim=1)
    unfold(layer, norm, axis, weight, bias, *statistics(made))
    torch.testing.assert_close(layer.weight.detach().movedim(axis, 0).flatten(1).norm(dim=1), before)


def test_a_norm_without_weights_computes_them_too():
    layer, norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False).eval()
    weight, bias, x = torch.randn(5, 3, 3, 3), torch.randn(5), images()
    made = nn.functional.conv2d(x, weight)
    unfold(layer, norm, 0, weight, bias, *statistics(made))
    torch.testing.assert_close(norm(layer(x)), shifted(made, bias), rtol=1e-4, atol=1e-4)


def test_outputs_without_weights_stay_finite():
    layer, norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5).eval()
    unfold(layer, norm, 0, torch.zeros(5, 3, 3, 3), torch.ones(5), torch.zeros(5), torch.zeros(5))
    torch.testing.assert_close(norm(layer(images())), torch.ones(4, 5, 14, 14))


@pytest.mark.parametrize("factory", [Plain, Residual, Depthwise], ids=lambda factory: factory.__name__)
def test_folding_what_was_unfolded_gives_the_same_weights(factory):
    model = build(factory)
    network = trace(model, (images(2),))
    folded, _ = fold_batch_norm(model, network)
    pairs, notes = foldable(model, network)
    assert not notes
    assert set(pairs) == {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    back = copy.deepcopy(model)
    for norm, front in pairs.items():
        layer, channels = folded.get_submodule(front.path), model.get_submodule(norm).num_features
        at = back.get_submodule(front.path), back.get_submodule(norm), front.axis
        unfold(*at, layer.weight.detach(), layer.bias.detach(), torch.rand(channels), torch.rand(channels))
    again, _ = fold_batch_norm(back, trace(back, (images(2),)))
    for name, tensor in folded.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
