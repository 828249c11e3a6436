"""Pruning by a data-independent coreset: units are drawn by their sensitivity, and those that stay weigh more.

Mussay, Osadchy, Braverman, Zhou, Feldman, *Data-Independent Neural Pruning via Coresets* (ICLR 2020), and Mussay,
Feldman, Zhou, Braverman, Osadchy, *Data-Independent Structured Pruning of Neural Networks via Coresets* (TNNLS). The
neurons ``p`` of a layer are a set whose sum ``S_i(x) = sum_p w_i(p) phi(p.x)`` is what output ``i`` of the next layer
reads. Each is drawn with a probability proportional to its sensitivity, which looks at all outputs and at every query
``x`` in the ball ``|x| <= beta``,

    s(p) = max_i  sup_x |w_i(p) phi(p.x)| / sum_q sup_x |w_i(q) phi(q.x)|,    pr(p) = s(p) / sum_q s(q)

which for a monotone activation, no bias and one output is the paper's ``w(p) phi(beta |p|) / sum``. After ``m`` draws
the weight of ``p`` is ``u_i(p) = (times p was drawn) * w_i(p) / (m pr(p))``: the sum over the coreset is ``S_i(x)`` in
expectation for every ``x``. Only weights are read, never data. :mod:`compress.prune.neurons` has the suprema.

**Meeting a count.** The paper draws with replacement, so the number of different units is left to chance. Here the
draws go on until a unit beyond the k-th different one turns up, which is dropped; the estimate stays unbiased (Pathak
1964). Its weights are then replaced by their expectation given which k units were drawn (Murthy 1957),

    u_i(p) = w_i(p) P(C | p drawn first) / P(C)

with ``P`` the probabilities of the set ``C`` under draws without replacement. The result stays unbiased, no weight is
left to the chance of repeats, and all units kept means all weights kept. Being a conditional expectation, it errs no
more, in every convex sense, than the paper's coreset of ``m = k`` draws: averages over the k first draws have it as
their expectation given ``C``.

**The bound.** The paper's is ``m >= c t / epsilon^2 (d log t + log(1 / delta))`` with a constant that it leaves open,
so no figure follows from it. This one has all its constants and no dimension: by symmetrization and contraction
(Ledoux and Talagrand), and the concentration of suprema by McDiarmid or by Bousquet (2002), whichever is sharper. With
probability at least ``1 - delta``, for all queries and all values ``i`` of the reading layers at once,

    |error_i| <= 2 rho_i / sqrt(k) + min(W_i sqrt(h / 2k), sqrt(2 h (V_i + 4 W_i rho_i / sqrt(k)) / k) + h W_i / 3k)

    rho_i^2 = sum_p (w_i L beta |p|)^2 / pr(p)       V_i = sum_p sup_x (w_i(p) phi(p.x))^2 / pr(p)
    W_i = max_p sup_x w_i phi / pr(p) - min_p inf_x w_i phi / pr(p)                h = log(2 outputs / delta)

Weights of both signs are drawn together; the paper draws the positive and the negative apart, which doubles the error.
All these tails come from moment generating functions, which are convex, so they hold for Murthy's weights too. What
the drawn weights can err by at most is computed as well, and the smaller of the two is reported.

Groups that aren't neurons between two layers (residual streams, gates, transposed convolutions...) are drawn by
products of norms, and the notes say that nothing is promised for them. Each bound is of one group pruned alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from compress.errors import BadInput
from compress.graph.groups import Dependencies
from compress.graph.surgery import planned, remove
from compress.graph.trace import Network
from compress.graph.traces import traced
from compress.prune.amounts import proportional, undershoot
from compress.prune.counter import Counter
from compress.prune.goal import Goal
from compress.prune.neurons import Neurons, neurons
from compress.prune.prunable import prunable
from compress.prune.reweight import reweigh
from compress.types import Context, Note, State


@dataclass(frozen=True, slots=True)
class Bound:
    """What is promised of a coreset.

    Attributes:
        error: the largest absolute error of any value that the reading layers compute, before their activation.
        relative: the largest share that the error has of what removing every unit could do, over the reading layers'
            outputs; from 1 on the bound says nothing.
        probability: that it holds over the draws; 1 where it was computed from the weights that were drawn.
        radius: the Euclidean norm of a neuron's inputs up to which it holds.
    """

    error: float
    relative: float
    probability: float
    radius: float


@dataclass(frozen=True)
class UnitCoreset:
    """The coreset of one group.

    Attributes:
        name: of the group.
        units: how many units the group had.
        keep: indices of those that stay, ascending.
        weights: (units,) float64, by which the reading layers' weights are multiplied; 0 for what goes.
        bound: on the error; None where nothing is promised.
        reason: why nothing is promised; ``""`` where something is.
    """

    name: str
    units: int
    keep: tuple[int, ...]
    weights: Tensor
    bound: Bound | None
    reason: str = ""

    def note(self) -> Note:
        """A sentence for the report."""
        kept = f"keeps {len(self.keep)} of {self.units} units"
        if self.bound is None:
            return Note(self.name, "coreset", f"{kept}, without a bound: {self.reason}")
        if self.bound.relative >= 1:
            return Note(self.name, "coreset", f"{kept}, too few for a bound that says anything")
        return Note(
            self.name,
            "coreset",
            f"{kept}; for inputs of norm {self.bound.radius:.3g} or less, what reads them errs by "
            f"{self.bound.error:.3g} at most ({100 * self.bound.relative:.3g}% of the most), with probability "
            f"{self.bound.probability:g}",
        )


@dataclass(frozen=True, slots=True)
class Coreset:
    """Keep a coreset of each group's units, as large as ``goal`` allows.

    Attributes:
        goal: what to reach.
        radius: the norm of a neuron's inputs up to which the bound is to hold; None for the square root of their
            number.
        failure: ``delta``, the probability with which a group's bound may fail, in (0, 1).
        amounts: ``"bound"`` gives every group the size that the same relative error asks of it, ``"uniform"`` the
            same share. Where a group has no bound, there is nothing to compare, and the shares are the same.
    """

    goal: Goal
    radius: float | None = None
    failure: float = 0.05
    amounts: Literal["bound", "uniform"] = "bound"
    label: ClassVar[str] = "prune by coreset"

    def __call__(self, state: State, context: Context) -> State:
        """The state with a smaller network, its plan, and a note on each group's bound.

        Raises:
            NoPrunableAxis: nothing can be pruned.
            BadInput: the goal is out of reach, or a setting outside its range.
        """
        if not 0 < self.failure < 1:
            raise BadInput(f"failure={self.failure:g}: a probability lies in (0, 1); 0.05 is usual")
        if self.radius is not None and not 0 < self.radius < math.inf:
            raise BadInput(f"radius={self.radius:g}: the norm of a neuron's inputs is above 0 and finite")
        inputs = context.data.train.inputs(2, context.generator)
        network = traced(state.model, (inputs[:2],), context.shared)
        dependencies = prunable(state.model, network, self.goal.skip)
        seen = [neurons(state.model, network, group, self.radius) for group in dependencies.groups]
        counter = Counter.of(network, dependencies, context.target, self.goal)
        kept = proportional(counter, self.goal, context.target.channel_multiple, self._shares(seen))
        drawn = coresets(dependencies, seen, kept, context.generator, self.failure)
        missed = undershoot(counter, self.goal, kept, context.target.channel_multiple)
        state = replace(state, notes=state.notes + missed)
        return reduced(state, network, dependencies, drawn)

    def _shares(self, seen: Sequence[Neurons]) -> list[float]:
        if self.amounts == "uniform" or any(each.reason for each in seen):
            return [1.0] * len(seen)
        return [difficulty(each, self.failure) / len(each.lower) for each in seen]


def coresets(
    dependencies: Dependencies,
    seen: Sequence[Neurons],
    kept: Sequence[int],
    generator: torch.Generator,
    failure: float = 0.05,
) -> list[UnitCoreset]:
    """A coreset of ``kept[i]`` units for each group i.

    Args:
        dependencies: of the network.
        seen: the units of each group.
        kept: between 1 and the number of units.
        generator: what the draws come from.
        failure: probability with which each bound may fail.
    """
    result = []
    for group, each, k in zip(dependencies.groups, seen, kept, strict=True):
        weights = draw(each.sensitivities(), k, generator)
        keep = tuple(torch.nonzero(weights).flatten().tolist())
        bound = None if each.reason else bound_of(each, weights, failure)
        result.append(UnitCoreset(group.name, len(group.units), keep, weights, bound, each.reason))
    return result


def reduced(state: State, network: Network, dependencies: Dependencies, drawn: Sequence[UnitCoreset]) -> State:
    """``state`` with only the coresets in its network, its plan, and the notes."""
    gone = [
        unit
        for group, each in zip(dependencies.groups, drawn, strict=True)
        for i, unit in enumerate(group.units)
        if i not in set(each.keep)
    ]
    weighted = remove(state.model, dependencies, ())
    reweigh(weighted, dependencies.groups, [each.weights for each in drawn], dependencies.shapes)
    notes = state.notes + tuple(each.note() for each in drawn) + dependencies.left_alone + network.notes
    plan = planned(state.plan, dependencies, gone)
    return replace(state, model=remove(weighted, dependencies, gone), plan=plan, notes=tuple(dict.fromkeys(notes)))


# --- drawing ---------------------------------------------------------------------------------------------------------


def draw(sensitivities: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The weights of a coreset of ``k`` different units: 0 for those that aren't in it, else at least 1.

    Args:
        sensitivities: (units,) 0 or more. Units with 0 contribute nothing and are taken last, with weight 1.
        k: between 1 and the number of units.
        generator: on the CPU.

    Returns:
        (units,) float64, in expectation 1 for every unit whose sensitivity isn't 0.
    """
    s = sensitivities.double().abs()  # a contribution of nothing may come as -0.0, and clocks are divided by it
    live = int((s > 0).sum())
    # The first k of draws without replacement are the k that come first among exponential clocks with these rates.
    clocks = torch.empty(len(s), dtype=torch.float64).exponential_(generator=generator) / s
    taken = torch.argsort(clocks, stable=True)[:k]
    weights = torch.zeros_like(s)
    weights[taken] = 1.0
    if k < live:
        pr = s / s.sum()
        outside = torch.ones_like(pr, dtype=torch.bool)
        outside[taken] = False
        weights[taken] = murthy(pr[taken], float(pr[outside].sum()))
    return weights


