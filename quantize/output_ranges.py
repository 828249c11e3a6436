"""Ranges of activations by what they do to the network's output.

The range of least squared error (:mod:`compress.quantize.ranges`) treats every element alike. What counts is the
error at the output: for each of several ranges ``r`` about that one the expected increase of the loss,

    1/2 E_x E_v (g_v . (Q_r(a) - a))^2

with ``g_v`` the gradient at the activation ``a`` (:mod:`compress.quantize.perturbation`), is measured with the same
inputs and draws, and the range that costs least is taken. A clipped peak that the output doesn't hear is clipped, an
error that all positions share and that adds up is avoided. Where a tensor is nearly always zero the inputs say nothing
of its peaks, and the range stays.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compress.data import Task
from compress.errors import NoGradient
from compress.graph.interpret import Steps
from compress.quantize.perturbation import perturbations
from compress.quantize.ranges import activation_grid, rarely_other_than_zero, scaled
from compress.types import Grid, Signedness

FACTORS = (1.0, 0.7, 0.8, 0.9, 1.1, 1.25, 1.4, 1.7)
"""What the range of least squared error is multiplied by, that range itself first: it stays where none is better."""

IMAGES = 128
"""Calibration inputs that ranges are compared on."""

SLOT = 100
"""Of the numbers by which (width, factor) pairs are told apart: more than there are factors."""


def activation_ranges(
    whole: Steps,
    samples: Mapping[str, Tensor],
    widths: tuple[int, ...],
    inputs: Tensor,
    *,
    signedness: Signedness,
    batch: int,
    task: Task,
    generator: torch.Generator,
) -> tuple[dict[str, dict[int, Grid]], dict[tuple[str, int], float]]:
    """The grid of each tensor at each width, and what rounding to it costs: (tensor, bits) -> increase of the loss.

    Args:
        whole: the float network.
        samples: tensor -> a flat sample of its values (float32), its extremes included.
        widths: bits.
        inputs: calibration inputs (N, ...), on the network's device.
        signedness: of the grids.
        batch: inputs at a time.
        task: which loss.
        generator: of the draws, on the CPU.

    Raises:
        NoGradient: the output has no gradient, and there is more than one width to choose from. With one, the ranges
            are those of least squared error.
    """
    tried: dict[str, dict[int, Grid]] = {}
    for name, values in samples.items():
        tried[name] = {}
        for bits in widths:
            grid = activation_grid(values, bits, signedness)
            for number, factor in enumerate(FACTORS[:1] if rarely_other_than_zero(values) else FACTORS):
                tried[name][bits * SLOT + number] = scaled(grid, factor)
    measured: Mapping[tuple[str, int], float] = {}
    try:
        some = inputs[:IMAGES]
        measured = perturbations(whole, {}, tried, some, batch=batch, task=task, generator=generator).activations
    except NoGradient:
        if len(widths) > 1:
            raise
    grids: dict[str, dict[int, Grid]] = {name: {} for name in samples}
    costs: dict[tuple[str, int], float] = {}
    for name in samples:
        for bits in widths:
            keys = [key for key in tried[name] if key // SLOT == bits]
            # A tensor that the output doesn't depend on costs nothing at any range, and isn't measured.
            best = min(keys, key=lambda key: measured.get((name, key), 0.0))
            grids[name][bits] = tried[name][best]
            costs[name, bits] = measured.get((name, best), 0.0)
    return grids, costs
