"""The search for the front: each round builds what is expected to add most to it.

Of all that can be proposed, pruning and precision together, forecasts (:mod:`compress.forecast`) say what latency and
bytes it will have, and a surrogate (:mod:`compress.surrogate`) what accuracy, corrected by the candidates that were
evaluated. A round takes one proposal after the other: always the one by which the volume that the front dominates is
expected to grow most, the earlier ones of the round taken to come out well. Volume grows most where the front
is thin. It is the area over accuracy and latency, which the front is about, in every runtime that is compared, and
with a smaller weight the volume over accuracy, latency and size; latency and size count by their logarithms, since a
front is read in ratios, and what loses too much accuracy to be of use counts for nothing.

Latencies are the model's throughout: what is proposed never depends on what a run timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import qmc

from compress.figures import Accuracy
from compress.forecast import Forecast
from compress.making import Maker
from compress.metric import TOP1, Metric, of_task
from compress.preflight import Checked
from compress.results import Candidate
from compress.search import Account, Expected, OneRound, Outcome, Proposal, Search
from compress.surrogate import Surrogate, rank_correlation
from compress.types import Budget

FEWEST = 4
"""Candidates with which a search makes sense; fewer come from the ladder."""

FIRST_SHARES = {True: (0.5, 0.2), False: (0.7, 0.45)}
"""Shares of the bytes that the first candidates keep: where they are trained, and where they aren't."""

USEFUL, BEYOND = 5.0, 1.5
"""What loses more than so many times the metric's usual drop is of no use, nor what loses more than so many times the
allowed drop if that is further. So another drop among the usual ones proposes nothing else."""

WITH_SIZE = {True: 0.25, False: 0.0}
"""Weight of the volume that counts size too, beside the area over accuracy and latency: on a device whose flash is
limited, and on others, where narrow weights that are no faster would take the place of what is."""

OTHER_TIMES = 0.5
"""Weight of the areas over accuracy and the other times that candidates are judged by, beside that over the first: of
other runtimes, or of what one that nobody measured may spend on starting operators."""

NEAREST = 1.25
"""Where nothing is foreseen to meet the budget: how much more than the least a choice may exceed it."""

POINTS = 4096
"""Points of a Sobol sequence by which volume is measured."""

OPEN = (-0.5, 0.0, 0.5)
"""Standard deviations of the expected accuracy over which a gain in volume is averaged: few, as there are few
candidates to be spent on what may well be of no use."""


