"""Predicted latency of a network on a device, from what was measured there or from the target's numbers.

Where the target carries a calibration, a network's time is the sum of its operators' terms at the prices that were
fitted to measurements (:mod:`compress.profiling.features`), and the interval is the one that held on networks which the
fit hadn't seen. Without one it is a roofline for each operator (Williams et al. 2009): the longer of computing (its
multiply-accumulates at the rate that real kernels reach) and moving its bytes (weights, inputs and output, once each),
and a fixed time to launch. That is a first guess from data sheets: :attr:`Estimate.error` says how far off it may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from compress.calibration import Calibration, Fit
from compress.graph.operators import Operator
from compress.profiling import features, layouts
from compress.profiling.features import Work
from compress.profiling.fusion import groups
from compress.results import Estimate, LayerCost
from compress.types import FLOAT16, FLOAT32, Precision, Rate, Target

PlanPrecision = Callable[[Operator], Precision | None] | Mapping[str, Precision]
CALL = "call"
"""The share of an estimate that belongs to no operator: what a runtime needs for every input."""


def predict(
    operators: Sequence[Operator],
    plan_precision: PlanPrecision,
    target: Target,
    ram_bytes: int,
    flash_bytes: int,
    *,
    inputs: Mapping[str, int],
    runtime: str | None = None,
) -> Estimate:
    """Seconds for one input (batch 1) and each operator's share.

    Operators that are fused into another, or that only rename a tensor, take no time of their own and
    have no entry in ``per_layer``; what a fused operator reads from elsewhere (the shortcut of a
    residual block) is counted with the operator that it is fused into. A calibrated estimate has one entry more,
    :data:`CALL`.

    Args:
        operators: in the order of execution.
        plan_precision: the precision of an operator, or a mapping from module path. An operator for
            which there is none (None, or not in the mapping) works on what made its first input.
        target: the device.
        ram_bytes, flash_bytes: passed on to the estimate.
        inputs: elements of each of the network's inputs by name.
        runtime: what runs it; the target's by default. The data sheet's numbers are the same for all.

    Raises:
        ValueError: an operator reads a tensor that is neither made before nor a network input.
    """
    found = tuple(works(operators, plan_precision, inputs))
    fits = _fits(found, target.calibration, runtime or target.runtime)
    if target.calibration is not None and fits is not None:
        return _calibrated(found, fits, target.calibration, inputs, ram_bytes, flash_bytes)
    costs = tuple(_cost(work.operator, precision, work.read + work.written, target) for work, precision in found)
    return Estimate(
        latency_s=sum(cost.latency_s for cost in costs),
        ram_bytes=ram_bytes,
        flash_bytes=flash_bytes,
        per_layer=costs,
        error=target.prediction_error,
    )


def predicted_instructions(
    operators: Sequence[Operator], plan_precision: PlanPrecision, calibration: Calibration, *, inputs: Mapping[str, int]
) -> tuple[int, float] | None:
    """Instructions for one input of compiled code, and their relative half-width; None where they weren't counted.

    Args:
        operators, plan_precision, inputs: as :func:`predict`'s.
        calibration: of counts.
    """
    fit = calibration.fit("tvm", "integer") if calibration.unit == "instructions" else None
    found = tuple(works(operators, plan_precision, inputs))
    if fit is None or any(precision.kind == "float" and work.operator.weights for work, precision in found):
        return None
    row = network_terms([work for work, _ in found], inputs)
    return round(sum(fit.prices.get(name, 0.0) * value for name, value in row.items())), fit.error


def works(
    operators: Sequence[Operator], plan_precision: PlanPrecision, inputs: Mapping[str, int]
) -> Iterator[tuple[Work, Precision]]:
    """The groups of operators that run as one and take time, with the precision of each; see :func:`predict`."""
    precisions: dict[str, Precision] = {}
    found = groups(operators, inputs)
    for group in found:
        precision = _planned(plan_precision, group.operator)
        if precision is None:
            precision = next((precisions[tensor] for tensor in group.reads if tensor in precisions), FLOAT32)
        precisions[group.name] = precision
    reordered = [
        layouts.reorderings(found, inputs, lambda group: precisions[group.name].kind == "float", block)
        for block in layouts.BLOCKS
    ]
    for group in found:
        if not group.moves_nothing:
            kinds, precision = tuple(each.kind for each in group.fused), precisions[group.name]
            moved = tuple(tuple(each.get(group.name, ())) for each in reordered)
            yield Work(group.operator, group.read, group.written, kinds, precision.weight_bits, moved), precision


def network_terms(found: Sequence[Work], inputs: Mapping[str, int]) -> dict[str, float]:
    """The terms of a whole network by the names that prices have."""
    total = call_terms(found, inputs)
    for work in found:
        for name, value in features.named(work).items():
            total[name] = total.get(name, 0.0) + value
    return total


def call_terms(found: Sequence[Work], inputs: Mapping[str, int]) -> dict[str, float]:
    """The terms that belong to no operator. The last operator makes the network's output."""
    ends = {features.INPUT: float(sum(inputs.values())), features.OUTPUT: float(found[-1].written) if found else 0.0}
    return {features.RUN: 1.0, **ends}


