"""The reconstruction networks that come along: Set11 as the docs have it, patterns of the optics, a file each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.sensing import files
from compress import models
from compress.data.image_files import decode, images_in
from compress.networks.sensing_training import Patches
from compress.networks.sensing_weights import RATIOS, shipped
from compress.quality import psnr
from compress.quantize import quantize

LEAST = {0.01: 21.0, 0.04: 24.8, 0.1: 28.0, 0.25: 32.3}
"""PSNR in dB on Set11, by the protocol of the literature."""

MOST_LOST = 0.2
"""dB with 8 bits."""

MOST_BYTES = 512 * 1024


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_shipped_network_is_small_and_its_patterns_are_binary(ratio: float) -> None:
    path = shipped(ratio)
    assert path is not None
    assert path.stat().st_size < MOST_BYTES
    network = models.load("sensing", sensing=ratio).model
    assert network.sensing.signs().unique().tolist() == [-1, 1]
    assert network.sensing.measurements == round(ratio * 1024)


def set11(recover: Callable[[torch.Tensor], torch.Tensor], home: Path) -> float:
    """PSNR in dB, the mean over the images."""
    found = []
    for file in images_in(home / "recon" / "Set11"):
        image = decode("Set11", file, 1)[0][None, None].double()
        with torch.no_grad():
            made = recover((image / 255).float()).double().mul(255).clamp(0, 255)
        found.append(float(psnr(made, image)))
    assert len(found) == 11
    return sum(found) / 11


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_shipped_network_recovers_set11(ratio: float, shared_data: Path) -> None:
    assert set11(models.load("sensing", sensing=ratio).model, shared_data) >= LEAST[ratio]


@pytest.mark.slow
@pytest.mark.parametrize("ratio", RATIOS)
def test_its_file_of_eight_bits_loses_at_most_a_fifth_of_a_decibel(ratio: float, shared_data: Path) -> None:
    """Calibrated on patches of other images."""
    network = models.load("sensing", sensing=ratio).model
    images = [decode("BSD400", f, 1)[0].float() / 255 for f in images_in(shared_data / "recon" / "BSD400")]
    patches = Patches(images, 96, 1, 0)(128)
    state = quantize(network, (patches, patches), weight_bits=8, activation_bits=8).state
    assert set11(files(state), shared_data) >= set11(network, shared_data) - MOST_LOST