def murthy(pr: Tensor, rest: float) -> Tensor:
    """``P(C | p first) / P(C)`` of each unit of a set ``C`` drawn without replacement, at least 1.

    With exponential clocks of rates ``pr`` and ``rest`` for all units outside, ``P(C)`` is the probability that all
    of ``C`` ring before any other: the mean of ``prod_{q in C} (1 - exp(-pr_q t))`` over the first other ring ``t``;
    with ``p`` first, ``p``'s factor drops out.

    Args:
        pr: (k,) above 0.
        rest: sum of the probabilities outside ``C``, above 0.
    """

    def log_density(u: Tensor) -> Tensor:  # of log t, up to a constant; concave
        t = u.exp()
        return torch.log(-torch.expm1(-pr[:, None] * t)).sum(0) + u - rest * t

    # The trapezoid rule over log t is exact to rounding for a density that falls off like this one. It is greatest
    # between t = 1 / 2 and (k + 1) / rest, and falls at least like t to the left, like a gamma density to the right.
    low, high = -61.0, math.log((2 * (len(pr) + 1) + 100) / rest)
    for _ in range(3):
        u = torch.linspace(low, high, 2049, dtype=torch.float64)
        logs = log_density(u) - torch.log(-torch.expm1(-pr.min() * u.exp()))
        inside = torch.nonzero(logs > logs.max() - 60.0).flatten()
        step = float(u[1] - u[0])
        low, high = float(u[inside[0]]) - step, float(u[inside[-1]]) + step
    u = torch.linspace(low, high, 2049, dtype=torch.float64)
    logs = log_density(u)
    share = (logs - logs.max()).exp()
    inverse = 1 / -torch.expm1(-pr[:, None] * u.exp())
    return (inverse * share).sum(1) / share.sum()