def _fits(found: Sequence[tuple[Work, Precision]], calibration: Calibration | None, runtime: str) -> list[Fit] | None:
    """The fit for each operator; None where a layer has none. What has no weights may take the other kind's."""
    if calibration is None or calibration.unit != "s" or not found:
        return None
    by = {kind: calibration.fit(runtime, kind) for kind in ("float", "integer")}
    fits = []
    for work, precision in found:
        fit = by["float" if precision.kind == "float" else "integer"]
        if fit is None and not work.operator.weights:
            fit = by["integer"] or by["float"]
        if fit is None:
            return None
        fits.append(fit)
    return fits


def _calibrated(
    found: Sequence[tuple[Work, Precision]],
    fits: Sequence[Fit],
    calibration: Calibration,
    inputs: Mapping[str, int],
    ram_bytes: int,
    flash_bytes: int,
) -> Estimate:
    """The estimate at fitted prices: each operator at those of its own kind of numbers, the call at the first one's."""
    ends = call_terms([work for work, _ in found], inputs)
    call = sum(fits[0].prices.get(name, 0.0) * value for name, value in ends.items())
    costs = [LayerCost(CALL, 0, 0, call, "launch")]
    for (work, precision), fit in zip(found, fits, strict=True):
        by_bound = {"compute": 0.0, "memory": 0.0, "launch": 0.0}
        for name, value in features.named(work).items():
            by_bound[features.bound_of(name)] += fit.prices.get(name, 0.0) * value
        stored = -(-work.operator.weights * precision.weight_bits // 8)
        bound = max(by_bound, key=lambda each: by_bound[each])
        costs.append(LayerCost(work.operator.name, work.operator.macs, stored, sum(by_bound.values()), bound))
    return Estimate(
        latency_s=sum(cost.latency_s for cost in costs),
        ram_bytes=ram_bytes,
        flash_bytes=flash_bytes,
        per_layer=tuple(costs),
        error=max(fit.error for fit in fits),
        calibration=calibration.digest(),
    )


def rate_for(target: Target, precision: Precision) -> Rate:
    """The rate at which ``target`` really computes a layer of ``precision``.

    Its own rate where it has one, else that of the next wider precision: the same kind before integer
    before float, the fewest bits first. Wider than all of them: the widest float rate.
    """
    order = ("binary", "integer", "float")
    wide_enough = [
        rate
        for rate in target.macs_per_s
        if order.index(rate.precision.kind) >= order.index(precision.kind)
        and rate.precision.weight_bits >= precision.weight_bits
        and rate.precision.activation_bits >= precision.activation_bits
    ]
    if wide_enough:
        return min(wide_enough, key=lambda rate: (order.index(rate.precision.kind), *_bits(rate)))
    return max(target.macs_per_s, key=lambda rate: (order.index(rate.precision.kind), *_bits(rate)))


def computing_rate(target: Target, precision: Precision) -> Rate:
    """The rate of what runtimes make of a layer that is planned in ``precision``: :func:`rate_for`, but on a GPU with a
    rate for float16 a float32 layer's, as TensorRT's typed file and our CUDA modules take float16 there."""
    on_tensor_cores = target.gpu is not None and precision == FLOAT32 and FLOAT16 in target.precisions
    return rate_for(target, FLOAT16 if on_tensor_cores else precision)


def padded_macs(operator: Operator, multiple: int) -> float:
    """Multiply-accumulates that kernels carry out when they fill channels up to ``multiple``.

    Both channel counts of each group are rounded up; of a depthwise convolution, whose groups are
    computed side by side, the number of output channels.
    """
    if not operator.in_channels or not operator.out_channels:
        return float(operator.macs)
    if operator.groups == operator.in_channels > 1:
        return operator.macs * _padding(operator.out_channels, multiple)
    inner, outer = operator.in_channels // operator.groups, operator.out_channels // operator.groups
    return operator.macs * _padding(inner, multiple) * _padding(outer, multiple)


def _cost(operator: Operator, precision: Precision, moved_elements: int, target: Target) -> LayerCost:
    rate = computing_rate(target, precision)
    computed = rate.precision
    compute_s = padded_macs(operator, target.channel_multiple) / (rate.macs_per_s * rate.efficiency)
    # Weights that are loaded are unpacked once, to what kernels read: a byte at least. Weights that are
    # read in place are unpacked by the kernel, so that the stored bits are what moves.
    weight_bits = max(computed.weight_bits, 8) if target.weights_in_ram else computed.weight_bits
    moved_bytes = (operator.weights * weight_bits + moved_elements * computed.activation_bits) / 8
    memory_s = moved_bytes / target.bandwidth_bytes_per_s
    work_s = max(compute_s, memory_s)
    bound = "launch" if target.launch_overhead_s >= work_s else "compute" if compute_s >= memory_s else "memory"
    stored = -(-operator.weights * precision.weight_bits // 8)
    return LayerCost(operator.name, operator.macs, stored, work_s + target.launch_overhead_s, bound)


def _planned(plan_precision: PlanPrecision, operator: Operator) -> Precision | None:
    if callable(plan_precision):
        return plan_precision(operator)
    return plan_precision.get(operator.path)


def _bits(rate: Rate) -> tuple[int, int]:
    return rate.precision.weight_bits, rate.precision.activation_bits


def _padding(channels: int, multiple: int) -> float:
    return -(-channels // multiple) * multiple / channels
