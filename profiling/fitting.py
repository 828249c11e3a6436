"""Prices from measurements: least squares of relative errors with prices of at least 0, and an interval that holds.

With ``A[i, j]`` the terms of network i and ``t[i]`` its measured time, the prices are

    argmin over p >= 0 of  sum_i ((A p)_i / t_i - 1)^2 + ridge * sum_j (s_j p_j)^2,

``s_j`` the largest value of term j: times of microseconds and of milliseconds weigh alike, and of terms that
measurements can't tell apart each takes a part (Lawson & Hanson 1974, non-negative least squares).

The interval is split conformal (Lei et al. 2018): of n networks that the fit hasn't seen, with relative errors
``|t_i - p_i| / p_i``, it is the ``ceil((n + 1) * coverage)``-th smallest, or the largest where n is too small for that;
a network drawn as those were lies within it with probability ``coverage``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from compress.calibration import COVERAGE, Fit, Kind

RIDGE, RIDGE_OF_COUNTS = 1e-4, 1e-8
"""For times, and for counts, in which there is no noise."""
Terms = Mapping[str, float]


def prices(rows: Sequence[Terms], measured: Sequence[float], ridge: float = RIDGE) -> dict[str, float]:
    """The prices of the terms; those of 0 are left out.

    Args:
        rows: the terms of each network by name.
        measured: of each, above 0.
        ridge: see the module.
    """
    from scipy.optimize import nnls

    names = sorted({name for row in rows for name in row})
    matrix = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    scale = np.abs(matrix).max(axis=0)
    scale[scale == 0] = 1.0
    relative = matrix / scale / np.asarray(measured)[:, None]
    # Times are made of the size of 1 before the ridge, so that it doesn't depend on their unit.
    unit = float(np.median(measured))
    stacked = np.vstack([relative * unit, math.sqrt(ridge) * np.eye(len(names))])
    wanted = np.concatenate([np.ones(len(rows)), np.zeros(len(names))])
    found, _ = nnls(stacked, wanted, maxiter=30 * len(names))
    return {name: float(p * unit / s) for name, p, s in zip(names, found, scale, strict=True) if p > 0}


def predicted(row: Terms, by: Mapping[str, float]) -> float:
    """The sum of a network's terms at their prices."""
    return sum(by.get(name, 0.0) * value for name, value in row.items())


def interval(errors: Sequence[float], coverage: float = COVERAGE) -> float:
    """The conformal half-width of relative errors; see the module."""
    ordered = sorted(errors)
    place = math.ceil((len(ordered) + 1) * coverage)
    return ordered[min(place, len(ordered)) - 1]


def fit(
    runtime: str,
    kind: Kind,
    fitted: Sequence[tuple[Terms, float]],
    checked: Sequence[tuple[Terms, float]],
    ridge: float = RIDGE,
    pace_s: float | None = None,
) -> Fit:
    """Fit prices to the one set of networks and find the error on the other.

    Args:
        runtime, kind: what was measured.
        fitted, checked: terms and measured value of each network; no network is in both.
        ridge: see the module.
        pace_s: see :class:`compress.calibration.Fit`.
    """
    by = prices([row for row, _ in fitted], [value for _, value in fitted], ridge)
    errors = [abs(value - predicted(row, by)) / predicted(row, by) for row, value in checked]
    median, p90 = (float(np.percentile(errors, q)) for q in (50, 90))
    return Fit(runtime, kind, by, interval(errors), median, p90, len(fitted), len(checked), pace_s)


__all__ = ["fit", "interval", "predicted", "prices"]
