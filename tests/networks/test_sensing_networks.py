"""The reconstruction networks: they start at the closed form, learn, and pass through every step of the toolkit."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from compress.errors import BadInput, BadWeights
from compress.export.onnx import serialize
from compress.networks.sensing import LinearReconstruction, Reconstruction, Recursive, Unfolded, sensing
from compress.networks.sensing_training import Patches, Schedule, train
from compress.networks.sensing_weights import load_packed, packed
from compress.prune import prune
from compress.quantize import quantize
from compress.quantize.pattern_constraints import ExactOnes
from compress.quantize.sensing import Noise, SensingLayer
from compress.quantize.sensing_patterns import INNER
from compress.quantize.sensing_start import closed_form, start
from tests.rosters import some
from tests.support import exact_here

NETWORKS = {
    "linear": LinearReconstruction,
    "recursive": lambda layer: Recursive(layer, width=8, recursions=2, depth=2),
    "unfolded": lambda layer: Unfolded(layer, width=8, phases=2, depth=1),
}
LEARNED = [name for name in NETWORKS if name != "linear"]


def images(count: int = 12, side: int = 32, seed: int = 0) -> list[torch.Tensor]:
    """Smooth ones with edges, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, side // 4, side // 4, generator=generator)
    fine = F.interpolate(coarse, scale_factor=4, mode="bilinear")
    return list(torch.where(fine > 0.6, 0.9, fine)[:, 0])


def network(name: str, seed: int = 0, **more):
    layer = SensingLayer(0.2, block=8, **more)
    start(layer, images())
    torch.manual_seed(seed)
    return NETWORKS[name](layer).eval()


