"""The sensing layer: laws over geometries, constraints and ways of measuring, against independent slow references."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from compress.errors import BadInput, UnknownName
from compress.export.onnx import serialize
from compress.graph.trace import kind, trace
from compress.prune import prune
from compress.quantize import quantize
from compress.quantize.pattern_constraints import ComplementaryPairs, ExactOnes, FractionOfOnes, Incoherent
from compress.quantize.sensed import SensedClassifier, sensed
from compress.quantize.sensing import Noise, SensingLayer, measurements, padded, smooth_rows
from compress.quantize.sensing_patterns import INNER
from compress.quantize.sensing_start import noise_covariance

GEOMETRIES = {
    "block": {"block": 8},
    "small block": {"block": 4},
    "odd block": {"block": 5},
    "colour": {"block": 8, "channels": 3},
    "field": {"block": None, "size": (6, 10)},
    "colour field": {"block": None, "size": (7, 5), "channels": 3},
    "zeros and ones": {"block": 8, "values": "01"},
    "pairs of exposures": {"block": 8, "values": "01", "differential": True},
    "signed pairs": {"block": 8, "values": "+-1", "differential": True},
    "mean": {"block": 8, "values": "01", "differential": "mean"},
    "exact ones": {"block": 8, "constraint": ExactOnes(20)},
    "mean of exact ones": {"block": 8, "values": "01", "differential": "mean", "constraint": ExactOnes(20)},
    "half of ones": {"block": 8, "values": "01", "constraint": FractionOfOnes(0.5)},
    "complements": {"block": 8, "constraint": ComplementaryPairs(), "values": "01"},
}


def layer(name: str, ratio: float = 0.25, **more) -> SensingLayer:
    return SensingLayer(ratio, **{**GEOMETRIES[name], **more}).eval()


def light(of: SensingLayer, n: int = 2, seed: int = 0) -> torch.Tensor:
    height, width = (side if of.block is None else 2 * side for side in of.size)
    return torch.rand(n, of.channels, height, width, generator=torch.Generator().manual_seed(seed))


def ranged(of: SensingLayer) -> SensingLayer:
    """With factors that differ, and a level."""
    generator = torch.Generator().manual_seed(5)
    of.set_range(0.1 + torch.rand(of.measurements, generator=generator), 0.4)
    return of


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


# --- noise -----------------------------------------------------------------------------------------------------------

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


# --- as a layer of a network -----------------------------------------------------------------------------------------


class Classifier(nn.Module):
    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last(x.mean((2, 3)))


def classifier(channels: int = 1, side: int = 16, **more) -> SensedClassifier:
    torch.manual_seed(0)
    return sensed(Classifier(channels).eval(), torch.rand(2, channels, side, side), 0.25, **more)


@pytest.mark.parametrize("name", ["block", "colour", "field", "zeros and ones", "mean"])
def test_it_traces_as_an_ordinary_convolution_and_onnx_runtime_agrees(name):
    made = ranged(layer(name))
    x = light(made)
    nodes = trace(made, (x,)).nodes
    assert {kind(node) for node in nodes} <= {"conv2d", "cat", "split", "getitem", "slice"}
    assert sum(kind(node) == "conv2d" for node in nodes) == made.channels
    program = io.BytesIO()
    torch.onnx.export(made, (x,), program, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, made(x).detach().numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"channels": 3, "values": "01", "block": 8}], ids=["field", "colour blocks"])
def test_a_classifier_behind_measurements_is_pruned_and_quantized_but_its_patterns_are_not(options):
    made = classifier(**options)
    x = torch.rand(48, made.sensing.channels, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(48) % 5
    with torch.no_grad():
        z = made.sensing(x)
        torch.testing.assert_close(made(x), made.network(made.sensing.reexpand(z)))
    small = prune(made, x[:2], macs=0.9, data=(x, labels), seed=0)
    assert small.model.network.first.out_channels < 8
    assert torch.equal(small.model.sensing.weight, made.sensing.weight)
    assert any(note.where == "sensing" and note.why == "they are made in hardware" for note in small.report.notes)
    for method in ("hessian", "uniform"):
        quantized = quantize(small.model, (x, labels), weight_bits=8, method=method)
        rows = quantized.model.sensing.weight.flatten(1)
        assert torch.equal(quantized.model.sensing.signs(), made.sensing.signs())
        levels = {0.0, 1.0} if made.sensing.values == "01" else {1.0}
        assert all(set((row.abs() / row.abs().max()).tolist()) <= levels for row in rows)
    file = serialize(quantized.state, x[:2])
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: x[:2].numpy()})
    with torch.no_grad():
        wanted = small.model(x[:2]).numpy()
    assert np.abs(found - wanted).max() < 0.1 * max(1.0, np.abs(wanted).max())


def test_a_wrapper_takes_fields_and_blocks_as_the_images_size_says():
    assert classifier().sensing.size == (16, 16)
    assert classifier().sensing.block is None
    large = classifier(side=40)
    assert large.sensing.block == 32
    with torch.no_grad():
        assert large(torch.rand(2, 1, 40, 40)).shape == (2, 5)
