"""Grids for weights and activations: the scale with the least squared error, tensor by tensor.

A grid's step trades rounding error (large steps) against clipping error (small ranges). For each
tensor the range is searched among shrunken versions of what was observed,

    scale* = argmin over f in F of  sum_i (x_i - Q(x_i; f * range))^2,

which for 8 bits keeps nearly the whole range and for 4 bits cuts off its tails.

A tensor that is nearly always zero shows few of its other values in a sample, and none of its largest. What lies beyond
the sample's end h is taken to have a generalized Pareto tail (Pickands, *Annals of Statistics* 1975) of the shape 1/4
and of the mean b, by which the largest values exceed the next. Another sample of that size is then expected to lose

    3 b^2 / (1 + (c - h) / (3 b))^2

by a range that ends at c, which may be beyond h.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import fx, nn

from compress.graph.module import plain_module
from compress.graph.trace import Network
from compress.types import Grid, Signedness

SHRINK = torch.linspace(1.0, 0.2, 41)
"""The factors F by which ranges are shrunk."""

RARE = 0.05
"""A tensor with fewer values other than zero has an unseen tail."""

STRETCH = torch.linspace(1.0, 4.0, 31)
"""The factors by which its range may grow."""

SAMPLE = 1 << 15
"""How many values of one tensor the search looks at."""


def weight_grid(weight: torch.Tensor, bits: int, axis: int, least: torch.Tensor | None = None) -> Grid:
    """A symmetric grid for ``weight`` (float32), one scale an index of ``axis``, least squared error each.

    A channel that is all zero gets the scale 1; with one bit, which has no 0 and whose best scale is the mean
    magnitude, the least there is. No scale is below ``least``, one number an index of ``axis``.
    """
    floor = torch.zeros(()) if least is None else least.double()
    rows = weight.detach().movedim(axis, 0).flatten(1).double()
    if bits == 1:
        # The minimum of sum (|w| - s)^2.
        return Grid(_positive(rows.abs().mean(1).maximum(floor)), 0, bits, True, axis)
    top = rows.abs().amax(1)
    high = 2 ** (bits - 1) - 1
    best = torch.full_like(top, torch.inf)
    scale = top / high
    for factor in SHRINK.double():
        trial = (top * factor / high).clamp_min(1e-30).unsqueeze(1)
        error = (rows - (rows / trial).round().clamp(-high, high) * trial).square().sum(1)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, trial.squeeze(1), scale)
    return Grid(_positive(torch.where(top > 0, scale.maximum(floor), 1.0)), 0, bits, True, axis, narrow=True)


def _positive(scale: torch.Tensor) -> tuple[float, ...]:
    # float32, as the file holds it: what is simulated must be what ships.
    return tuple(float(s) for s in scale.float().clamp_min(torch.finfo(torch.float32).tiny * 2**24))


def activation_grid(values: torch.Tensor, bits: int, signedness: Signedness) -> Grid:
    """A grid for a sample of one activation (float32, flat), one scale, least squared error.

    ``unsigned`` has a zero point, so that a ReLU's output uses every integer; ``signed`` is symmetric
    around 0. Zero is always on the grid, as padding adds zeros.
    """
    values = values.detach().float().flatten()
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if low == high:
        return Grid((1.0,), 0, bits, signedness == "signed")
    rare = rarely_other_than_zero(values)
    below, above = (_mean_excess(side) if rare else 0.0 for side in (-values, values))
    seen = _Seen(values)

    def error(ends: tuple[float, float]) -> float:
        grid = _grid(low * ends[0], high * ends[1], bits, signedness)
        levels = np.arange(grid.low - grid.zero_point, grid.high - grid.zero_point + 1) * grid.scale[0]
        return seen.error(levels) + _unseen(below, low - levels[0]) + _unseen(above, levels[-1] - high)

    factors = SHRINK.tolist() + (STRETCH[1:].tolist() if rare else [])
    best = min(((factor, factor) for factor in factors), key=error)
    if signedness == "unsigned" and low < 0 < high:
        # Either end may have the longer tail.
        best = min([best, *((factor, best[1]) for factor in factors)], key=error)
        best = min([best, *((best[0], factor) for factor in factors)], key=error)
    return _grid(low * best[0], high * best[1], bits, signedness)


class _Seen:
    """A sample, sorted, with sums up to each value: between the midpoints of two levels all go to one level."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = np.sort(values.cpu().numpy().astype(np.float64))
        self.sums, self.squares = (np.append(0.0, np.cumsum(each)) for each in (self.values, self.values**2))

    def error(self, levels: np.ndarray) -> float:
        """The sum of squared distances of all values to the nearest of ``levels``, which rise:
        ``sum x^2 - 2 q sum x + n q^2`` over those that go to ``q``."""
        inner = np.searchsorted(self.values, (levels[:-1] + levels[1:]) / 2)
        ends = np.concatenate([[0], inner, [len(self.values)]])
        crossed = levels @ np.diff(self.sums[ends])
        return max(0.0, float(self.squares[-1] - 2 * crossed + levels**2 @ np.diff(ends)))