def stirred(made: nn.Module) -> nn.Module:
    """As after training: no convolution of zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.mark.parametrize("name", NETWORKS)
def test_an_untrained_network_is_the_linear_estimate(name):
    made = network(name)
    x = torch.stack(images())[:, None]
    with torch.no_grad():
        torch.testing.assert_close(made(x), made.sensing.initial(made.sensing.measure(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_recovers_from_what_the_hardware_measures(name):
    made = stirred(network(name))
    x = torch.stack(images())[:, None]
    with torch.no_grad():
        torch.testing.assert_close(made.from_measurements(made.sensing.measure(x)), made(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_images_that_are_no_whole_blocks_are_padded_and_cropped(name):
    made = stirred(network(name))
    x = torch.rand(2, 1, 19, 30, generator=torch.Generator().manual_seed(2))
    black = torch.zeros(2, 1, 24, 32)
    black[:, :, :19, :30] = x
    with torch.no_grad():
        torch.testing.assert_close(made(x), made(black)[:, :, :19, :30])
    with pytest.raises(BadInput, match="smaller than a block of 8x8"):
        made(torch.rand(1, 1, 7, 30))


@pytest.mark.parametrize("name", LEARNED)
def test_what_was_measured_is_put_back(name):
    """As the linear estimate starts, the result has its measurements, whatever the convolutions do."""
    made = network(name)
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            if "tail" in key:
                parameter += 0.05
        x = torch.stack(images())[:, None]
        without = made.sensing.reexpand(made.sensing(x))
        assert (made(x) - without).abs().max() > 1e-3
        wanted, found = made.sensing.exact(without), made.sensing.exact(made(x))
        assert (found - wanted).square().mean() < 1e-4 * wanted.square().mean()


def test_the_recursive_networks_convolutions_read_images_about_the_mean():
    """Light that measures nothing is zero to them, as the outside of the border is, and comes back as e."""
    made = network("recursive")
    seen: list[torch.Tensor] = []
    made.down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    grey = torch.full((1, 1, 16, 24), float(made.sensing.level))
    with torch.no_grad():
        recovered = made(grey)
    assert len(seen) == 2
    assert max(float(each.abs().max()) for each in seen) < 1e-5
    blocks = F.pixel_unshuffle(recovered, 8)
    assert made.sensing.expand.bias is not None
    torch.testing.assert_close(blocks, made.sensing.expand.bias.detach().view(1, -1, 1, 1).expand_as(blocks))


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("training", [False, True])
def test_settling_splits_differences_at_their_quantile_and_changes_nothing_else(name, training):
    made = stirred(network(name)).train(training)
    x = torch.stack(images())[:, None]
    changed = copy.deepcopy(made)
    changed.settle(x)
    assert changed.training == training
    found, layer = [], made.eval().sensing
    difference = layer.difference_parts

    def kept(lacking: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found.append(layer.difference(lacking).flatten())
        return difference(lacking)

    layer.difference_parts = kept
    with torch.no_grad():
        before = made(x)
        torch.testing.assert_close(changed.eval()(x), before, atol=1e-5, rtol=1e-5)
    assert len(found) == 2
    sizes = torch.cat(found).abs()
    assert float(changed.sensing.inner) == float(sizes.sort().values[round(0.998 * len(sizes)) - 1])


def test_settling_what_puts_nothing_back_leaves_it():
    made = network("linear")
    made.settle(torch.stack(images())[:, None])
    assert float(made.sensing.inner) == pytest.approx(INNER)


def test_a_network_that_recovers_nothing_cant_be_made():
    with pytest.raises(TypeError, match="recovered"):
        type("Incomplete", (Reconstruction,), {})(SensingLayer(0.2, block=8))


def test_the_recursions_share_their_weights():
    def count(recursions: int) -> int:
        made = Recursive(SensingLayer(0.2, block=8), recursions=recursions)
        return sum(parameter.numel() for parameter in made.parameters())

    assert count(1) == count(4)


@pytest.mark.parametrize("name", LEARNED)
def test_colour_images_are_recovered_together(name):
    layer = SensingLayer(0.2, block=8, channels=3)
    start(layer, [torch.stack(images(3, seed=s))[None][0] for s in range(4)])
    torch.manual_seed(0)
    made = NETWORKS[name](layer).eval()
    with torch.no_grad():
        assert made(torch.rand(2, 3, 16, 24)).shape == (2, 3, 16, 24)


@pytest.mark.parametrize("name", LEARNED)
def test_training_lowers_the_error_and_leaves_patterns_that_arent_learned(name):
    made = network(name)
    data = images(24)
    x = torch.stack(data)[:, None]
    with torch.no_grad():
        before = float((made(x) - x).square().mean())
    schedule = Schedule(steps=100, batch=4, patch=32, lr=3e-3, half=False, averaging=0.9, pattern_rate=0.0)
    found = train(made, data, schedule)
    with torch.no_grad():
        after = float((made(x) - x).square().mean())
    assert after < 0.95 * before
    assert found.turned == 0
    assert not made.training


def test_patterns_are_learned_and_then_fixed():
    made = network("recursive")
    found = train(made, images(), Schedule(steps=10, batch=2, patch=16, half=False, pattern_rate=10.0, margin=0.02))
    assert 0 < found.turned < 0.5
    assert made.sensing.learning is None
    assert not made.sensing.weight.requires_grad


def test_the_linear_estimate_follows_the_patterns():
    made = network("recursive", values="01", noise=Noise(photons=100.0))
    found = start(made.sensing, images())
    schedule = Schedule(
        steps=12, batch=2, patch=16, half=False, pattern_rate=10.0, estimate_rate=0.0, averaging=0.0, margin=0.02
    )
    assert train(made, images(), schedule, statistics=found).turned > 0
    wanted = closed_form(made.sensing, found)
    torch.testing.assert_close(made.sensing.expand.weight[:, :, 0, 0].detach(), wanted, rtol=1e-2, atol=1e-3)


def test_training_with_a_constraint_and_noise_keeps_the_patterns_allowed():
    made = network("recursive", constraint=ExactOnes(30), values="01", noise=Noise(photons=50.0))
    train(made, images(), Schedule(steps=6, batch=2, patch=16, half=False, pattern_rate=20.0))
    assert ((made.sensing.patterns() > 0).sum((1, 2)) == 30).all()


def test_the_same_seed_gives_the_same_network_interrupted_or_not(tmp_path, monkeypatch):
    schedule = Schedule(steps=8, batch=2, patch=16, half=False, pattern_rate=5.0)
    whole, broken = network("recursive", noise=Noise(photons=50.0)), network("recursive", noise=Noise(photons=50.0))
    train(whole, images(), schedule, seed=3)
    path = tmp_path / "state.pt"

    class Stopped(Exception):
        pass

    from compress.networks import sensing_training

    advance = sensing_training._State.advance

    def until_five(self, x, half):
        if self.step == 5:
            raise Stopped
        advance(self, x, half)

    monkeypatch.setattr(sensing_training._State, "advance", until_five)
    with pytest.raises(Stopped):
        train(broken, images(), schedule, seed=3, checkpoint=path, every_s=0.0)
    assert path.is_file()
    monkeypatch.setattr(sensing_training._State, "advance", advance)
    again = network("recursive", noise=Noise(photons=50.0))
    train(again, images(), schedule, seed=3, checkpoint=path)
    assert not path.exists()
    for (name, a), (_, b) in zip(whole.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_another_trainings_checkpoint_is_not_gone_on_from(tmp_path):
    path = tmp_path / "state.pt"
    schedule = Schedule(steps=2, batch=2, patch=16, half=False)
    torch.save({"where": {**dataclasses.asdict(schedule), "seed": 1}, "step": 1}, path)
    train(network("recursive"), images(), schedule, seed=0, checkpoint=path)


def test_patches_are_parts_of_the_images_turned_and_mirrored():
    image = torch.arange(100.0).view(10, 10)
    patches = Patches([image, torch.zeros(3, 3)], 4, 1, seed=0)(200)
    known = set()
    for top in range(7):
        for left in range(7):
            part = image[top : top + 4, left : left + 4]
            known |= {tuple(torch.rot90(p, k).flatten().tolist()) for p in (part, part.flip(0)) for k in range(4)}
    found = {tuple(patch.flatten().tolist()) for patch in patches}
    assert found <= known
    assert len(found) > 100
    assert torch.equal(Patches([image], 4, 1, seed=0)(5), Patches([image], 4, 1, seed=0)(5))


def test_bad_training_is_refused():
    with pytest.raises(BadInput, match="no image has 1 channels and 64x64 pixels"):
        train(network("recursive"), images(), Schedule(steps=1, patch=64))
    with pytest.raises(BadInput, match="aren't whole blocks of 8"):
        train(network("recursive"), images(), Schedule(steps=1, patch=12))


@some("name", LEARNED, quick=["recursive"])
@pytest.mark.slow
def test_it_is_pruned_quantized_and_exported_with_its_patterns_as_they_are(name):
    made = stirred(network(name))
    x = torch.stack(images(24))[:, None]
    small = prune(made, x[:2], macs=0.9, data=(x, x), seed=0).model
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in made.parameters())
    assert torch.equal(small.sensing.weight, made.sensing.weight)
    found = quantize(small, (x, x), weight_bits=8)
    rows = found.model.sensing.weight.flatten(1)
    assert torch.equal(found.model.sensing.signs(), made.sensing.signs())
    assert torch.equal(rows.abs(), rows.abs().amax(1, keepdim=True).expand_as(rows))
    session = onnxruntime.InferenceSession(exact_here(serialize(found.state, x[:2])))
    (given,) = session.run(None, {session.get_inputs()[0].name: x[:2].numpy()})
    with torch.no_grad():
        wanted = small(x[:2]).numpy()
    assert np.square(given - wanted).mean() < 0.1 * np.square(wanted - x[:2].numpy()).mean() + 1e-4


# --- the built-in network --------------------------------------------------------------------------------------------


def test_packed_weights_come_back_with_their_patterns_exact(tmp_path):
    made = stirred(network("recursive"))
    made.sensing.set_inner(0.25)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(packed(made))
    other = network("recursive", seed=7)
    load_packed(other, path)
    assert torch.equal(other.sensing.patterns(), made.sensing.patterns())
    assert torch.equal(other.sensing.inner, made.sensing.inner)
    x = torch.stack(images())[:, None]
    with torch.no_grad():
        assert (other(x) - made(x)).abs().max() < 0.02
    assert len(path.read_bytes()) < 0.5 * 4 * sum(value.numel() for value in made.state_dict().values())


def test_packed_weights_of_another_ratio_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(packed(network("recursive")))
    layer = SensingLayer(0.3, block=8)
    with pytest.raises(BadWeights, match="13 patterns"):
        load_packed(NETWORKS["recursive"](layer), path)


@pytest.mark.parametrize("bits", [torch.zeros(13, 8), torch.zeros(13, dtype=torch.uint8)], ids=["real", "a row"])
def test_packed_weights_whose_patterns_are_no_bits_are_refused(bits, tmp_path):
    made = network("recursive")
    path = tmp_path / "weights.safetensors"
    path.write_bytes(packed(made))
    save_file({**load_file(path), "sensing.bits": bits}, path)
    with pytest.raises(BadWeights, match="it holds no patterns"):
        load_packed(made, path)


def test_the_builtin_network_takes_a_ratio_and_channels():
    made = sensing(ratio=0.04)
    assert made.sensing.measurements == 41
    assert sensing(ratio=0.04, in_channels=3).sensing.channels == 3
    with pytest.raises(BadInput, match="10% is 0.1"):
        sensing(ratio=4)
