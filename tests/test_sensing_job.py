"""``--sensing`` in the main job: recognition and reconstruction from measurements, the bundle, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import compress
from compress import models
from compress.cli.values import PIXELS
from compress.data import as_images, from_python
from compress.errors import BadData, BadInput, RunFolderError
from compress.export import measuring
from compress.metric import PSNR
from compress.profiling import verify
from compress.report.markdown import front_markdown
from compress.results import Front
from tests.small_jobs import Log, device

QUICK: dict[str, Any] = {"prune": "none", "quantize": "uniform", "samples": 16, "candidates": 1, "cache": False}


def network() -> nn.Module:
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(*layers, nn.Linear(8, 3)).eval()


def stripes() -> tuple[torch.Tensor, torch.Tensor]:
    """Images 12x12 of three classes: dark, bright, half of each."""
    labels = torch.arange(60) % 3
    images = 0.2 * torch.rand(60, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    images[labels == 1] += 0.6
    images[labels == 2, :, :, :6] += 0.6
    return images, labels


def photographs(folder: Path, count: int = 8, size: tuple[int, int] = (64, 64)) -> Path:
    folder.mkdir(parents=True)
    g = np.random.default_rng(0)
    for i in range(count):
        coarse = g.integers(0, 256, (4, 4)).astype(np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def test_recognition_from_measurements(tmp_path: Path) -> None:
    given = stripes()
    log = Log()
    front = compress.run(
        network(), given, target=device(), sensing=0.1, epochs=1, out=tmp_path / "run", watcher=log, **QUICK
    )
    assert log.messages.count("patterns in closed form") == 1  # once for all candidates
    (candidate,) = front.candidates
    for each in (front.baseline, candidate):
        assert each.records[0].stage == "sense"
        assert each.records[0].settings == {"ratio": 0.1, "epochs": 1, "begin": True}
        assert each.layers[0].name == "sensing"
    assert candidate.layers[0].weight_bits == 1
    folders = [tmp_path / "run" / "candidates" / name for name in (front.baseline.id, candidate.id)]
    shown = [measuring.load(folder / "patterns") for folder in folders]
    # 14 patterns of 12x12 pixels and their complements; the optics are the same for every candidate.
    assert shown[0].values.shape == (14, 12, 12)
    assert len(shown[0].frames) == 28
    assert np.array_equal(shown[0].values, shown[1].values)
    found = verify.verify(folders[1])
    assert found.ok, found.failures
    assert "14 patterns of 12x12 in 28 frames" in next(c.detail for c in found.checks if c.name == "patterns")
    assert "patterns/network.onnx" in (folders[1] / "README.md").read_text()
    # On the device: what the hardware measured of a golden input, and the network behind it.
    with np.load(folders[1] / "golden.npz") as golden:
        x, outputs = golden["inputs"], golden["outputs"]
    np.save(tmp_path / "y.npy", shown[1].measure(x[0] / 255))
    command = [sys.executable, str(folders[1] / "run.py"), "--measurements", str(tmp_path / "y.npy")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.split(":")[0] == str(outputs[0].argmax())
    np.save(tmp_path / "y.npy", np.zeros((3, 1, 1)))
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr == "error: y.npy: the measurements are (3, 1, 1), the network takes (14, 1, 1)\n"
    frame = folders[1] / "patterns" / "frames" / "00000.png"
    frame.rename(tmp_path / "frame.png")
    damaged = subprocess.run(command, capture_output=True, text=True, check=False)
    (tmp_path / "frame.png").rename(frame)
    assert (damaged.returncode, damaged.stderr) == (4, "error: patterns: frames/00000.png is missing\n")
    configuration = json.loads((tmp_path / "run" / "run.json").read_text())["configuration"]
    assert configuration["sensing"] == 0.1
    with pytest.raises(RunFolderError, match="sensing"):
        compress.run(
            network(), given, target=device(), sensing=0.2, epochs=1, out=tmp_path / "run", resume=True, **QUICK
        )
    # A pattern that was changed is found, though its hash was changed along.
    values = np.load(folders[1] / "patterns" / "patterns.npy")
    values[0] *= -1
    np.save(folders[1] / "patterns" / "patterns.npy", values)
    assert any("patterns.npy has been changed" in failure for failure in verify.verify(folders[1]).failures)


@pytest.fixture(scope="module")
def reconstructed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Front, Path]:
    root = tmp_path_factory.mktemp("sensing")
    folder = photographs(root / "photos", size=(96, 64))
    out = root / "run"
    options = {**QUICK, "quantize": "none"}
    return compress.run(
        "sensing", str(folder), target=device(), sensing=0.02, epochs=0, image_size=(64, 64), out=out, **options
    ), out


def test_reconstruction_is_measured_in_decibels(reconstructed: tuple[Front, Path]) -> None:
    front, out = reconstructed
    notes = [note.why for note in front.baseline.records[0].notes]
    assert notes == ["in closed form, not trained: --epochs trains them with the network"]
    accuracy = front.baseline.accuracy
    assert accuracy is not None
    assert front.metric == PSNR
    assert accuracy.n == 2  # a fifth of eight, each of two tiles, compared as whole images
    assert front.dataset.n_eval == 4
    assert 10 < accuracy.value < 60
    assert accuracy.ssim is not None
    assert "SSIM" in front_markdown(front)
    assert (
        f"PSNR (dB) of this very file on 2 inputs of {front.dataset.name}, measured in onnxruntime:\n"
        f"{accuracy.value:.2f} (95% interval {accuracy.low:.2f} to {accuracy.high:.2f}), SSIM {accuracy.ssim:.3f}.\n"
    ) in (out / "candidates" / front.baseline.id / "README.md").read_text()
    assert "PSNR (dB)" in (out / "front.svg").read_text()
    written = json.loads((out / "front.json").read_text())["baseline"]["accuracy"]
    assert (written["metric"], written["ssim"]) == ("psnr_db", accuracy.ssim)
    report = (out / "report.html").read_text()
    assert "cut into tiles" in report
    assert "in closed form, not trained" in report


def test_a_reconstruction_bundle_is_verified_on_its_images(reconstructed: tuple[Front, Path]) -> None:
    front, out = reconstructed
    found = verify.verify(out / "candidates" / front.baseline.id)
    assert found.ok, found.failures
    assert [check.status for check in found.checks] == ["ok"] * 4
    assert found.accuracy is not None
    assert front.baseline.accuracy is not None
    assert found.accuracy.value == pytest.approx(front.baseline.accuracy.value, abs=0.01)


def refuses(kind: type[Exception], said: str, model: Any = None, data: Any = None, **options: Any) -> None:
    with pytest.raises(kind, match=said) as caught:
        compress.run(model or network(), data or stripes(), target=device(), out="/nonexistent/run", **options)
    assert "\n" not in str(caught.value)


def test_what_cant_be_sensed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    photos = str(photographs(tmp_path / "photos"))
    small = str(photographs(tmp_path / "small", size=(40, 20)))
    refuses(BadInput, "sensing ratio 0.001 of 144 pixels is less than one measurement", sensing=0.001)
    refuses(BadInput, "sensing ratio 1.5: give a fraction", sensing=1.5)
    refuses(BadInput, "model sensing: give --sensing RATIO", "sensing", photos)
    refuses(BadInput, "no trained weights for --sensing 0.17; give --epochs N", "sensing", photos, sensing=0.17)
    refuses(BadInput, "sensing ratio 0.0001 of 1024 pixels is less than one", "sensing", photos, sensing=1e-4)
    normal = {"sensing": 0.17, "epochs": 0, "mean": (0.5,)}
    refuses(BadInput, "model sensing takes light, pixels / 255: leave --mean", "sensing", photos, **normal)
    floats = (torch.rand(10, 1, 64, 64), None)
    refuses(BadInput, "takes light, pixels / 255: .* give images as uint8", "sensing", floats, sensing=0.17, epochs=0)
    refuses(BadData, "has 40x20 pixels, the network measures blocks of 32x32", "sensing", small, sensing=0.17, epochs=0)
    refuses(BadInput, "--image-size is for networks that take any size", image_size=(64, 64))
    size = {"sensing": 0.17, "epochs": 0, "image_size": (40, 64)}
    refuses(BadData, "64x40 isn't a multiple of 32", "sensing", photos, **size)


def test_labelled_images_are_their_own_targets_for_a_network_that_makes_images() -> None:
    images, labels = stripes()
    found = as_images(from_python((images, labels)))
    assert (found.task, found.classes) == ("reconstruction", ())
    x, target = next(found.train.batches(4))
    assert torch.equal(x, target)
    assert as_images(found) is found


@pytest.mark.parametrize(("text", "size"), [("128", (128, 128)), ("96x64", (64, 96)), ("96X64", (64, 96))])
def test_image_sizes_are_width_times_height(text: str, size: tuple[int, int]) -> None:
    assert PIXELS.convert(text, None, None) == size


@pytest.mark.parametrize("text", ["0", "x", "64x", "64x0", "-1", "a64"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(Exception, match="not a size"):
        PIXELS.convert(text, None, None)


def test_weights_that_come_along_are_loaded_by_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from safetensors.torch import save_file

    from compress import networks
    from compress.networks.sensing_weights import packed

    record = next(info for info in networks.NETWORKS if info.name == "sensing")
    made = record.factory(ratio=0.01)
    with torch.no_grad():
        made.tail.bias.fill_(0.25)
    (tmp_path / "w.safetensors").write_bytes(packed(made))
    save_file({k: v.contiguous() for k, v in made.state_dict().items()}, tmp_path / "plain.safetensors")
    others = tuple(info for info in networks.NETWORKS if info.name != "sensing")
    shipped = replace(record, by_ratio={0.01: tmp_path / "w.safetensors"})
    monkeypatch.setattr(networks, "NETWORKS", (*others, shipped))
    found = models.load("sensing", sensing=0.01)
    assert found.trained
    assert found.block == 32
    assert torch.equal(found.model.tail.bias, made.tail.bias)
    assert not models.load("sensing", sensing=0.02).trained
    for name in ("w", "plain"):
        given = models.load("sensing", sensing=0.01, weights=str(tmp_path / f"{name}.safetensors"))
        assert given.trained
        assert torch.equal(given.model.tail.bias, made.tail.bias)
    with pytest.raises(BadInput, match=r"weights come along for 0\.01"):
        models.load("sensing")


@pytest.mark.slow
def test_the_unfolded_network_goes_through_a_job_too(tmp_path: Path) -> None:
    from compress.networks.sensing import Unfolded

    found = models.load("sensing-unfolded", sensing=0.02)
    assert isinstance(found.model, Unfolded)
    assert not found.trained
    assert found.model.sensing.differential is True
    folder, out = str(photographs(tmp_path / "photos", size=(96, 64))), tmp_path / "run"
    refuses(BadInput, "model sensing-unfolded has no trained weights", "sensing-unfolded", folder, sensing=0.02)
    front = compress.run(
        "sensing-unfolded", folder, target=device(), sensing=0.02, epochs=0, image_size=(64, 64), out=out, **QUICK
    )
    assert front.metric == PSNR
    (candidate,) = front.candidates
    assert candidate.accuracy is not None
    assert front.baseline.accuracy is not None
    assert front.baseline.accuracy.value > 45  # drawn, not photographed
    assert candidate.accuracy.value > 40  # a few tensors of images in 8 bits, one of which alone gives 53
    assert (out / "candidates" / candidate.id / "patterns" / "patterns.npy").is_file()
