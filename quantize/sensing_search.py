"""Binary patterns of least expected error, searched in closed form: no image is looked at twice, nothing is trained.

For blocks of covariance C, patterns as the rows of A and the linear minimum-mean-square estimate, the expected squared
error of a block is

    tr(C - C A^T (A C A^T)^-1 A C),

which depends on the span of the rows alone. Real rows reach the least with the eigenvectors of the m largest
eigenvalues of C. Binary ones start as their signs and are improved a row at a time, the others held: with K the
covariance that is left when the others are known, a row a takes away

    (a^T K^2 a) / (a^T K a + r)

more, with r the variance of a measurement's noise, next to none. Turning entry j changes the numerator by
``-4 a_j (K^2 a)_j + 4 (K^2)_jj``, the denominator alike: all n changes are known at once, and the best is made until
none helps. The rounding errors of the signs end up where images have little: the patterns are halftones of the
eigenvectors. (The same error, over real patterns, is the classical design of Gaussian measurements; its discrete
descent is ours.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.errors import BadInput

Matrix = NDArray[np.float64]
RIDGE = 1e-9
"""Variance of the noise that the search reckons with, as a share of a measurement's mean variance; it only keeps
inverses finite."""

LEAST_VARIANCE = 1e-6
"""Of a dimension that blocks have, as a share of the largest: below is what sums in float32 leave."""

LEAST_GAIN = 1e-9
"""Of the row's quotient, relative: smaller ones are rounding errors."""


def expected_error(patterns: Matrix, covariance: Matrix) -> float:
    """The mean squared error of a pixel after the linear estimate from these patterns (m, n)."""
    left: float = np.trace(_Left.of(patterns, covariance).k) / covariance.shape[0]
    return left


def search(
    patterns: Matrix, covariance: Matrix, *, sweeps: int = 2, fixed: int = 0, keep_counts: bool = False
) -> Matrix:
    """Patterns (m, n) of -1 and +1 with an expected error of at most that of the given ones.

    Args:
        patterns: where to start, -1 and +1.
        covariance: of the blocks, (n, n).
        sweeps: how often each row is visited; it ends earlier where a sweep changes nothing.
        fixed: so many first rows stay. Rows beyond as many as blocks have dimensions, which are all known by then,
            stay too.
        keep_counts: leave the number of ones of each row as it is: entries are turned in pairs.

    Raises:
        BadInput: patterns of other values, or shapes that don't fit.
    """
    if patterns.ndim != 2 or covariance.shape != (patterns.shape[1],) * 2:
        raise BadInput(f"patterns {patterns.shape} and covariance {covariance.shape}: give (m, n) and (n, n)")
    if not (np.abs(patterns) == 1).all():
        raise BadInput("the search takes patterns of -1 and +1")
    found = patterns.astype(np.float64, copy=True)
    covariance, dimensions = _without_rounding(covariance)
    a = found[:dimensions]
    for _ in range(sweeps if len(a) > fixed else 0):
        before = a.copy()
        left = _Left.of(a, covariance)
        for row in range(fixed, len(a)):
            left.without(row)
            a[row] = _descended(a[row], left, keep_counts)
            left.with_row(row, a)
        if (a == before).all():
            break
    return found


def _without_rounding(covariance: Matrix) -> tuple[Matrix, int]:
    """A covariance without negative variances, and how many dimensions its blocks have."""
    variances = np.linalg.eigvalsh(covariance)
    if variances[0] < 0:
        variances, vectors = np.linalg.eigh(covariance)
        covariance = (vectors * variances.clip(0)) @ vectors.T
    return covariance, int((variances > LEAST_VARIANCE * variances[-1]).sum())


@dataclass
class _Left:
    """What the patterns leave: K = C - B Q B^T with B = C A^T and Q = (A C A^T + r I)^-1, and K^2; kept up to date."""

    covariance: Matrix
    ridge: float
    b: Matrix
    q: Matrix
    k: Matrix
    k2: Matrix

    @classmethod
    def of(cls, a: Matrix, covariance: Matrix) -> _Left:
        b = covariance @ a.T
        gram = a @ b
        ridge = RIDGE * float(np.trace(gram)) / len(a)
        q = np.asarray(np.linalg.inv(gram + ridge * np.eye(len(a))), np.float64)
        k = covariance - b @ q @ b.T
        return cls(covariance, ridge, b, q, k, k @ k)

    def without(self, row: int) -> None:
        """Forget the measurement ``row``: K grows by u u^T, u = B q / sqrt(q_row), q the row's column of Q."""
        u = self.b @ self.q[:, row] / np.sqrt(self.q[row, row])
        self._add(u, 1.0)

    def with_row(self, row: int, a: Matrix) -> None:
        """Know the measurement ``row`` of ``a``."""
        new = a[row]
        v = self.k @ new
        self._add(v / np.sqrt(new @ v + self.ridge), -1.0)
        self.b[:, row] = self.covariance @ new
        # The inverse of a bordered matrix: the old row's border off, the new one's on.
        others = np.arange(len(a)) != row
        column = self.q[others, row]
        rest = self.q[np.ix_(others, others)] - np.outer(column, column) / self.q[row, row]
        products = a @ self.b[:, row]
        side = rest @ products[others]
        pivot = 1 / (products[row] + self.ridge - products[others] @ side)
        self.q[np.ix_(others, others)] = rest + pivot * np.outer(side, side)
        self.q[others, row] = self.q[row, others] = -pivot * side
        self.q[row, row] = pivot

    def _add(self, u: Matrix, sign: float) -> None:
        """K + sign u u^T, and its square."""
        ku = self.k @ u
        mixed = np.outer(u, sign * ku + (u @ u) / 2 * u)
        self.k2 += mixed + mixed.T
        self.k += sign * np.outer(u, u)


def _descended(row: Matrix, left: _Left, keep_count: bool) -> Matrix:
    """``row`` with entries turned as long as that helps."""
    k, k2 = left.k, left.k2
    a, x, z = row.copy(), k @ row, k2 @ row
    under, over = float(a @ x) + left.ridge, float(a @ z)
    k_diagonal, k2_diagonal = k.diagonal(), k2.diagonal()

    def best(among: NDArray[np.bool_] | None) -> tuple[int, float, float]:
        top = over - 4 * a * z + 4 * k2_diagonal
        bottom = under - 4 * a * x + 4 * k_diagonal
        quotient = top / bottom if among is None else np.where(among, top / bottom, -np.inf)
        j = int(quotient.argmax())
        return j, float(top[j]), float(bottom[j])

    def turn(j: int) -> None:
        x[:] -= 2 * a[j] * k[j]
        z[:] -= 2 * a[j] * k2[j]
        a[j] = -a[j]

    # Each step gains, so the same row never comes back; the limit only guards against rounding.
    for _ in range(4 * len(a)):
        here = over / under
        if keep_count:
            j, up, down = best(a < 0)
            kept = (over, under)
            turn(j)
            over, under = up, down
            i, up, down = best(a > 0)
            if i == j or up / down <= here * (1 + LEAST_GAIN):
                turn(j)
                over, under = kept
                break
            turn(i)
        else:
            j, up, down = best(None)
            if up / down <= here * (1 + LEAST_GAIN):
                break
            turn(j)
        over, under = up, down
    return a
