"""Sensing layers of every geometry, and light for them."""

from __future__ import annotations

import torch

from compress.quantize.pattern_constraints import ComplementaryPairs, ExactOnes, FractionOfOnes
from compress.quantize.sensing import SensingLayer

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
