"""Sensitivities as a user gets them: from a module and its inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import compress
from compress.errors import BadInput
from compress.quantize import sensitivity
from tests.graph.networks import Plain, Residual, build, images


@pytest.mark.parametrize("factory", [Plain, Residual], ids=lambda factory: factory.__name__)
def test_every_layer_has_a_trace_an_eigenvalue_and_a_cost_at_each_of_the_targets_widths(factory):
    model = build(factory)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = sensitivity(model, images(64), target="cpu", seed=3)
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert sorted(layer.name for layer in found) == sorted(layers)
    for layer in found:
        assert layer.weights == model.get_parameter(f"{layer.name}.weight").numel()
        assert 0 < layer.eigenvalue <= layer.trace + 4 * layer.trace_error
        assert [bits for bits, _ in layer.perturbations] == [4, 8]
        narrow, wide = (cost for _, cost in layer.perturbations)
        assert narrow > wide >= 0
    assert sensitivity(model, images(64), target="cpu", seed=3) == found
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_layer_that_the_output_ignores_costs_nothing():
    class Ignored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.ignored = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.seen(x) + 0 * self.ignored(x)).mean((2, 3))

    torch.manual_seed(0)
    found = {layer.name: layer for layer in sensitivity(Ignored().eval(), images(64))}
    assert found["ignored"].trace == 0
    assert all(cost == 0 for _, cost in found["ignored"].perturbations)
    assert found["seen"].trace > 0


def test_a_target_without_integer_kernels_for_these_activations_is_named():
    with pytest.raises(BadInput, match="cpu has no integer kernels with 3-bit activations"):
        sensitivity(build(Plain), images(16), target="cpu", activation_bits=3)


def test_it_is_reached_from_the_package():
    assert compress.quantize.sensitivity is sensitivity
