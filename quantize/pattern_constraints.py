"""What hardware asks of binary patterns: how many ones, how different the rows are, which rows belong together.

Patterns are rows ``b_m`` of ``n`` values, here always +1 (light, a one) and -1 (none, a zero), whatever the hardware
calls them. A constraint projects real rows onto the nearest patterns that it allows, says of given patterns what is
wrong with them, and may add a penalty to a loss. For rows ``v`` in R^n, the nearest pattern with ``k`` ones is

    argmin_{b in {-1, 1}^n, #ones(b) = k} ||v - b||^2  =  +1 at the k largest entries of v, -1 elsewhere,

since ``||v - b||^2 = ||v||^2 + n - 2 <v, b>`` depends on b through the sum of v over b's ones alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from compress.errors import BadInput


class Constraint(Protocol):
    """What a set of patterns has to be like."""

    def project(self, rows: Tensor) -> Tensor:
        """The nearest allowed patterns, -1 and +1, of real ``rows`` (measurements, pixels); same shape and dtype.

        Raises:
            BadInput: no patterns of that shape can meet it.
        """
        ...

    def violation(self, patterns: Tensor) -> str | None:
        """What is wrong with ``patterns`` (measurements, pixels) of -1 and +1, in half a sentence; None if nothing."""
        ...

    def penalty(self, patterns: Tensor) -> Tensor:
        """What to add to a loss, a scalar, 0 where there is nothing to push away from; differentiable."""
        ...


class _Free:
    """No penalty; for constraints that projection meets."""

    def penalty(self, patterns: Tensor) -> Tensor:
        """0."""
        return patterns.new_zeros(())


@dataclass(frozen=True)
class ExactOnes(_Free):
    """Every pattern has exactly ``count`` ones."""

    count: int

    def project(self, rows: Tensor) -> Tensor:
        """See :class:`Constraint`; of equal entries the first ones become ones."""
        _check_count(self.count, rows.shape[1])
        return _largest(rows, self.count)

    def violation(self, patterns: Tensor) -> str | None:
        """See :class:`Constraint`."""
        return _wrong_count(patterns, self.count)


@dataclass(frozen=True)
class FractionOfOnes(_Free):
    """Every pattern has ``round(fraction * pixels)`` ones, ``fraction`` in (0, 1)."""

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise BadInput(f"fraction of ones {self.fraction:g}: give one between 0 and 1, such as 0.5")

    def _count(self, pixels: int) -> int:
        return round(self.fraction * pixels)

    def project(self, rows: Tensor) -> Tensor:
        """See :class:`Constraint`; of equal entries the first ones become ones."""
        count = self._count(rows.shape[1])
        _check_count(count, rows.shape[1])
        return _largest(rows, count)

    def violation(self, patterns: Tensor) -> str | None:
        """See :class:`Constraint`."""
        return _wrong_count(patterns, self._count(patterns.shape[1]))


@dataclass(frozen=True)
class Incoherent:
    """Rows that differ: no two patterns are more alike, or more each other's opposite, than ``coherence``.

    The coherence of two rows is ``|<b_i, b_j>| / n``: 0 for orthogonal ones, 1 for equal and opposite ones. The
    penalty is the mean over all pairs of ``max(0, |<b_i, b_j>| / n - coherence)^2``. Projection leaves it aside, so
    training has to bring the rows apart, and patterns that aren't are refused.

    Attributes:
        coherence: the limit, between 0 and 1.
        among: what else each row has to be like, such as :class:`ExactOnes`; projection is by it.
    """

    coherence: float
    among: Constraint | None = None

    def __post_init__(self) -> None:
        if not 0 < self.coherence < 1:
            raise BadInput(f"coherence {self.coherence:g}: give a limit between 0 and 1, such as 0.5")

    def project(self, rows: Tensor) -> Tensor:
        """See the class."""
        return signs(rows) if self.among is None else self.among.project(rows)

    def violation(self, patterns: Tensor) -> str | None:
        """See :class:`Constraint`; the worst pair is named."""
        wrong = None if self.among is None else self.among.violation(patterns)
        alike = coherences(patterns.double()).abs().triu(1)
        worst = float(alike.max())
        if wrong is not None or worst <= self.coherence + 1e-9:
            return wrong
        i, j = divmod(int(alike.argmax()), len(patterns))
        return f"patterns {i} and {j} have a coherence of {worst:.3g}, at most {self.coherence:g} is allowed"

    def penalty(self, patterns: Tensor) -> Tensor:
        """See the class."""
        pairs = len(patterns) * (len(patterns) - 1) / 2
        above = (coherences(patterns).abs() - self.coherence).clamp_min(0)
        return above.square().triu(1).sum() / max(1.0, pairs)


@dataclass(frozen=True)
class ComplementaryPairs(_Free):
    """Patterns in pairs for differential measurement: row 2i + 1 is what row 2i isn't, light where it has none.

    Attributes:
        first: what the first row of each pair has to be like, such as :class:`ExactOnes`; None for anything.
    """

    first: Constraint | None = None

    def project(self, rows: Tensor) -> Tensor:
        """Both rows of a pair decide: the first is the nearest to their difference, the second its opposite."""
        _check_even(len(rows))
        difference = rows[0::2] - rows[1::2]
        first = signs(difference) if self.first is None else self.first.project(difference)
        return torch.stack([first, -first], 1).flatten(0, 1)

    def violation(self, patterns: Tensor) -> str | None:
        """See :class:`Constraint`."""
        if len(patterns) % 2:
            return f"{len(patterns)} patterns can't be pairs"
        wrong = (patterns[0::2] != -patterns[1::2]).any(1).nonzero().flatten().tolist()
        if wrong:
            return f"pattern {2 * wrong[0] + 1} isn't the complement of pattern {2 * wrong[0]}"
        said = None if self.first is None else self.first.violation(patterns[0::2])
        return None if said is None else f"of the first patterns of the pairs, {said}"


@dataclass(frozen=True)
class FirstOfOnes:
    """The first pattern is all ones, as ``differential="mean"`` needs it.

    Attributes:
        others: what the patterns after it have to be like, if there are any; None for anything.
    """

    others: Constraint | None = None

    def project(self, rows: Tensor) -> Tensor:
        """See :class:`Constraint`."""
        rest = rows[1:]
        rest = signs(rest) if self.others is None or not len(rest) else self.others.project(rest)
        return torch.cat([torch.ones_like(rows[:1]), rest])

    def violation(self, patterns: Tensor) -> str | None:
        """See :class:`Constraint`."""
        if not bool((patterns[0] > 0).all()):
            return 'differential="mean" needs a first pattern of ones alone'
        said = None if self.others is None or len(patterns) < 2 else self.others.violation(patterns[1:])
        return None if said is None else f"of the patterns after the first, {said}"

    def penalty(self, patterns: Tensor) -> Tensor:
        """See :class:`Constraint`."""
        return patterns.new_zeros(()) if self.others is None else self.others.penalty(patterns[1:])


def signs(rows: Tensor) -> Tensor:
    """+1 where ``rows`` is 0 or above, -1 below; same shape and dtype."""
    return torch.where(rows >= 0, 1.0, -1.0).to(rows.dtype)


def coherences(patterns: Tensor) -> Tensor:
    """``<b_i, b_j> / n`` of all pairs of rows (measurements, pixels) of -1 and +1."""
    return patterns @ patterns.T / patterns.shape[1]


def threshold(rows: Tensor, patterns: Tensor) -> Tensor:
    """What each row's entries are compared with to give ``patterns``, (measurements, 1).

    0 where the signs give them; elsewhere half-way between the least entry that became a one and the largest that
    didn't, so that ``rows - threshold`` has the patterns' signs, ties aside.
    """
    ones = patterns > 0
    least = rows.masked_fill(~ones, float("inf")).amin(1, keepdim=True)
    largest = rows.masked_fill(ones, float("-inf")).amax(1, keepdim=True)
    between = torch.where(torch.isfinite(least + largest), (least + largest) / 2, torch.zeros_like(least))
    plain = (signs(rows) == patterns).all(1, keepdim=True)
    return torch.where(plain, torch.zeros_like(between), between).detach()


def _largest(rows: Tensor, count: int) -> Tensor:
    order = torch.argsort(rows, dim=1, descending=True, stable=True)[:, :count]
    return torch.full_like(rows, -1.0).scatter_(1, order, 1.0)


def _check_count(count: int, pixels: int) -> None:
    if not 0 < count < pixels:
        raise BadInput(
            f"{count} ones in patterns of {pixels} pixels: give a number from 1 to {pixels - 1}, or no constraint"
        )


def _check_even(measurements: int) -> None:
    if measurements % 2:
        raise BadInput(
            f"{measurements} patterns can't be complementary pairs; choose a ratio that gives an even number of them"
        )


def _wrong_count(patterns: Tensor, count: int) -> str | None:
    ones = (patterns > 0).sum(1)
    wrong = (ones != count).nonzero().flatten().tolist()
    return f"pattern {wrong[0]} has {int(ones[wrong[0]])} ones where {count} are needed" if wrong else None
