"""What damage means in accuracy, learnt from the candidates that were evaluated.

With ``p`` the damage of pruning as a share of the largest, ``q`` that of rounding, and ``r`` that of residual blocks
left out as a share of the largest, a candidate is expected to lose

    drop(p, q, r) = R (1 - exp(-(a p^c + b q^d + e r^f))),

``R`` being all that can be lost. It rises with each, from 0, whatever ``a`` to ``f``, which are found by least squares
with what is usual as prior. What remains, such as an interaction, is a Gaussian process over ``(log p, log q, log r)``
(Rasmussen and Williams 2006, chapter 2), so that a forecast passes near what was found beside it and says how sure it
is.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

TUNED, UNTUNED = 0.2, 2.0
"""Usual ``a`` where training follows, and where it doesn't: what the largest damage costs. On CIFAR-10 without training
ResNet-20 has 1.7 and ResNet-56 2.7, with ``c`` 1.2 and 1.4."""

PRIOR_MEANS = (0.0, np.log(0.2), np.log(1.25), 0.0, np.log(0.03), np.log(1.25))
PRIOR_SPREADS = (1.2, 1.5, 0.3, 0.4, 1.2, 0.3)
"""Of the logarithms of a (as a factor of the usual one), b, c, d, e and f. ResNet-56 on CIFAR-10 lost 0.71 and 0.97
points without training at 0.49 and 0.69 of the largest damage by blocks; these are on the careful side of that."""

LEAST_DAMAGE = 1e-9
LENGTH = 1.5
"""Of the process, in natural logarithms of damage: candidates whose damage differs by less tell of each other."""

Damages = Sequence[tuple[float, float, float]]
"""(By pruning, by rounding, by blocks left out) of each candidate."""


@dataclass(frozen=True)
class Surrogate:
    """Expected drops in accuracy.

    Attributes:
        scale: the largest damages by pruning and by blocks left out.
        most: what can be lost at most, in the accuracy's unit.
        parameters, covariance: logarithms of a to f, and how sure they are (Laplace's approximation).
        process: what the formula leaves open; None before anything was evaluated.
        spread: its standard deviation.
    """

    scale: tuple[float, float]
    most: float
    parameters: np.ndarray
    covariance: np.ndarray
    process: GaussianProcessRegressor | None
    spread: float

    @classmethod
    def fit(
        cls,
        damages: Damages,
        drops: Sequence[float],
        errors: Sequence[float],
        *,
        scale: tuple[float, float],
        most: float,
        tuned: bool,
    ) -> Surrogate:
        """What the candidates so far tell.

        Args:
            damages: of each; there may be none.
            drops: the accuracy that each lost.
            errors: standard error of each drop, above 0.
            scale: the largest damages by pruning and by blocks left out that are proposed.
            most: what can be lost at most.
            tuned: whether candidates were trained after pruning.
        """
        means = np.array(PRIOR_MEANS)
        means[0] += np.log(TUNED if tuned else UNTUNED)
        if not len(drops):
            return cls(scale, most, means, np.diag(np.square(PRIOR_SPREADS)), None, 0.0)
        seen, found, noise = _coordinates(damages, scale), np.array(drops), np.array(errors)

        def residuals(parameters: np.ndarray) -> np.ndarray:
            # An error of a tenth of what is lost counts as much as the evaluation's own.
            misses = (_formula(parameters, seen, most) - found) / np.hypot(noise, 0.1 * np.abs(found))
            return np.concatenate([misses, (parameters - means) / np.array(PRIOR_SPREADS)])

        solution = least_squares(residuals, means, loss="soft_l1")
        parameters, covariance = solution.x, np.linalg.inv(solution.jac.T @ solution.jac)
        left = found - _formula(parameters, seen, most)
        spread = max(float(np.sqrt(np.mean(left**2))), float(noise.mean()))
        kernel = ConstantKernel(spread**2, "fixed") * RBF(LENGTH, "fixed")
        process = GaussianProcessRegressor(kernel, alpha=noise**2, optimizer=None).fit(np.log(seen), left)
        return cls(scale, most, parameters, covariance, process, spread)

    def expected(self, damages: Damages) -> tuple[np.ndarray, np.ndarray]:
        """The drop of each, (n,), and its standard deviation."""
        at = _coordinates(damages, self.scale)
        first, slopes = _formula(self.parameters, at, self.most), self._slopes(at)
        variance = np.einsum("pi,pq,qi->i", slopes, self.covariance, slopes)
        if self.process is None:
            return first, np.sqrt(variance)
        more, left = self.process.predict(np.log(at), return_std=True)
        # Where the formula says that little is lost, it leaves little open, whatever it did at large damage.
        share = np.minimum(1.0, 0.02 + 4 * first / self.most)
        return np.maximum(0.0, first + np.asarray(more)), np.sqrt(variance + np.square(left) * share)

    def _slopes(self, at: np.ndarray) -> np.ndarray:
        """By how much the formula changes with each parameter, (6, n)."""
        step = 1e-4
        moved = [
            [_formula(self.parameters + sign * step * unit, at, self.most) for sign in (1.0, -1.0)]
            for unit in np.eye(len(self.parameters))
        ]
        return np.array([(up - down) / (2 * step) for up, down in moved])


def rank_correlation(expected: Sequence[float], found: Sequence[float]) -> float | None:
    """Spearman's, in [-1, 1]; None of fewer than three, or where all are alike."""
    if len(expected) < 3 or len(set(expected)) == 1 or len(set(found)) == 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = float(spearmanr(expected, found).statistic)
    return value if value == value else None


def _coordinates(damages: Damages, scale: tuple[float, float]) -> np.ndarray:
    """Damages, (n, 3): the first and the last as shares of the largest, the second as it is."""
    found = np.array(damages, dtype=np.float64).reshape(-1, 3)
    largest = [max(scale[0], LEAST_DAMAGE), 1.0, max(scale[1], LEAST_DAMAGE)]
    return np.asarray(np.maximum(found / np.array(largest), LEAST_DAMAGE))


def _formula(parameters: np.ndarray, at: np.ndarray, most: float) -> np.ndarray:
    a, b, c, d, e, f = np.exp(np.clip(parameters, -20, 20))
    return np.asarray(most * -np.expm1(-(a * at[:, 0] ** c + b * at[:, 1] ** d + e * at[:, 2] ** f)))


__all__ = ["Surrogate", "rank_correlation"]