# --- bounds ----------------------------------------------------------------------------------------------------------


def error_bound(each: Neurons, k: int, failure: float) -> Tensor:
    """(outputs,) the bound of the module's docstring for a coreset of ``k`` units, ``failure`` being ``delta``."""
    s = each.sensitivities()
    used = s > 0
    pr = (s / s.sum())[used, None]
    rho = (each.energy[used] / pr).sum(0).sqrt()
    variance = (each.largest[used].square() / pr).sum(0)
    width = (each.upper[used] / pr).amax(0) - (each.lower[used] / pr).amin(0)
    h, mean = math.log(2 * each.values / failure), 2 * rho / math.sqrt(k)
    mcdiarmid = width * math.sqrt(h / (2 * k))
    bousquet = (2 * h * (variance + 2 * width * mean) / k).sqrt() + h * width / (3 * k)
    return mean + torch.minimum(mcdiarmid, bousquet)


def certain_error(each: Neurons, weights: Tensor) -> Tensor:
    """(outputs,) the most that the coreset with ``weights`` (units,) can err: ``sup |sum_p (u(p) - 1) w_i phi|``."""
    more, less = (weights - 1).clamp_min(0)[:, None], (1 - weights).clamp_min(0)[:, None]
    above = (more * each.upper - less * each.lower).sum(0)
    below = (more * each.lower - less * each.upper).sum(0)
    return torch.maximum(above.abs(), below.abs())


