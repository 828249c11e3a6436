"""The reconstruction networks that come along: Set11 as the docs have it, patterns of the optics, a file each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress import models
from compress.data.image_files import decode, images_in
from compress.networks.sensing_weights import RATIOS, shipped
from compress.quality import psnr

LEAST = {0.01: 21.0, 0.04: 24.8, 0.1: 28.0, 0.25: 32.3}
"""PSNR in dB on Set11, by the protocol of the literature."""

MOST_BYTES = 512 * 1024


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_shipped_network_is_small_and_its_patterns_are_binary(ratio: float) -> None:
    path = shipped(ratio)
    assert path is not None
    assert path.stat().st_size < MOST_BYTES
    network = models.load("sensing", sensing=ratio).model
    assert network.sensing.signs().unique().tolist() == [-1, 1]
    assert network.sensing.measurements == round(ratio * 1024)


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_shipped_network_recovers_set11(ratio: float, shared_data: Path) -> None:
    network, found = models.load("sensing", sensing=ratio).model, []
    for file in images_in(shared_data / "recon" / "Set11"):
        image = decode("Set11", file, 1)[0][None, None].double()
        with torch.no_grad():
            made = network((image / 255).float()).double().mul(255).clamp(0, 255)
        found.append(float(psnr(made, image)))
    assert len(found) == 11
    assert sum(found) / 11 >= LEAST[ratio]
