"""The sensing layer: laws over geometries, constraints and ways of measuring, against independent slow references."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from compress.errors import BadInput, UnknownName
from compress.quantize.pattern_constraints import ComplementaryPairs, ExactOnes, Incoherent
from compress.quantize.sensed import sensed
from compress.quantize.sensing import Noise, SensingLayer, measurements, padded, smooth_rows
from compress.quantize.sensing_patterns import INNER
from tests.quantize.sensing_layers import GEOMETRIES, layer, light, ranged


@pytest.mark.parametrize("name", GEOMETRIES)
def test_patterns_have_two_values_and_the_promised_shape(name):
    made = layer(name)
    patterns = made.patterns()
    assert patterns.shape == (made.measurements, *made.size)
    assert set(patterns.unique().tolist()) <= ({0.0, 1.0} if made.values == "01" else {-1.0, 1.0})
    assert made.measurements == round(0.25 * made.pixels)
    assert len(patterns.flatten(1).unique(dim=0)) == len(patterns)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_in_evaluation_the_measurements_and_their_differences_are_summands_with_ranges_of_their_own(name):
    """Whatever lies outside the inner range is in the other two, one for each side, zero but for it."""
    made = ranged(layer(name))
    made.set_inner(0.2)
    change = light(made) - light(made, seed=1)
    for r, parts, whole in (
        (INNER, made.parts(light(made)), made(light(made))),
        (0.2, made.difference_parts(change), made.difference(change)),
    ):
        inner, over, under = parts
        torch.testing.assert_close(inner, whole.clamp(-r, r))
        torch.testing.assert_close(over, (whole - r).clamp_min(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(under, (whole + r).clamp_max(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(made.correction(*parts), made.correction(whole), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        made.reexpand(*made.parts(light(made))), made.reexpand(made(light(made))), atol=1e-4, rtol=1e-4
    )
    assert len(made.train().parts(light(made))) == len(made.difference_parts(light(made))) == 1


def test_the_summands_follow_what_is_loaded_and_learned():
    made, other = ranged(layer("block")), layer("block")
    made.set_inner(0.3)
    other.load_state_dict(made.state_dict())
    for way in ("parts", "difference_parts"):
        for one, two in zip(getattr(made, way)(light(made)), getattr(other, way)(light(made)), strict=True):
            assert torch.equal(one, two)
    with pytest.raises(BadInput, match="inner range of 0"):
        made.set_inner(0)
    made.learn(torch.randn(made.measurements, *made.size, generator=torch.Generator().manual_seed(3)))
    made.fix()
    torch.testing.assert_close(sum(made.parts(light(made))), made(light(made)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_measurement_equals_a_loop_over_blocks_patterns_and_pixels(name):
    made = layer(name)
    x, patterns = light(made).double().numpy(), made.patterns().double().numpy()
    if made.values == "01" and made.differential is True:
        patterns = patterns - (1 - patterns)
    if made.differential == "mean":
        patterns[1:] = 2 * patterns[1:] - patterns[0]
    found = made.measure(light(made))
    height, width = made.size
    n, c = x.shape[:2]
    rows, columns = x.shape[2] // height, x.shape[3] // width
    assert found.shape == (n, c * made.measurements, rows, columns)
    for i in range(n):
        for channel in range(c):
            for m in (0, 1, made.measurements - 1):
                for row in range(rows):
                    for column in range(columns):
                        total = 0.0
                        for a in range(height):
                            for b in range(width):
                                pixel = x[i, channel, row * height + a, column * width + b]
                                total += patterns[m, a, b] * pixel
                        got = float(found[i, channel * made.measurements + m, row, column])
                        assert got == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_adjoint_is_the_adjoint(name):
    made = layer(name)
    x = light(made)
    ax = made.measure(x)
    y = torch.randn(ax.shape, generator=torch.Generator().manual_seed(1))
    assert float((ax * y).sum()) == pytest.approx(float((x * made.adjoint(y)).sum()), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_what_the_network_is_fed_is_the_standardized_measurement(name, training):
    made = ranged(layer(name)).train(training)
    x = light(made)
    y = made.measure(x)
    by_formula = made.measure(x - 0.4) * made.factors().repeat(made.channels).view(1, -1, 1, 1)
    torch.testing.assert_close(made(x), by_formula, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.standardize(y), by_formula, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_estimate_without_data_is_the_least_norm_one(name):
    made = layer(name)
    x = light(made)
    found = made.initial(made.measure(x))
    assert found.shape == x.shape
    if name in ("complements", "odd block"):
        return  # rows that depend on one another, or nearly do: what is measured can't come back exactly
    torch.testing.assert_close(made.measure(found), made.measure(x), rtol=1e-3, atol=1e-2)
    # Of the images with those measurements it is the shortest: a combination of the patterns.
    a = made.operator().double()
    block = found[:1, :1, : made.size[0], : made.size[1]].reshape(-1).double()
    inside = a.T @ torch.linalg.lstsq(a.T, block[:, None]).solution[:, 0]
    torch.testing.assert_close(inside, block, rtol=1e-3, atol=1e-3)


def test_exposures_give_the_measurement_as_a_device_would_compute_it():
    pairs = layer("pairs of exposures")
    x, frames = light(pairs)[:1, 0, :8, :8], pairs.frames().float()
    assert frames.shape == (2 * pairs.measurements, 8, 8)
    read = (frames * x).sum((1, 2))
    torch.testing.assert_close(read[0::2] - read[1::2], pairs.measure(x[None])[0, :, 0, 0])

    mean = layer("mean")
    read = (mean.frames() * x).sum((1, 2))
    assert len(read) == mean.measurements
    assert bool((mean.frames()[0] == 1).all())
    wanted = torch.cat([read[:1], 2 * read[1:] - read[0]])
    torch.testing.assert_close(wanted, mean.measure(x[None])[0, :, 0, 0])


@pytest.mark.parametrize("name", GEOMETRIES)
def test_patterns_that_are_learned_stay_allowed_after_every_step(name):
    made = layer(name, constraint=GEOMETRIES[name].get("constraint"))
    made.learn(estimator="ede", margin=0.1)
    made.train()
    x, wanted = light(made), torch.randn(1, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=0.03)
    before = made.signs()
    for step in range(8):
        made.learning.progress = step / 8
        optimizer.zero_grad()
        (made.reexpand(made(x)) - wanted * x.flip(3)).square().mean().backward()
        optimizer.step()
        made.check(made.signs())
        assert set(made.operator().unique().tolist()) <= {-1.0, 0.0, 1.0}
    in_training = made(x).detach()
    made.eval()
    assert not torch.equal(before, made.signs())
    torch.testing.assert_close(made(x), in_training, rtol=1e-4, atol=1e-5)
    made.fix()
    torch.testing.assert_close(made.train()(x), in_training, rtol=1e-4, atol=1e-5)
    assert not made.weight.requires_grad


def test_the_gradient_reaches_latent_weights_as_through_the_matrix():
    made = SensingLayer(0.25, block=4)
    made.learn(estimator="identity")
    made.train()
    x = light(made)
    made.measure(x).square().sum().backward()
    a = made.operator().detach().requires_grad_()
    blocks = x.unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 16)
    (blocks @ a.T).square().sum().backward()
    torch.testing.assert_close(made.learning.latent.grad.view(4, 16), a.grad, rtol=1e-4, atol=1e-4)


def test_the_keys_of_a_state_are_those_of_the_files_that_there_are():
    made = layer("mean of exact ones", channels=3)
    keys = ["weight", "shift", "inner", "level", "expand.weight", "expand.bias"]
    assert list(made.state_dict()) == keys
    made.learn()
    assert list(made.state_dict()) == [*keys, "learning.latent", "learning.factor"]
    made.fix()
    assert list(made.state_dict()) == keys


def test_files_from_before_differences_were_split_are_taken():
    made = ranged(layer("block"))
    state = {name: value for name, value in made.state_dict().items() if name != "inner"}
    other = layer("block")
    other.load_state_dict(state)
    assert torch.equal(other(light(made)), made(light(made)))
    assert float(other.inner) == pytest.approx(INNER)
    assert "inner" not in state


def test_a_saved_layer_comes_back():
    made = ranged(layer("exact ones"))
    other = layer("exact ones")
    buffer = io.BytesIO()
    torch.save(made.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    x = light(made)
    assert torch.equal(made(x), other(x))
    copied = copy.deepcopy(made)
    copied.learn()
    assert made.learning is None
    made.learn()
    with torch.no_grad():
        copied.learning.latent.neg_()
    assert torch.equal(made.train().signs(), layer("exact ones").signs())


# --- refused ---------------------------------------------------------------------------------------------------------


def repeated(made: SensingLayer) -> torch.Tensor:
    return made.patterns()[:1].repeat(made.measurements, 1, 1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SensingLayer(0.001, block=8), "less than one measurement; give at least 0.0156"),
        (lambda: SensingLayer(10), "10% is 0.1"),
        (lambda: SensingLayer(0.0), "10% is 0.1"),
        (lambda: SensingLayer(float("nan")), "10% is 0.1"),
        (lambda: SensingLayer(0.1, block=0), "a block of 0 pixels"),
        (lambda: SensingLayer(0.1, block=None), "give size="),
        (lambda: SensingLayer(0.1, channels=0), "0 channels"),
        (lambda: SensingLayer(0.1, values="0/1"), "unknown values of patterns"),
        (lambda: SensingLayer(0.1, differential="pairs"), "unknown way of differential measurement"),
        (lambda: SensingLayer(0.1, block=8, constraint=ExactOnes(64)), "64 ones in patterns of 64 pixels"),
        (lambda: SensingLayer(0.14, block=8, constraint=ComplementaryPairs()), "9 patterns can't be complementary"),
        (lambda: layer("block")(torch.rand(1, 1, 8, 7)), "8x7 are smaller than a block of 8x8"),
        (lambda: layer("block")(torch.rand(1, 1, 8, 12)), "8x12 aren't whole blocks of 8x8; pad"),
        (lambda: layer("block")(torch.rand(1, 3, 8, 8)), "takes (N, 1, height, width)"),
        (lambda: layer("block").measure(-torch.rand(1, 1, 8, 8), noise=Noise(5.0)), "can't be negative"),
        (lambda: layer("zeros and ones").measure(-torch.rand(1, 1, 8, 8), noise=Noise(5.0)), "can't be negative"),
        (lambda: layer("block").set_patterns(torch.ones(3, 8, 8)), "give (16, 8, 8)"),
        (lambda: layer("block").set_patterns(torch.rand(16, 8, 8)), "give 0 and 1, or -1 and +1"),
        (lambda: layer("mean").set_patterns(layer("block").patterns().flip(0)), "a first pattern of ones alone"),
        (
            lambda: layer("exact ones").set_patterns(layer("block").patterns()),
            "violate the hardware's constraint: pattern 0 has 64 ones where 20 are needed",
        ),
        (
            lambda: layer("mean of exact ones").set_patterns(layer("mean").patterns()),
            "of the patterns after the first, pattern 0 has 32 ones where 20 are needed",
        ),
        (
            lambda: layer("block", constraint=Incoherent(0.5)).set_patterns(repeated(layer("block"))),
            "violate the hardware's constraint: patterns 0 and 1 have a coherence of 1",
        ),
        (lambda: layer("block").set_range(torch.zeros(16), 0.5), "above 0"),
        (lambda: layer("block").set_light((0.5,) * 3, (0.5,) * 3), "give 1 numbers each"),
        (lambda: Noise(adc_bits=0), "ADC of 0 bits: give a whole number from 1 to 24"),
        (lambda: Noise(adc_bits=25), "ADC of 25 bits"),
        (lambda: Noise(adc_bits=8.5), "ADC of 8.5 bits"),
        (lambda: Noise(photons=0.0), "photons 0"),
        (lambda: Noise(read=-1.0), "read noise -1"),
        (lambda: sensed(nn.Flatten(), torch.rand(2, 16), 0.1), "takes networks of images"),
        (lambda: sensed(nn.Flatten(), torch.rand(2, 1, 8, 8), 0.1, block=16), "smaller than a block of 16x16"),
        (lambda: sensed(nn.Flatten(), torch.rand(2, 1, 8, 8), 0.1, block=0), "a block of 0 pixels"),
        (lambda: sensed(nn.Flatten(), torch.rand(2, 1, 8, 8), 0.1, mean=(0.5,)), "give both, or neither"),
        (lambda: sensed(nn.Flatten(), torch.rand(2, 1, 8, 8), 0.001), "less than one measurement"),
    ],
)
def test_bad_input_is_refused_in_one_line(make, said):
    with pytest.raises((BadInput, UnknownName)) as caught:
        make()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ratio", [0.01, 0.04, 0.3, 0.5])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("block", [16, None])
def test_from_one_to_fifty_percent_it_measures_by_its_matrix_and_back(ratio, channels, block):
    made = SensingLayer(ratio, block=block, size=None if block else (20, 12), channels=channels).eval()
    assert made.measurements == round(ratio * made.pixels)
    x, a = light(made).double(), made.operator().double()
    height, width = made.size
    blocks = x.unfold(2, height, height).unfold(3, width, width).flatten(4)
    wanted = torch.einsum("mp,ncijp->ncmij", a, blocks).flatten(1, 2)
    y = made.measure(x.float())
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-3)
    back = made.adjoint(y)
    torch.testing.assert_close((back.double() * x).sum(), (wanted**2).sum(), rtol=1e-4, atol=0)
    assert made.initial(y).shape == x.shape


def test_the_number_of_measurements_is_the_rounded_share():
    assert [measurements(r, 1024) for r in (0.01, 0.04, 0.1, 0.25, 0.5)] == [10, 41, 102, 256, 512]
    assert measurements(1 / 64, 64) == 1


def test_smooth_rows_are_orthogonal_and_start_with_the_mean():
    rows = smooth_rows(24, 6, 4).double()
    assert torch.allclose(rows[0], rows[0, 0].expand(24))
    gram = rows @ rows.T
    assert (gram - torch.diag(gram.diagonal())).abs().max() < 1e-5


def test_padding_is_on_the_right_and_at_the_bottom():
    x = torch.rand(1, 1, 30, 33)
    found = padded(x, 16)
    assert found.shape == (1, 1, 32, 48)
    assert torch.equal(found[:, :, :30, :33], x)
    assert float(found.sum()) == pytest.approx(float(x.sum()), rel=1e-5)
