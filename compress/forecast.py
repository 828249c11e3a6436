"""What can be expected of a job's proposals before one is made: damage, latency, bytes.

The damage of pruning is what its method says (:mod:`compress.prune.outlook`), that of rounding the second-order
perturbation of the layers' weights, at the widths that are cheapest for the average; latency and memory are those of
the target's models. Forecasts only sort: :mod:`compress.surrogate` learns what damage means in accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from compress.graph.operators import Operator
from compress.job import Job, reference
from compress.profiling import memory
from compress.profiling.latency import works
from compress.prune import roster as pruning
from compress.prune.goal import Goal, Measure
from compress.prune.outlook import Outlook, outlook
from compress.quantize.choices import stored_bits
from compress.quantize.mixed import allocate
from compress.search import SMALLEST, Proposal, precisions, share_of
from compress.types import FLOAT32, LayerSensitivity, Precision, Progress, State

AVERAGES = 9
"""Average widths to choose from, at most."""

SIZES = 40
"""Sizes to choose from; always the same, so that jobs that ask for more candidates share some."""

EACH_DEPTH = 3
"""Of the sizes every so many are foreseen of networks without some blocks."""

MOVED = 1 << 14
"""Elements that take about as long to move as an operator takes to start."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of a proposal.

    Attributes:
        pruning: damage by what is removed, 0 where nothing is; on the method's own scale.
        rounding: damage by narrow weights: expected increase of the loss, in nats for classification.
        latency_s, ram_bytes: as the target's models have it.
        flash_bytes: of packed weights and other parameters, without what else a file holds.
        depth: damage by residual blocks that are left out, 0 where none is; on a scale of its own.
        times: what time is judged by, each with its own unit: the latency of every runtime that is compared; where
            there is no calibration, and a runtime takes operators one by one, also :func:`starting`.
    """

    proposal: Proposal
    pruning: float
    rounding: float
    latency_s: float
    ram_bytes: int
    flash_bytes: int
    depth: float = 0.0
    times: tuple[float, ...] = ()


def forecasts(
    job: Job,
    least: tuple[float, float],
    sensitivity: Sequence[LayerSensitivity],
    progress: Progress,
) -> tuple[Forecast, ...]:
    """All proposals that a search of ``job`` chooses from, those that differ in nothing but their name once.

    Args:
        job: what was asked for.
        least: the smallest fractions of multiply-accumulates and parameters that pruning reaches.
        sensitivity: of the layers; empty where widths aren't chosen by it.
        progress: told what is happening.
    """
    widths = job.search_widths()
    choices = precisions(widths, job.budget.weight_bits, AVERAGES)
    if job.limited:
        choices = [(bits, mixed or bits is not None) for bits, mixed in choices]
    layers = {each.path: each for each in reference(job).operators if each.weights}
    roundings = [_rounding(job, bits, layers, sensitivity) for bits, _ in choices]
    found: list[Forecast] = []
    known: set[object] = set()
    for proposed, look in _sizes(job, least, progress):
        for (bits, mixed), (damage, plan) in zip(choices, roundings, strict=True):
            key = (proposed.blocks, look.kept, tuple(sorted(plan.items())))
            if key in known:
                continue
            known.add(key)
            proposal = replace(proposed, weight_bits=bits, mixed=mixed)
            found.append(_forecast(job, proposal, look, damage, plan))
    return tuple(found)


def _forecast(job: Job, proposal: Proposal, look: Outlook, rounding: float, plan: Mapping[str, Precision]) -> Forecast:
    seconds = [job.seconds(look.operators, look.inputs, plan, runtime) for runtime in job.compared_runtimes]
    times = tuple(seconds)
    if job.guesses_overhead:
        # A GPU has moved a tensor before it has started the next operator.
        times += (starting(look.operators, look.inputs, math.inf if job.target.gpu is not None else MOVED),)
    weights = {each.path: each.weights for each in look.operators if each.weights}
    packed = sum(-(-n * stored_bits(plan[path].weight_bits) // 8) for path, n in weights.items())
    flash = packed + 4 * max(0, look.params - sum(weights.values()))
    bits = max(each.activation_bits for each in plan.values())
    names = [*look.inputs, *(each.name for each in look.operators)]
    peak = memory.peak_ram(look.operators, dict.fromkeys(names, bits), flash, job.target, inputs=look.inputs)
    return Forecast(proposal, look.damage, rounding, min(seconds), peak.bytes, flash, look.depth, times)


def starting(operators: Sequence[Operator], inputs: Mapping[str, int], moved: float = MOVED) -> float:
    """What a runtime spends that takes operators one by one, without their arithmetic, in starts of an operator.

    One each, and one more for ``moved`` elements that it writes: by ONNX Runtime's own profile of ResNet-56 in 8 bits,
    convolutions of equal work take the longer the more elements they write, by about as much for 16,384 as the smallest
    operators take at all. Where nothing was measured on a device, this is as good a guess as the data sheet's rates.
    """
    return sum(1.0 + work.written / moved for work, _ in works(operators, lambda operator: None, inputs))


def _sizes(job: Job, least: tuple[float, float], progress: Progress) -> Iterator[tuple[Proposal, Outlook]]:
    """What can be kept, largest first, by every measure that the job can prune for."""
    progress("foresee what pruning damages")
    size = reference(job).size
    whole = float(size.macs), float(size.params)
    for measure in _measures(job):
        looks = list(_looks(job, measure, progress))
        seconds = [0.0] * len(looks)
        if measure == "latency_s":
            runtime = job.judged_runtime
            seconds = [job.seconds(look.operators, look.inputs, job.precision, runtime) for look in looks]
        for proposal in _proposed(job, measure, least):
            most = (*_most(proposal, whole), (proposal.latency or 1.0) * seconds[0])
            inside = (
                look
                for look, taken in zip(looks, seconds, strict=True)
                if look.macs <= most[0] and look.params <= most[1] and taken <= most[2]
            )
            look = next(inside, None)
            if look is not None:
                yield proposal, look
    yield from _shallower(job, least, whole, progress)


def _shallower(
    job: Job, least: tuple[float, float], whole: tuple[float, float], progress: Progress
) -> Iterator[tuple[Proposal, Outlook]]:
    """Networks without some residual blocks, with all of the other channels and with fewer."""
    for count in job.depths(progress):
        looks = list(outlook(job.depth(count), State(job.model), job.context("outlook", progress), "macs"))
        if not looks:
            continue
        sizes = list(_proposed(job, "macs", least))
        left = math.ceil(100 * looks[0].macs / whole[0]) / 100
        first = replace(sizes[0], macs=left if sizes[0].macs is None else min(left, sizes[0].macs))
        for proposal in (first, *(each for each in sizes[::EACH_DEPTH] if (each.macs or 1.0) < left)):
            most = _most(proposal, whole)
            look = next((look for look in looks if look.macs <= most[0] and look.params <= most[1]), None)
            if look is not None:
                yield replace(proposal, blocks=count), look


def _most(proposal: Proposal, whole: tuple[float, float]) -> tuple[float, float]:
    """The multiply-accumulates and parameters that a proposal allows."""
    return (proposal.macs or 1.0) * whole[0] * (1 + 1e-9), (proposal.params or 1.0) * whole[1] * (1 + 1e-9)


def _proposed(job: Job, measure: Measure, least: tuple[float, float]) -> Iterator[Proposal]:
    """Sizes to choose from, in float, largest first; none is above what was asked for."""
    macs, params = job.budget.macs, job.budget.params
    tops = (1.0 if macs is None and params is None else macs, params)
    count = 1 if job.prune is None else SIZES
    for i in range(count):
        size = SMALLEST ** (i / max(1, count - 1))
        if measure == "macs":
            shares = [None if top is None else share_of(size, low, top) for top, low in zip(tops, least, strict=True)]
            yield Proposal(shares[0], shares[1], None, False)
        elif i > 0:  # the whole network is among the others
            yield Proposal(macs, params, None, False, round(size, 3))


def _measures(job: Job) -> tuple[Measure, ...]:
    """What the job can prune for: a latency only where its model was calibrated for what is going to run."""
    calibration = job.target.calibration
    if job.prune is None or calibration is None or calibration.unit != "s":
        return ("macs",)
    kind = job.precision.kind
    return ("macs", "latency_s") if calibration.fit(job.judged_runtime, kind) is not None else ("macs",)


def _looks(job: Job, measure: Measure, progress: Progress) -> Iterator[Outlook]:
    if job.prune is None:
        whole = reference(job)
        yield Outlook((), whole.size.macs, whole.size.params, 0.0, whole.operators, whole.inputs)
        return
    goal = Goal(tuned_after=job.epochs > 0)
    if measure == "latency_s":
        goal = replace(goal, precision=job.precision, runtime=job.judged_runtime)
    yield from outlook(pruning.METHODS[job.prune](goal), State(job.model), job.context("outlook", progress), measure)


def _rounding(
    job: Job,
    bits: float | None,
    layers: Mapping[str, Operator],
    sensitivity: Sequence[LayerSensitivity],
) -> tuple[float, dict[str, Precision]]:
    """The damage of an average width, and each layer's precision."""
    if bits is None:
        return 0.0, dict.fromkeys(layers, FLOAT32)
    costs = {(each.name, width): cost for each in sensitivity for width, cost in each.perturbations}
    named = tuple(operator for path, operator in layers.items() if any(path == each.name for each in sensitivity))
    if not named or len({width for _, width in costs}) < 2:
        # Rounding errors are uniform, so their squares fall by 4 with every bit.
        width = round(bits)
        return 4.0**-bits, dict.fromkeys(layers, Precision(width, job.activation_bits, "integer"))
    widths = tuple(sorted({width for _, width in costs}))
    chosen = allocate(named, costs, widths, max(bits, float(widths[0])))
    damage = sum(costs[path, width] for path, width in chosen.items())
    rest = dict.fromkeys(layers, Precision(widths[-1], job.activation_bits, "integer"))
    return damage, rest | {path: Precision(width, job.activation_bits, "integer") for path, width in chosen.items()}


__all__ = ["Forecast", "forecasts"]