def rarely_other_than_zero(values: torch.Tensor) -> bool:
    """Whether a sample says too little of a tensor's largest values; see the module."""
    return int(values.count_nonzero()) < RARE * values.numel()


def _mean_excess(values: torch.Tensor) -> float:
    """b of the module's tail: by how much the largest positive values exceed the one below them, or 0 where there are
    fewer than four, on average."""
    positive = values[values > 0]
    if len(positive) < 4:
        return float(positive.mean()) if len(positive) else 0.0
    top = positive.topk(math.isqrt(len(positive)) + 1).values
    return float((top[:-1] - top[-1]).mean())


def _unseen(mean_excess: float, margin: float) -> float:
    """What a range that ends ``margin`` beyond the sample is expected to lose of a tail."""
    # With sigma = (1 - 1/4) b: P(beyond) = (1 + margin / (4 sigma))^-4, E excess^2 there = 16/3 (sigma + margin / 4)^2.
    return 3 * mean_excess**2 / (1 + max(0.0, margin) / (3 * mean_excess)) ** 2 if mean_excess > 0 else 0.0


def scaled(grid: Grid, factor: float) -> Grid:
    """A grid of one scale with its range multiplied by ``factor``."""
    return replace(grid, scale=tuple(float(torch.tensor(s * factor, dtype=torch.float32)) for s in grid.scale))


def _grid(low: float, high: float, bits: int, signedness: Signedness) -> Grid:
    if signedness == "signed":
        scale = torch.tensor(max(-low, high) / (2 ** (bits - 1) - 1), dtype=torch.float32)
        return Grid((float(scale),), 0, bits, True)
    scale = torch.tensor((high - low) / (2**bits - 1), dtype=torch.float32)
    return Grid((float(scale),), round(-low / float(scale)), bits, False)


class _Sampler(fx.Interpreter):
    """Runs the traced network and keeps a sample of some nodes' values."""

    def __init__(
        self, module: fx.GraphModule, names: Iterable[str], per_batch: int, generator: torch.Generator
    ) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.samples: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        self._per_batch, self._generator = per_batch, generator

    def run_node(self, n: fx.Node) -> torch.Tensor:
        value: torch.Tensor = super().run_node(n)
        if n.name in self.samples:
            flat = value.detach().flatten()
            kept = self.samples[n.name]
            # The extremes always count: a range that misses them would clip without anybody having chosen to.
            kept.append(torch.stack([flat.min(), flat.max()]).cpu())
            if flat.numel() > self._per_batch:
                picks = torch.randint(flat.numel(), (self._per_batch,), generator=self._generator)
                flat = flat[picks.to(flat.device)]
            kept.append(flat.cpu())
        return value


def observe(
    network: Network, names: Iterable[str], inputs: torch.Tensor, generator: torch.Generator, batch: int = 64
) -> Mapping[str, torch.Tensor]:
    """A flat sample (float32) of each named node's values over ``inputs`` (N, ...).

    The minimum and maximum of each batch are always in it.
    """
    module = plain_module(network)
    step = batch if network.dynamic_batch else 1
    batches = inputs.split(step)
    sampler = _Sampler(module, names, max(2, SAMPLE // len(batches)), generator)
    with torch.no_grad():
        for x in batches:
            sampler.run(x)
    return {name: torch.cat(parts) for name, parts in sampler.samples.items()}


def rounded_(model: nn.Module, grids: Mapping[str, Grid]) -> None:
    """Round the named parameters of ``model`` onto their grids, in place."""
    from compress.graph.qdq import on_grid

    with torch.no_grad():
        for name, grid in grids.items():
            parameter = model.get_parameter(name)
            parameter.copy_(on_grid(parameter, grid))


NEAR = 0.49
"""How far from its value on the grid :func:`unrounded_` leaves a weight: less than half a step."""


def unrounded_(model: nn.Module, exact: nn.Module, grids: Mapping[str, Grid]) -> None:
    """Bring the named parameters of ``model``, which lie on their grids, as near to those of ``exact`` as they can come
    without rounding to something else, in place.

    Weights that all start training on their grid would all reach the next integer in the same few steps of an optimizer
    like Adam. Those of one bit stay on it: near 0 their signs would flip to and fro.
    """
    from compress.graph.qdq import scales

    with torch.no_grad():
        for name, grid in grids.items():
            if grid.bits == 1:
                continue
            weight = model.get_parameter(name)
            reach = NEAR * scales(grid, weight)
            weight.copy_(exact.get_parameter(name).to(weight).clamp(weight - reach, weight + reach))