@dataclass
class FrontSearch:
    """Proposes up to ``most`` candidates.

    Attributes:
        most: how many in all.
        foresee: gives what can be proposed; called once.
        budget: what was asked for, and what the device has.
        tuned: whether candidates are trained.
        metric: of accuracy.
        scarce: whether bytes are, on the device or by the budget.
    """

    most: int
    foresee: Callable[[], tuple[Forecast, ...]]
    budget: Budget
    tuned: bool
    metric: Metric = TOP1
    scarce: bool = True
    _known: tuple[Forecast, ...] = ()
    _expected: dict[str, tuple[int, float, float]] = field(default_factory=dict)

    def propose(self, outcomes: Sequence[Outcome], /) -> tuple[Proposal, ...]:
        """See :class:`compress.search.Search`."""
        self._known = self._known or self.foresee()
        tried = {outcome.proposal for outcome in outcomes if outcome.proposal is not None}
        view = _View.of(self._known, outcomes, self)
        left = [forecast for forecast in view.fitting(self._known) if forecast.proposal not in tried]
        count = min(self._round_size(len(tried), left), self.most - len(tried), len(left))
        if count < 1:
            return ()
        values, deviations = view.expected(left)
        costs = np.array([view.costs(forecast) for forecast in left])
        volume = _Volume(view, costs, WITH_SIZE[self.scarce])
        chosen = _first(left, count, self.tuned) if not tried else []
        for number in chosen:
            volume.add(costs[number], values[number])
        while len(chosen) < count:
            gains = volume.gains(values, deviations)
            # Where no gain is expected, what is expected to lose least.
            gains = gains if gains.max() > 0 else values - values.max() - 1.0
            gains[chosen] = -np.inf
            number = int(np.argmax(gains))
            chosen.append(number)
            # As if it came out well: what lies beside it would then add nothing, so the round spreads.
            volume.add(costs[number], values[number] + deviations[number])
        number_of_round = 1 + max((each[0] for each in self._expected.values()), default=0)
        for number in chosen:
            drop = view.baseline - float(values[number])
            self._expected[left[number].proposal.id] = number_of_round, drop, float(deviations[number])
        return tuple(left[number].proposal for number in chosen)

    def _round_size(self, tried: int, left: Sequence[Forecast]) -> int:
        """A few at first, then a sixth at a time: enough to work on side by side, and to learn from in between."""
        kinds = 5 if any(forecast.depth for forecast in left) else 4
        return min(kinds, max(3, self.most // 2)) if not tried else math.ceil(self.most / 6)

    def account(self, outcomes: Sequence[Outcome]) -> Account:
        """How it went, by the candidates that were made."""
        made = {o.proposal.id: o.candidate for o in outcomes if o.proposal is not None and o.candidate is not None}
        baseline = _baseline(outcomes)
        expected = tuple(
            Expected(name, number, baseline - drop, deviation)
            for name, (number, drop, deviation) in self._expected.items()
            if name in made and made[name].accuracy is not None
        )

        def correlation(of: Sequence[Expected]) -> float | None:
            return rank_correlation([each.value for each in of], [made[each.id].value for each in of])

        return Account(expected, correlation(expected), correlation([each for each in expected if each.round > 1]))


@dataclass(frozen=True)
class _View:
    """What is known when a round is proposed.

    Attributes:
        surrogate: learnt from the outcomes.
        baseline: accuracy of the float network; 100 before it is known.
        floor: the least accuracy that is of use.
        made: (logarithms of times and bytes, accuracy) of each candidate, as it came out.
        latency: by what factor estimates exceed what was forecast.
        overhead: bytes that files have beyond what was forecast.
        budget: what candidates have to meet.
    """

    surrogate: Surrogate
    baseline: float
    floor: float
    made: tuple[tuple[tuple[float, ...], float], ...]
    latency: float
    overhead: float
    budget: Budget

    @classmethod
    def of(cls, known: Sequence[Forecast], outcomes: Sequence[Outcome], search: FrontSearch) -> _View:
        by_proposal = {forecast.proposal: forecast for forecast in known}
        made: list[tuple[Forecast, Candidate, Accuracy]] = []
        for outcome in outcomes:
            candidate = outcome.candidate
            if outcome.proposal in by_proposal and candidate is not None and candidate.accuracy is not None:
                made.append((by_proposal[outcome.proposal], candidate, candidate.accuracy))
        baseline = _baseline(outcomes)
        surrogate = Surrogate.fit(
            [_damages(forecast) for forecast, _, _ in made],
            [baseline - accuracy.value for _, _, accuracy in made],
            # The same inputs are evaluated, so most of what is chance is shared with the float network.
            [max((accuracy.high - accuracy.low) / 8, 0.02) for _, _, accuracy in made],
            scale=(max((f.pruning for f in known), default=0.0), max((f.depth for f in known), default=0.0)),
            most=max(baseline, 1.0),
            tuned=search.tuned,
        )
        points, slower, beyond = [], [], []
        for forecast, candidate, accuracy in made:
            estimate = candidate.best.estimate
            seconds = forecast.latency_s if estimate is None else estimate.latency_s
            slower.append(seconds / max(forecast.latency_s, 1e-12))
            beyond.append(candidate.best.bytes - forecast.flash_bytes)
            times = [slower[-1] * time for time in _times(forecast)]
            points.append((_logarithms(times, candidate.best.bytes), accuracy.value))
        lost = max(USEFUL * search.metric.drop, BEYOND * (search.budget.max_accuracy_drop or 0.0))
        latency, overhead = float(np.median(slower or [1.0])), float(np.median(beyond or [0]))
        return cls(surrogate, baseline, baseline - lost, tuple(points), latency, overhead, search.budget)

    def expected(self, forecasts: Sequence[Forecast]) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy of each, (n,), and its standard deviation."""
        drops, deviations = self.surrogate.expected([_damages(each) for each in forecasts])
        return self.baseline - drops, deviations

    def costs(self, forecast: Forecast) -> tuple[float, ...]:
        """Logarithms of the times and the bytes that a choice is expected to come out with."""
        times = [self.latency * time for time in _times(forecast)]
        return _logarithms(times, self.overhead + forecast.flash_bytes)

    def fitting(self, forecasts: Sequence[Forecast]) -> list[Forecast]:
        """Those that meet the budget as far as can be foreseen; if none does, those that come nearest."""
        limits = (self.budget.latency_s, self.budget.flash_bytes, self.budget.ram_bytes)

        def excess(forecast: Forecast) -> float:
            found = (self.latency * forecast.latency_s, self.overhead + forecast.flash_bytes, forecast.ram_bytes)
            shares = (value / limit for value, limit in zip(found, limits, strict=True) if limit is not None)
            return max(shares, default=0.0)

        least = min(map(excess, forecasts))
        allowed = 1.0 if least <= 1 else NEAREST * least
        return [forecast for forecast in forecasts if excess(forecast) <= allowed]


class _Volume:
    """The share of boxes of accuracy and costs that candidates dominate, on a fixed set of points.

    Costs are times and, as the last, size. There is a box for each time, and one of the first time and size.
    """

    def __init__(self, view: _View, costs: np.ndarray, with_size: float) -> None:
        """What was made dominates; ``costs`` (n, times + 1) are those of what could be made next."""
        self.costs, axes = costs, costs.shape[1]
        times = [((i,), 1.0 if i == 0 else OTHER_TIMES) for i in range(axes - 1)]
        self.boxes = [*times, ((0, axes - 1), with_size)]
        everything = np.concatenate([costs, np.array([made for made, _ in view.made]).reshape(-1, axes)])
        low, high = everything.min(0), everything.max(0)
        room = np.maximum(high - low, 1e-6)
        # The largest and the smallest must dominate something too.
        low, high = low - 0.1 * room, high + 0.1 * room
        points = qmc.Sobol(axes + 1, scramble=False).random(POINTS)
        self.points = low + points[:, :axes] * (high - low)
        self.accuracies = view.floor + points[:, axes] * max(view.baseline - view.floor, 1e-6)
        self.free = [np.ones(POINTS, dtype=bool) for _ in self.boxes]
        for made, value in view.made:
            self.add(np.array(made), value)

    def add(self, costs: np.ndarray, value: float) -> None:
        """Count a candidate of these costs and this accuracy."""
        inside = self.points >= costs
        reached = self.accuracies <= value
        for free, (axes, _) in zip(self.free, self.boxes, strict=True):
            free &= ~(inside[:, axes].all(1) & reached)

    def gains(self, values: np.ndarray, deviations: np.ndarray) -> np.ndarray:
        """By how much each of the choices would add with these accuracies, (n,)."""
        total = np.zeros(len(values))
        for free, (axes, weight) in zip(self.free, self.boxes, strict=True):
            if not weight:
                continue
            points, accuracies = self.points[free], self.accuracies[free]
            inside = (points[None][:, :, axes] >= self.costs[:, None][:, :, axes]).all(-1)
            for deviation in OPEN:
                reached = accuracies[None] <= (values + deviation * deviations)[:, None]
                total += weight * (inside & reached).sum(1)
        return total / (len(OPEN) * POINTS)


def of(maker: Maker, checked: Checked) -> Search:
    """The search for a job: that of the front, or the ladder where there is little to choose."""
    job = maker.job
    if job.candidates < FEWEST or (job.prune is None and len(job.search_widths()) < 2):
        return OneRound(checked.ladder)
    budget, metric = job.budget.on(job.target), of_task(job.data.task)

    def foresee() -> tuple[Forecast, ...]:
        return maker.forecasts(checked.least)

    return FrontSearch(job.candidates, foresee, budget, job.epochs > 0, metric, budget.flash_bytes is not None)


def _damages(forecast: Forecast) -> tuple[float, float, float]:
    return forecast.pruning, forecast.rounding, forecast.depth


def _times(forecast: Forecast) -> tuple[float, ...]:
    return forecast.times or (forecast.latency_s,)


def _logarithms(times: Sequence[float], size: float) -> tuple[float, ...]:
    return (*(math.log(max(time, 1e-12)) for time in times), math.log(max(size, 1.0)))


def _baseline(outcomes: Sequence[Outcome]) -> float:
    found = (each.candidate for each in outcomes if each.proposal is None and each.candidate is not None)
    known = [candidate.value for candidate in found if candidate.accuracy is not None]
    return known[0] if known else 100.0


def _first(forecasts: Sequence[Forecast], count: int, tuned: bool) -> list[int]:
    """Numbers of the first ``count``, before anything is known of the network: the one that is damaged least, one of
    narrower weights, smaller ones, and one without some blocks, as far as there are any."""
    order = sorted(range(len(forecasts)), key=lambda i: _damage(forecasts[i]))
    whole = forecasts[order[0]]
    chosen = [order[0]]
    all_blocks = [i for i in order if forecasts[i].depth == whole.depth]
    same_size = [i for i in all_blocks if forecasts[i].pruning == whole.pruning]
    narrower = [i for i in same_size if forecasts[i].rounding > whole.rounding]
    if narrower:
        chosen.append(narrower[len(narrower) // 2])
    fewer = [i for i in order if forecasts[i].depth and forecasts[i].pruning == whole.pruning]
    fewer = [i for i in fewer if forecasts[i].rounding == whole.rounding]
    alike = [i for i in all_blocks if forecasts[i].rounding == whole.rounding and i not in chosen]
    for share in FIRST_SHARES[tuned]:
        if alike:
            ratios = {i: forecasts[i].flash_bytes / whole.flash_bytes for i in alike}
            nearest = min(alike, key=lambda i: (abs(math.log(ratios[i] / share)), i))
            alike.remove(nearest)
            chosen.append(nearest)
        if fewer:
            chosen.append(fewer[len(fewer) // 2])
            fewer = []
    return chosen[:count]


def _damage(forecast: Forecast) -> tuple[float, float, float, float]:
    return forecast.depth, forecast.pruning, forecast.rounding, -forecast.flash_bytes


__all__ = ["FEWEST", "FrontSearch", "of"]
