"""A bundle's patterns: written, loaded, simulated, checked, and the network that begins at the measurements."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from compress.errors import CheckFailed
from compress.export import measuring, patterns
from compress.export import onnx as interchange
from compress.export.cut_network import as_read, cut
from compress.export.measuring import WrongPatterns
from compress.networks.sensing import Recursive
from compress.profiling.session import open_session, runner
from compress.quantize import quantize
from compress.quantize.detector import Noise
from compress.quantize.pattern_constraints import ExactOnes
from compress.quantize.sensed import sensed
from compress.quantize.sensing import SensingLayer
from compress.types import State
from tests.rosters import crossed

WAYS: dict[str, dict[str, Any]] = {
    "single": {"values": "01"},
    "pairs": {"values": "+-1", "differential": True},
    "mean": {"values": "01", "differential": "mean"},
    "balanced": {"values": "+-1"},
}


def layer_of(how: str, block: int | None = 8, channels: int = 1, ratio: float = 0.2, **more: Any) -> SensingLayer:
    made = SensingLayer(ratio, block=block, size=(12, 10), channels=channels, **WAYS[how], **more).eval()
    generator = torch.Generator().manual_seed(3)
    made.set_range(torch.rand(made.measurements, generator=generator) + 0.1, 0.3)
    return made


def written(tmp_path: Path, layer: SensingLayer, image: tuple[int, int, int], **normal: Any) -> measuring.Patterns:
    channels = image[0]
    mean, std = normal.get("mean", (0.0,) * channels), normal.get("std", (1.0,) * channels)
    return patterns.write(layer, tmp_path / "patterns", image, mean, std)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("block", "channels", "size"), [(8, 1, (24, 16)), (None, 1, (12, 10)), (8, 3, (8, 16))])
def test_the_simulator_measures_exactly_what_the_layer_does(
    how: str, block: int | None, channels: int, size: tuple[int, int], tmp_path: Path
) -> None:
    layer = layer_of(how, block, channels)
    found = written(tmp_path, layer, (channels, *size))
    assert np.array_equal(found.values, layer.patterns().numpy())
    assert np.array_equal(found.frames, layer.frames().numpy())
    # Multiples of 1/256: their sums are exact in float32, too.
    light = torch.randint(0, 257, (1, channels, *size), generator=torch.Generator().manual_seed(0)).float() / 256
    y = found.measure(light[0].numpy())
    assert np.array_equal(y, layer.measure(light)[0].double().numpy())
    np.testing.assert_allclose(found.standardize(y), layer(light)[0].numpy(), rtol=1e-4, atol=1e-4)
    assert found.full_frame(0).shape == tuple(np.multiply(found.about["tiles"], layer.size))


def test_light_that_the_network_takes_normalized(tmp_path: Path) -> None:
    layer = layer_of("single", channels=3)
    mean, std = (0.5, 0.25, 0.125), (0.5, 1.0, 2.0)
    layer.set_light(mean, std)
    found = written(tmp_path, layer, (3, 16, 8), mean=mean, std=std)
    light = torch.rand(1, 3, 16, 8, generator=torch.Generator().manual_seed(1))
    normal = (light - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    fed = found.standardize(found.measure(light[0].numpy()))
    np.testing.assert_allclose(fed, layer(normal)[0].numpy(), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(patterns.measured(found, normal[0].numpy()), fed, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("how", WAYS)
def test_noise_has_the_spread_that_the_layers_has(how: str, tmp_path: Path) -> None:
    layer = layer_of(how)
    found = written(tmp_path, layer, (1, 64, 64))
    light = torch.full((1, 1, 64, 64), 0.5)
    exact = found.measure(light[0].numpy())
    photons, read = 50.0, 20.0
    errors = np.stack(
        [found.measure(light[0].numpy(), photons, read, generator=np.random.default_rng(s)) - exact for s in range(40)]
    )
    generator = torch.Generator().manual_seed(0)
    noise = Noise(photons, read)
    theirs = np.stack([layer.measure(light, noise=noise, generator=generator)[0].numpy() - exact for _ in range(40)])
    # 64 blocks, 40 draws: a variance known to 3%; a mean to a fiftieth of the spread.
    ours, other = errors.var((0, 2, 3)), theirs.var((0, 2, 3))
    np.testing.assert_allclose(ours, other, rtol=0.25)
    assert np.abs(errors.mean((0, 2, 3)) / np.sqrt(ours)).max() < 0.1


def test_shot_and_read_noise_are_their_formula(tmp_path: Path) -> None:
    found = written(tmp_path, layer_of("single"), (1, 64, 64))
    light = np.full((1, 64, 64), 0.25)
    exact = found.measure(light)[1, 0, 0]
    draws = [found.measure(light, 80.0, 12.0, generator=np.random.default_rng(s))[1] for s in range(60)]
    assert np.var(draws) == pytest.approx(exact / 80 + (12 / 80) ** 2, rel=0.1)


def test_an_adc_rounds_to_its_steps_and_clips(tmp_path: Path) -> None:
    found = written(tmp_path, layer_of("single"), (1, 8, 8))
    light = np.random.default_rng(0).random((8, 8))
    full = (found.values > 0).reshape(len(found.values), -1).sum(1).max()
    read = found.measure(light, adc_bits=4)
    np.testing.assert_allclose(read / (full / 15), np.round(read / (full / 15)), atol=1e-9)
    assert np.abs(read - found.measure(light)).max() <= full / 30 + 1e-9
    assert found.measure(3 * light, adc_bits=4).max() <= full


@pytest.mark.parametrize("how", WAYS)
def test_readings_of_single_exposures_are_combined(how: str, tmp_path: Path) -> None:
    found = written(tmp_path, layer_of(how), (1, 8, 8))
    light = np.random.default_rng(0).integers(0, 256, (8, 8)) / 256
    ones = found.frames.astype(float).reshape(len(found.frames), -1) @ light.ravel()
    if how == "balanced":
        ones = 2 * ones - light.sum()  # both halves, subtracted as they are read
    assert np.array_equal(found.combine(ones), found.measure(light).ravel())


@pytest.mark.parametrize("how", WAYS)
def test_exposures_in_another_order_and_of_another_time_measure_the_same(how: str, tmp_path: Path) -> None:
    layer = layer_of(how)
    found = written(tmp_path, layer, (1, 8, 8))
    light = np.random.default_rng(0).integers(0, 256, (8, 8)) / 256
    wanted = found.measure(light)
    folder = tmp_path / "patterns"
    order = np.random.default_rng(1).permutation(len(found.frames))
    about = json.loads((folder / "patterns.json").read_text())
    sequence = [about["frames"]["sequence"][i] for i in order]
    sequence[2]["exposure"] = 4.0
    about["frames"]["sequence"] = sequence
    (folder / "patterns.json").write_text(json.dumps(about))
    (folder / "frames.bin").write_bytes(np.packbits(found.frames[order], axis=2).tobytes())
    for number, frame in enumerate(found.frames[order]):
        Image.fromarray(frame * np.uint8(255)).convert("1").save(folder / "frames" / f"{number:05d}.png")
    again = measuring.load(folder)
    readings = again.frames.reshape(len(order), -1) @ light.ravel()
    if how == "balanced":
        readings = 2 * readings - light.sum()
    readings[2] *= 4
    assert np.array_equal(again.combine(readings), wanted.ravel())
    # So many photons that their noise is below what is compared.
    np.testing.assert_allclose(again.measure(light, photons=1e14), wanted, atol=1e-5)
    # Four times the light, a quarter of the variance.
    pattern = sequence[2]["pattern"]
    others = [i for i, each in enumerate(sequence) if each["pattern"] == pattern and i != 2]
    draws = [again.measure(light, 50.0, generator=np.random.default_rng(s))[pattern, 0, 0] for s in range(1500)]
    if how == "balanced":
        variance = light.sum() / 50 / 4
    else:
        shown = again.frames.reshape(len(order), -1) @ light.ravel() / 50
        variance = shown[2] / 4 + sum(shown[i] for i in others)
    if how == "mean" and pattern:
        first = next(i for i, each in enumerate(sequence) if each["pattern"] == 0)
        variance = 4 * variance + shown[first]
    assert np.var(draws) == pytest.approx(variance, rel=0.15)


def test_frames_are_png_files_of_one_bit_in_the_order_of_the_sequence(tmp_path: Path) -> None:
    layer = layer_of("pairs")
    written(tmp_path, layer, (1, 8, 8))
    about = json.loads((tmp_path / "patterns" / "patterns.json").read_text())
    sequence = about["frames"]["sequence"]
    assert [each["complement"] for each in sequence] == [False, True] * layer.measurements
    packed = np.unpackbits(np.fromfile(tmp_path / "patterns" / "frames.bin", np.uint8).reshape(-1, 8, 1), axis=2)
    for number, exposure in enumerate(sequence):
        with Image.open(tmp_path / "patterns" / "frames" / f"{number:05d}.png") as image:
            assert image.mode == "1"
            shown = np.array(image)
        wanted = (layer.signs()[exposure["pattern"]] > 0).view(8, 8).numpy() != exposure["complement"]
        assert np.array_equal(shown, wanted)
        assert np.array_equal(packed[number].astype(bool), wanted)


def test_the_same_layer_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / name, layer_of("single"), (1, 8, 8))
    one, two = (sorted((tmp_path / name).rglob("*.*")) for name in ("a", "b"))
    assert len(one) > 10
    assert [p.read_bytes() for p in one if p.is_file()] == [p.read_bytes() for p in two if p.is_file()]


def test_the_program_in_the_bundle_needs_numpy_alone(tmp_path: Path) -> None:
    layer = layer_of("mean")
    found = written(tmp_path, layer, (1, 16, 16))
    program = tmp_path / "patterns" / "measure.py"
    blocked = "import sys; sys.modules.update(dict.fromkeys(('compress', 'torch', 'PIL', 'onnx', 'scipy')));"
    run = f"{blocked} sys.argv = sys.argv[1:]; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"

    def said(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-c", run, str(program), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert said().stdout.splitlines()[-1] == "ok"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)
    np.save(tmp_path / "image.npy", pixels)
    assert said(str(tmp_path / "image.npy")).returncode == 0
    assert np.array_equal(np.load(tmp_path / "image.measured.npy"), found.measure(pixels / 255))
    noisy = said(str(tmp_path / "image.npy"), "--photons", "100", "--read", "2", "--adc-bits", "12", "--seed", "4")
    assert noisy.returncode == 0
    wanted = found.measure(pixels / 255, 100.0, 2.0, 12, np.random.default_rng(4))
    assert np.array_equal(np.load(tmp_path / "image.measured.npy"), wanted)
    refused = said(str(tmp_path / "image.npy"), "--adc-bits", "99")
    assert (refused.returncode, refused.stderr) == (4, "error: ADC of 99 bits: give 1 to 24\n")


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "patterns.json"
        about = json.loads(path.read_text())
        change(about)
        path.write_text(json.dumps(about))

    return edit


def saved(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, change(np.load(folder / name)))


def flipped(values: Any) -> Any:
    values = values.copy()
    values[2, 0, 0] = 1 - values[2, 0, 0]
    return values


def picture(mode: str, size: tuple[int, int] = (8, 8)) -> Callable[[Path], None]:
    return lambda folder: Image.new(mode, size).save(folder / "frames" / "00003.png")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no description": (lambda f: (f / "patterns.json").unlink(), "patterns.json is missing"),
    "cut description": (lambda f: (f / "patterns.json").write_text("{"), "patterns.json is damaged"),
    "other schema": (edited(lambda about: about.update(schema=9)), r"isn't what this program reads \(schema 9\)"),
    "no patterns": (lambda f: (f / "patterns.npy").unlink(), "patterns.npy is missing"),
    "a missing frame": (lambda f: (f / "frames" / "00003.png").unlink(), "frames/00003.png is missing"),
    "eight bits": (picture("L"), "frames/00003.png has 8 bits a pixel; give a greyscale PNG of 1 bit"),
    "colour": (picture("RGB"), "frames/00003.png has 8 bits a pixel"),
    "another size": (picture("1", (9, 8)), "frames/00003.png is 9x8, the patterns are 8x8"),
    "another frame": (picture("1"), "frames/00003.png isn't pattern 3"),
    "no png": (lambda f: (f / "frames" / "00003.png").write_bytes(b"no"), "frames/00003.png is damaged"),
    "packed too short": (lambda f: (f / "frames.bin").write_bytes(b"\0" * 7), "frames.bin holds 7 bytes, 104 are"),
    "packed otherwise": (lambda f: (f / "frames.bin").write_bytes(b"\0" * 104), "frame 0 isn't pattern 0"),
    "another shape": (saved("patterns.npy", lambda v: v[:, :, :-1]), r"shape \(13, 8, 7\), .* says \(13, 8, 8\)"),
    "another type": (saved("patterns.npy", lambda v: v.astype(float)), "patterns.npy holds float64, not int8"),
    "other values": (saved("patterns.npy", lambda v: v + 1), "holds 2: the patterns have the values 0 and 1"),
    "a constraint": (saved("patterns.npy", flipped), r"pattern 2 has 3[13] ones, its hardware needs 32"),
    "no range": (saved("range.npy", lambda v: v * np.nan), "range.npy must hold a finite scale"),
    "a pattern that isn't there": (
        edited(lambda about: about["frames"]["sequence"][1].update(pattern=99)),
        "exposure 1 shows pattern 99, there are 13",
    ),
    "a pattern that is shown twice": (
        edited(lambda about: about["frames"]["sequence"][1].update(pattern=0)),
        "exposure 1 shows pattern 0, which isn't needed or not again",
    ),
    "a complement that nobody measures": (
        edited(lambda about: about["frames"]["sequence"][1].update(complement=True, sign=-1)),
        "exposure 1 shows the complement of pattern 1, which isn't needed",
    ),
    "another sign": (
        edited(lambda about: about["frames"]["sequence"][1].update(sign=-1)),
        "isn't what this program reads",
    ),
    "no time": (
        edited(lambda about: about["frames"]["sequence"][1].update(exposure=0)),
        "isn't what this program reads",
    ),
    "a pattern that is never shown": (
        lambda f: (
            edited(lambda about: about["frames"]["sequence"].pop())(f),
            (f / "frames.bin").write_bytes((f / "frames.bin").read_bytes()[:-8]),
        ),
        "pattern 12 is never shown",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    written(tmp_path, layer_of("single", constraint=ExactOnes(32)), (1, 8, 8))
    change, said = DAMAGE[name]
    measuring.load(tmp_path / "patterns")
    change(tmp_path / "patterns")
    with pytest.raises(WrongPatterns, match=said) as caught:
        measuring.load(tmp_path / "patterns")
    assert "\n" not in str(caught.value)


def classifier(channels: int, block: int | None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net = nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )
    return sensed(net, torch.rand(2, channels, 18, 16), 0.2, block=block).eval()


def reconstruction(channels: int = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        layer = SensingLayer(0.25, block=8, channels=channels)
        layer.set_range(torch.full((16,), 0.1), 0.5)  # some lie outside the inner range
        return Recursive(layer, width=8, recursions=2, depth=1).eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "classes from the whole field": (lambda: classifier(1, None), (1, 18, 16)),
    "classes from colour blocks": (lambda: classifier(3, 8), (3, 18, 16)),
    "images": (reconstruction, (1, 16, 24)),
    "colour images": (lambda: reconstruction(3), (3, 16, 24)),
}


@crossed(("name", "bits"), NETWORKS, [32, 8])
def test_the_network_from_the_measurements_gives_what_the_whole_does(name: str, bits: int, tmp_path: Path) -> None:
    make, shape = NETWORKS[name]
    x = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1))
    state = State(make())
    if bits == 8:
        state = quantize(make(), x, weight_bits=8, method="uniform", target="cpu").state
    file = tmp_path / "model.onnx"
    interchange.export(state, x[:2], file)
    made = patterns.export(state.model, tmp_path, file, shape, (0.0,) * shape[0], (1.0,) * shape[0])
    assert made is not None
    assert not isinstance(made.cut, str), made.cut
    inputs = x.numpy()
    outputs = runner(open_session(file))(inputs)
    said, difference = patterns.check(tmp_path, inputs, outputs, lambda path: runner(open_session(path)))
    assert "are what model.onnx measures with" in said
    assert difference < (1e-5 if bits == 32 else 0.05)
    # Other patterns than the file's are found.
    values = np.load(tmp_path / "patterns" / "patterns.npy")
    found = measuring.load(tmp_path / "patterns")
    found.values = values[::-1]
    again = cut(file, found)
    assert not isinstance(again, str)
    assert "isn't what" in (patterns.differing(found, again.weights) or "")
    (tmp_path / "patterns" / "network.onnx").write_bytes(b"")
    with pytest.raises(CheckFailed, match=r"network.onnx isn't model.onnx from the measurements on"):
        patterns.check(tmp_path, inputs, outputs, lambda path: runner(open_session(path)))


@pytest.mark.parametrize("bits", [32, 8])
def test_what_is_measured_is_the_image_as_the_file_reads_it(bits: int, tmp_path: Path) -> None:
    """On the grid of its first QuantizeLinear, as ONNX Runtime puts it there."""
    x = torch.rand(6, 1, 16, 24, generator=torch.Generator().manual_seed(1))
    state = State(reconstruction())
    if bits == 8:
        state = quantize(reconstruction(), x, weight_bits=8, method="uniform", target="cpu").state
    file = tmp_path / "model.onnx"
    interchange.export(state, x[:2], file)
    outside = 3 * x.numpy() - 1
    found = as_read(file, outside)
    if bits == 32:
        assert found is outside
        return
    model = onnx.load(file)
    rounded = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    back = next(node for node in model.graph.node if rounded.output[0] in node.input)
    assert rounded.input[0] == model.graph.input[0].name
    model.graph.output.append(onnx.helper.make_tensor_value_info(back.output[0], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (wanted,) = session.run([back.output[0]], {rounded.input[0]: outside})
    np.testing.assert_array_equal(found, wanted)


def test_a_network_that_reads_the_image_elsewhere_cant_be_cut(tmp_path: Path) -> None:
    class Sees(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sensing = SensingLayer(0.25, block=8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.sensing.reexpand(self.sensing(x)) + x

    file = tmp_path / "model.onnx"
    interchange.export(State(Sees().eval()), torch.rand(2, 1, 8, 8), file)
    made = patterns.export(Sees().eval(), tmp_path, file, (1, 8, 8), (0.0,), (1.0,))
    assert made is not None
    assert isinstance(made.cut, str)
    assert "reads the image elsewhere too" in made.cut


def test_networks_without_patterns_get_none(tmp_path: Path) -> None:
    assert patterns.export(nn.Linear(2, 2), tmp_path, tmp_path / "x", (1, 2, 2), (0.0,), (1.0,)) is None
    assert not (tmp_path / "patterns").exists()
