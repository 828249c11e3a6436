"""Which candidates to build, in rounds: what a search is, and the simplest one, a ladder of sizes.

A round depends on the options and on what became of earlier rounds, never on what was timed, so that the same job
proposes the same candidates on every machine. The ladder is one round. Sizes fall geometrically, since a front is
read in ratios; where the target runs weights narrower than 8 bits, every third size comes in mixed precision.
:mod:`compress.front_search` is the search that a job of several candidates uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from compress.results import Candidate

SMALLEST = 0.02
"""The last rung of the ladder, as a fraction of its first."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One candidate to build.

    Attributes:
        macs, params: fractions to keep, None to prune nothing on that account.
        weight_bits: average bits of the weights, None to stay in float.
        mixed: True if layers may differ in bits.
        latency: fraction to keep of the latency that the target's model predicts for the whole network in the same
            precision; None for no such limit.
        blocks: how many residual blocks are left out; the fractions are of the network with all of them.
    """

    macs: float | None
    params: float | None
    weight_bits: float | None
    mixed: bool
    latency: float | None = None
    blocks: int = 0

    @property
    def shrinks(self) -> bool:
        """Whether anything is to be removed."""
        return self.blocks > 0 or any(
            share is not None and share < 1 for share in (self.macs, self.params, self.latency)
        )

    @property
    def id(self) -> str:
        """A readable name, the same for the same proposal: ``macs50-w8``, ``macs100-mixed5``, ``size25-float``,
        ``macs50-size25-w8``, ``time40-w8``, ``macs60-drop4-w8`` for 4 blocks fewer."""
        parts = [f"size{_plain(100 * self.params)}"] if self.params is not None else []
        if self.latency is not None:
            parts.insert(0, f"time{_plain(100 * self.latency)}")
        if self.macs is not None or not parts:
            parts.insert(0, f"macs{_plain(100 * (1.0 if self.macs is None else self.macs))}")
        if self.blocks:
            parts.append(f"drop{self.blocks}")
        bits = "float" if self.weight_bits is None else f"{'mixed' if self.mixed else 'w'}{_plain(self.weight_bits)}"
        return "-".join([*parts, bits])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a proposal.

    Attributes:
        proposal: None for the float network.
        candidate: without anything that was timed: no measurement, no stage's seconds. None if it was dropped.
        reason: why it was dropped.
    """

    proposal: Proposal | None
    candidate: Candidate | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What a search expected of a candidate before it was made.

    Attributes:
        round: from 1.
        value: accuracy in its unit.
        deviation: its standard deviation.
    """

    id: str
    round: int
    value: float
    deviation: float


@dataclass(frozen=True)
class Account:
    """How a search went.

    Attributes:
        expected: of each candidate, in the order of proposing.
        rank_correlation: Spearman's of expected and measured accuracy; None of fewer than three.
        informed_rank_correlation: the same of the candidates after the first round, of which nothing was known before.
    """

    expected: tuple[Expected, ...]
    rank_correlation: float | None
    informed_rank_correlation: float | None


class Search(Protocol):
    """Proposes candidates, round by round."""

    @property
    def most(self) -> int:
        """How many it proposes at most."""

    def propose(self, outcomes: Sequence[Outcome], /) -> tuple[Proposal, ...]:
        """The next round; nothing ends the search.

        The proposals of one round are independent work. What was proposed before is left out, and a round in which
        nothing is new ends the search too.

        Args:
            outcomes: of the float network and of all earlier proposals, in the order in which they were proposed;
                nothing before the first round.
        """

    def account(self, outcomes: Sequence[Outcome], /) -> Account | None:
        """How the search went; None where nothing was expected of the candidates."""


@dataclass(frozen=True, slots=True)
class OneRound:
    """Proposals that are known from the start."""

    proposals: tuple[Proposal, ...]

    @property
    def most(self) -> int:
        """See :class:`Search`."""
        return len(self.proposals)

    def propose(self, outcomes: Sequence[Outcome], /) -> tuple[Proposal, ...]:
        """See :class:`Search`."""
        return () if outcomes else self.proposals

    def account(self, outcomes: Sequence[Outcome], /) -> None:
        """See :class:`Search`."""
        return


def _plain(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".").replace(".", "_")


def ladder(
    count: int,
    *,
    prune: bool,
    macs: float | None,
    params: float | None,
    widths: Sequence[int],
    weight_bits: float | None,
    least: tuple[float, float] = (0.0, 0.0),
    limited: bool = False,
) -> tuple[Proposal, ...]:
    """At most ``count`` different proposals, largest first.

    Args:
        count: how many are wanted, 1 or more.
        prune: False leaves every channel.
        macs, params: fractions kept that were asked for, None for no limit; the ladder starts there.
        widths: integer weight widths to choose from, narrowest first; empty keeps float.
        weight_bits: cap on the average bits; None for none.
        least: the least fractions of (MACs, parameters) that pruning can reach, where that is known; no rung
            lies below them.
        limited: every candidate chooses its layers' bits under other limits too, so that its average is a cap.
    """
    choices = precisions(widths, weight_bits, 1 if prune else count)
    if limited:
        choices = [(bits, mixed or bits is not None) for bits, mixed in choices]
    if not prune:
        return tuple(dict.fromkeys(Proposal(None, None, bits, mixed) for bits, mixed in choices))[:count]
    plain, rest = choices[0], choices[1:]
    extra = count // 3 if rest else 0
    tops = (1.0 if macs is None and params is None else macs, params)
    last = max(SMALLEST, *(low / top for low, top in zip(least, tops, strict=True) if top is not None))
    sizes = [_rung(i, count - extra, min(1.0, last)) for i in range(count - extra)]

    def sized(size: float, bits: float | None, mixed: bool) -> Proposal:
        shares = [None if top is None else share_of(size, low, top) for low, top in zip(least, tops, strict=True)]
        return Proposal(shares[0], shares[1], bits, mixed)

    proposals = [sized(size, *plain) for size in sizes]
    for k in range(extra):
        # Spread the mixed ones over the ladder's inside, where they fill the widest gaps in file size.
        size = sizes[min(len(sizes) - 1, 1 + (k * max(1, len(sizes) - 1)) // extra)]
        proposals.append(sized(size, *rest[k % len(rest)]))
    unique = dict.fromkeys(proposals)
    return tuple(sorted(unique, key=lambda p: (-(p.macs or p.params or 1.0), -(p.weight_bits or 32.0))))


def _rung(i: int, n: int, last: float) -> float:
    return 1.0 if n == 1 else last ** (i / (n - 1))


def share_of(size: float, low: float, top: float) -> float:
    """``size`` of ``top`` in whole percent, but never above what was asked for nor below what can be reached."""
    return top if size == 1 else min(top, max(math.ceil(100 * low) / 100, round(top * size, 2)))


def precisions(widths: Sequence[int], cap: float | None, count: int) -> list[tuple[float | None, bool]]:
    """(average bits, mixed) to choose from, most accurate first."""
    if not widths:
        return [(None, False)]
    low, high = float(widths[0]), float(widths[-1])
    if cap is not None and cap < high:
        if cap in (float(width) for width in widths):
            return [(cap, False)]
        return [(cap, True)]
    if low == high:
        return [(high, False)]
    if count == 1:
        return [(high, False), ((low + high) / 2 - 1, True)]
    steps = [high - (high - low) * i / max(1, count - 1) for i in range(count)]
    return [(round(step, 2), step not in (low, high)) for step in steps]
