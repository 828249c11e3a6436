"""The noise of measurements: its moments by formula, its randomness, its gradient."""

from __future__ import annotations

import math

import pytest
import torch

from compress.quantize.sensing import Noise
from compress.quantize.sensing_start import noise_covariance
from tests.quantize.sensing_layers import layer, light

NOISES = {
    "shot": Noise(photons=40.0),
    "read": Noise(photons=50.0, read=12.0),
    "read alone": Noise(read=0.7),
    "adc": Noise(photons=200.0, read=20.0, adc_bits=8),
}


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("name", ["block", "zeros and ones", "pairs of exposures", "signed pairs", "mean"])
def test_the_variance_of_the_noise_is_the_formulas(name, noise):
    made = layer(name, 0.1, noise=noise)
    draws, level = 12000, 0.4
    x = torch.full((draws, 1, 8, 8), level)
    y = made.measure(x, noise=noise, generator=torch.Generator().manual_seed(3)).double()[:, :, 0, 0]
    exact = made.measure(x[:1])[:, :, 0, 0].double()
    spread = noise_covariance(made, level)
    if noise.adc_bits is None:
        assert ((y.mean(0) - exact[0]).abs() < 4 * (spread.diagonal() / draws).sqrt() + 1e-3).all()
    found = torch.cov(y.T)
    if noise.adc_bits is not None:
        # The complement of a pattern of ones gets no light: what its ADC clips isn't in the formula.
        found, spread = found[1:, 1:], spread[1:, 1:]
    assert (found.diagonal() / spread.diagonal()).log().abs().max() < 4.5 * math.sqrt(2 / draws)
    scale = spread.diagonal().sqrt()
    assert ((found - spread) / scale[:, None] / scale).abs().max() < 5 * math.sqrt(2 / draws)


def test_an_adc_has_so_many_levels_and_clips():
    made = layer("zeros and ones", 0.1)
    noise = Noise(adc_bits=3)
    full = float(made.patterns().sum((1, 2)).max())
    y = made.measure(light(made, 200), noise=noise)
    steps = y / (full / 7)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert len(steps.round().unique()) <= 8
    assert (steps - made.measure(light(made, 200)) / (full / 7)).abs().max() <= 0.5 + 1e-4
    bright = Noise(photons=5.0, read=1000.0, adc_bits=4).of(torch.full((500,), 3.0), 4.0)
    assert bright.min() == 0
    assert bright.max() == 4.0


def test_noise_is_the_generators_and_only_training_has_it_unasked():
    noise = Noise(photons=10.0, read=1.0)
    made = layer("block", noise=noise)
    x = light(made)
    first, again, other = (
        made.measure(x, noise=noise, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(made(x), made(x))
    made.train()
    assert not torch.equal(made(x), made(x))
    assert torch.equal(made.exact(x), made.exact(x))


def test_the_noise_of_normalized_images_is_that_of_their_light():
    noise = Noise(photons=30.0)
    plain, normalized = (layer("colour", noise=noise).train() for _ in range(2))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    normalized.set_light(mean, std)
    m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    x = light(plain)
    torch.manual_seed(0)
    wanted = plain(x)
    torch.manual_seed(0)
    found = normalized((x - m) / s)
    sums = plain.operator().sum(1) * plain.factors()
    shifted = (wanted.view(2, 3, -1, 2, 2) - m[..., None] * sums.view(1, 1, -1, 1, 1)) / s[..., None]
    torch.testing.assert_close(found.view(shifted.shape), shifted, rtol=1e-3, atol=1e-3)


def test_noise_leaves_the_gradient_as_it_is():
    made = layer("pairs of exposures")
    x = light(made).requires_grad_()
    made.measure(x, noise=Noise(photons=5.0, read=2.0, adc_bits=6)).sum().backward()
    with_noise = x.grad.clone()
    x.grad = None
    made.measure(x).sum().backward()
    torch.testing.assert_close(with_noise, x.grad)
