"""Each operator against a device's roofline (Williams et al. 2009): what it computes, what it moves, what it waits for.

The times by the target's numbers stand beside the latency model's prediction, which may know more (a calibration).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from compress.explanation import LayerWork
from compress.graph.operators import Operator
from compress.profiling.fusion import Group, groups
from compress.profiling.latency import computing_rate, padded_macs, rate_for
from compress.results import Estimate
from compress.types import FLOAT32, Note, Precision, Target

FUSIBLE = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu"}
    | {"clamp", "clamp_min", "clamp_max"}
    | {"batch_norm"}
)
"""Kinds that runtimes compute with the layer in front of them, unless something else reads that too."""

LEFT_IN_FLOAT = ("stays float: ", "computed in float: ")
"""What the notes of quantization and of lowering begin with."""


def works(
    operators: Sequence[Operator],
    precisions: Mapping[str, Precision],
    target: Target,
    estimate: Estimate,
    *,
    inputs: Mapping[str, int],
    grids: Collection[str] = (),
    notes: Sequence[Note] = (),
) -> tuple[LayerWork, ...]:
    """The operators that take time, in the order of execution, with what is fused into them.

    Args:
        operators: in the order of execution.
        precisions: of each layer with weights, by module path.
        target: the device.
        estimate: the latency model's word on the same operators.
        inputs: elements of each of the network's inputs by name.
        grids: the operators whose results are integers; without any, the network is a float one.
        notes: what quantization and lowering left in float, and why.
    """
    found = groups(operators, inputs)
    own = _precisions(found, precisions, grids)
    islands = _islands(found, own)
    predicted = {cost.name: cost.latency_s for cost in estimate.per_layer}
    timed = [group for group in found if group.name in predicted]
    by_path = Counter(group.operator.path for group in timed)
    return tuple(
        _work(
            group,
            by_path,
            own[group.name],
            target,
            predicted[group.name],
            _because(group.operator, notes) if group.name in islands else None,
        )
        for group in timed
    )


def beside(now: Sequence[LayerWork], before: Sequence[LayerWork]) -> tuple[LayerWork, ...]:
    """The layers of ``now`` with what the same layers of the float network were, by name and kind."""
    were = {(layer.name, layer.kind): layer for layer in before}

    def with_before(layer: LayerWork) -> LayerWork:
        was = were.get((layer.name, layer.kind))
        if was is None:
            return layer
        return replace(layer, macs_before=was.macs, predicted_before_s=was.predicted_s)

    return tuple(with_before(layer) for layer in now)


def _precisions(
    found: Sequence[Group], planned: Mapping[str, Precision], grids: Collection[str]
) -> dict[str, Precision]:
    """The precision of each group: its layer's; of what has no weights, that of its first input, unless that result
    has no grid though something reads it."""
    readers = {tensor for group in found for tensor in group.reads}
    own: dict[str, Precision] = {}
    for group in found:
        operator, name = group.operator, group.name
        if operator.path in planned and operator.weights:
            own[name] = planned[operator.path]
            continue
        in_float = bool(grids) and name in readers and not any(o.name in grids for o in (operator, *group.fused))
        inherited = next((own[tensor] for tensor in group.reads if tensor in own), FLOAT32)
        own[name] = FLOAT32 if in_float and not group.moves_nothing else inherited
    return own


def _islands(found: Sequence[Group], precisions: Mapping[str, Precision]) -> set[str]:
    """Groups in float32 that lead on to integers: layers anywhere in such a network, the rest if integers follow."""
    integer = {name for name, precision in precisions.items() if precision.kind != "float"}
    if not integer:
        return set()
    leads: set[str] = set()
    for group in reversed(found):
        if group.name in integer or group.name in leads:
            leads.update(group.reads)
    return {
        group.name for group in found if group.name not in integer and (group.operator.weights or group.name in leads)
    }


def _work(
    group: Group,
    by_path: Mapping[str, int],
    precision: Precision,
    target: Target,
    predicted_s: float,
    island: str | None,
) -> LayerWork:
    operator = group.operator
    rate = computing_rate(target, precision)
    computed = rate.precision
    reached = rate.macs_per_s * rate.efficiency
    padded = padded_macs(operator, target.channel_multiple)
    weight_bits = max(computed.weight_bits, 8) if target.weights_in_ram else computed.weight_bits
    moved = (operator.weights * weight_bits + (group.read + group.written) * computed.activation_bits) / 8
    wider = _wider(target, precision)
    return LayerWork(
        name=operator.path if operator.path and by_path[operator.path] == 1 else operator.name,
        operator=operator.name,
        kind=operator.kind,
        in_channels=operator.in_channels,
        out_channels=operator.out_channels,
        macs=operator.macs,
        padded_macs=round(padded),
        bytes=round(moved),
        precision=precision,
        computed_as=computed,
        macs_per_s=reached,
        wider_macs_per_s=wider,
        compute_s=padded / reached,
        memory_s=moved / target.bandwidth_bytes_per_s,
        launch_s=target.launch_overhead_s,
        predicted_s=predicted_s,
        unfused=operator.kind in FUSIBLE and operator.fused_into is None,
        float_island=island is not None,
        float_because=island or "",
    )


def _because(operator: Operator, notes: Sequence[Note]) -> str:
    """Why an operator stays in float: what was noted of its layer, else of its kind; empty where nothing was."""
    for note in notes:
        reason = next((note.why.removeprefix(start) for start in LEFT_IN_FLOAT if note.why.startswith(start)), None)
        if reason is not None and (note.where == operator.path or note.what.lower() == operator.kind):
            return reason
    return ""


def _wider(target: Target, precision: Precision) -> float | None:
    """What the kernel of the next wider precision reaches."""
    if precision.kind == "float":
        return None
    wider = [p for p in target.precisions if p.weight_bits > precision.weight_bits]
    if not wider:
        return None
    rate = rate_for(target, min(wider, key=lambda p: (p.weight_bits, p.activation_bits)))
    return rate.macs_per_s * rate.efficiency


__all__ = ["FUSIBLE", "beside", "works"]
