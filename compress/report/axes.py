"""Axes of a plot: linear or logarithmic, with round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LOG_SPAN = 6.0
"""A positive axis whose largest value is more than this many times the smallest is logarithmic."""


@dataclass(frozen=True)
class Axis:
    """One axis from ``low`` to ``high``, with its ticks, all in the values' own unit."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Where ``value`` lies, 0 at ``low`` and 1 at ``high``; values outside are held at the ends."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def positive_axis(values: Sequence[float], most_ticks: int = 8) -> Axis:
    """An axis for times and sizes: logarithmic where the span is large, else linear from near the smallest."""
    known = [v for v in values if v > 0 and math.isfinite(v)] or [1.0]
    low, high = min(known), max(known)
    if high / low > LOG_SPAN:
        low, high = low / 1.25, high * 1.25
        return Axis(low, high, True, _log_ticks(low, high, most_ticks))
    margin = 0.08 * (high - low) or 0.25 * high
    low, high = max(0.0, low - margin), high + margin
    return Axis(low, high, False, _linear_ticks(low, high, most_ticks))


def linear_axis(values: Sequence[float], floor: float, ceiling: float, most_ticks: int = 7) -> Axis:
    """An axis for accuracies, held between ``floor`` and ``ceiling``."""
    known = [v for v in values if math.isfinite(v)] or [floor]
    low, high = min(known), max(known)
    margin = 0.08 * (high - low) or 1.0
    low, high = max(floor, low - margin), min(ceiling, high + margin)
    if high <= low:
        low, high = low - 1.0, high + 1.0
    return Axis(low, high, False, _linear_ticks(low, high, most_ticks))


def _linear_ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    raw = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(i * step, 12) for i in range(first, last + 1))


def _log_ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{d * 10.0**k:.12g}") for k in decades for d in digits]
        inside = [t for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]
        if len(inside) <= most:
            return tuple(inside)
    step = math.ceil(len(inside) / most)
    return tuple(inside[::step])


def tick_labels(ticks: Sequence[float]) -> tuple[str, ...]:
    """Labels as short as they can be while still telling the ticks apart."""
    return tuple(f"{tick:,.10f}".rstrip("0").rstrip(".") if tick else "0" for tick in ticks)
