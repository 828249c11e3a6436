"""Binary patterns of least expected error, searched in closed form: no image is looked at twice, nothing is trained.

For blocks of covariance C, patterns as the rows of A and the linear minimum-mean-square estimate, the expected squared
error of a block is

    tr(C - C A^T (A C A^T)^-1 A C),

which depends on the span of the rows alone. Real rows reach the least with the eigenvectors of the m largest
eigenvalues of C. Binary ones start as their signs and are improved a row at a time, the others held: with K the
covariance that is left when the others are known, a row a takes away

    (a^T K^2 a) / (a^T K a)

more, and turning entry j changes the numerator by ``-4 a_j (K^2 a)_j + 4 (K^2)_jj``, the denominator alike: all n
changes are known at once, and the best is made until none helps. The rounding errors of the signs end up where images
have little: the patterns are halftones of the eigenvectors. (The same error, over real patterns, is the classical
design of Gaussian measurements; its discrete descent is ours.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.errors import BadInput

Matrix = NDArray[np.float64]
RIDGE = 1e-9
"""Of the measurements' covariance, as a share of its mean diagonal."""

LEAST_GAIN = 1e-9
"""Of the row's quotient, relative: smaller ones are rounding errors."""


def expected_error(patterns: Matrix, covariance: Matrix) -> float:
    """The mean squared error of a pixel after the linear estimate from these patterns (m, n)."""
    left: float = np.trace(_left(patterns, covariance)[0]) / covariance.shape[0]
    return left


def search(
    patterns: Matrix, covariance: Matrix, *, sweeps: int = 2, fixed: int = 0, keep_counts: bool = False
) -> Matrix:
    """Patterns (m, n) of -1 and +1 with an expected error of at most that of the given ones.

    Args:
        patterns: where to start, -1 and +1.
        covariance: of the blocks, (n, n).
        sweeps: how often each row is visited; it ends earlier where a sweep changes nothing.
        fixed: so many first rows stay.
        keep_counts: leave the number of ones of each row as it is: entries are turned in pairs.

    Raises:
        BadInput: patterns of other values, or shapes that don't fit.
    """
    if patterns.ndim != 2 or covariance.shape != (patterns.shape[1],) * 2:
        raise BadInput(f"patterns {patterns.shape} and covariance {covariance.shape}: give (m, n) and (n, n)")
    if not (np.abs(patterns) == 1).all():
        raise BadInput("the search takes patterns of -1 and +1")
    a = patterns.astype(np.float64, copy=True)
    for _ in range(sweeps):
        before = a.copy()
        left = _Left.of(a, covariance)
        for row in range(fixed, len(a)):
            left.without(row)
            a[row] = _descended(a[row], left.k, left.k2, keep_counts)
            left.with_row(row, a)
        if (a == before).all():
            break
    return a


@dataclass
class _Left:
    """What the patterns leave: K = C - B Q B^T with B = C A^T and Q = (A C A^T)^-1, and K^2; kept up to date."""

    covariance: Matrix
    b: Matrix
    q: Matrix
    k: Matrix
    k2: Matrix

    @classmethod
    def of(cls, a: Matrix, covariance: Matrix) -> _Left:
        k, b, q = _left(a, covariance)
        return cls(covariance, b, q, k, k @ k)

    def without(self, row: int) -> None:
        """Forget the measurement ``row``: K grows by u u^T, u = B q / sqrt(q_row), q the row's column of Q."""
        u = self.b @ self.q[:, row] / np.sqrt(self.q[row, row])
        self._add(u, 1.0)

    def with_row(self, row: int, a: Matrix) -> None:
        """Know the measurement ``row`` of ``a``."""
        new = a[row]
        v = self.k @ new
        self._add(v / np.sqrt(new @ v), -1.0)
        self.b[:, row] = self.covariance @ new
        # The inverse of a bordered matrix: the old row's border off, the new one's on.
        others = np.arange(len(a)) != row
        column = self.q[others, row]
        rest = self.q[np.ix_(others, others)] - np.outer(column, column) / self.q[row, row]
        products = a @ self.b[:, row]
        side = rest @ products[others]
        pivot = 1 / (products[row] * (1 + RIDGE) - products[others] @ side)
        self.q[np.ix_(others, others)] = rest + pivot * np.outer(side, side)
        self.q[others, row] = self.q[row, others] = -pivot * side
        self.q[row, row] = pivot

    def _add(self, u: Matrix, sign: float) -> None:
        """K + sign u u^T, and its square."""
        ku = self.k @ u
        mixed = np.outer(u, sign * ku + (u @ u) / 2 * u)
        self.k2 += mixed + mixed.T
        self.k += sign * np.outer(u, u)


def _left(a: Matrix, covariance: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    b = covariance @ a.T
    gram = a @ b
    q = np.linalg.inv(gram + RIDGE * np.trace(gram) / len(a) * np.eye(len(a)))
    return covariance - b @ q @ b.T, b, q


def _descended(row: Matrix, k: Matrix, k2: Matrix, keep_count: bool) -> Matrix:
    """``row`` with entries turned as long as that helps."""
    a, x, z = row.copy(), k @ row, k2 @ row
    under, over = float(a @ x), float(a @ z)
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