def bound_of(each: Neurons, weights: Tensor, failure: float) -> Bound:
    """The bound for a coreset that was drawn with ``weights``, (units,)."""
    certain, k = certain_error(each, weights), int((weights > 0).sum())
    promised = error_bound(each, k, failure)
    whole = each.whole.clamp_min(1e-300)
    both = torch.minimum(promised, certain)
    probability = 1.0 if bool((certain <= promised).all()) else 1 - failure
    return Bound(float(both.max()), float((both / whole).max()), probability, each.radius)


def sample_size(each: Neurons, relative: float, failure: float) -> int:
    """How many units keep every output's error within ``relative`` of what removing all units could do.

    At most the number of units, which errs by nothing.
    """
    low, high = 0, len(each.lower)
    whole = each.whole.clamp_min(1e-300)
    while high - low > 1:
        middle = (low + high) // 2
        enough = bool((error_bound(each, middle, failure) <= relative * whole).all())
        low, high = (low, middle) if enough else (middle, high)
    return high


def difficulty(each: Neurons, failure: float) -> float:
    """The leading term of the sample size for a relative error of 1, up to rounding above 0: sizes in proportion to it
    give groups the same relative error."""
    s = each.sensitivities()
    used = s > 0
    if not bool(used.any()):
        return 1.0
    pr = (s / s.sum())[used, None]
    h = math.log(2 * each.values / failure)
    root = 2 * (each.energy[used] / pr).sum(0).sqrt() + (2 * h * (each.largest[used].square() / pr).sum(0)).sqrt()
    return float((root / each.whole.clamp_min(1e-300)).max().square().clamp(1e-3, 1e9))
