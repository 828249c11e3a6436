"""Each operator against a device's roofline (Williams et al. 2009): what it computes, what it moves, what it waits for.

The times by the target's numbers stand beside the latency model's prediction, which may know more (a calibration).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from compress.explanation import LayerWork
from compress.graph.operators import Operator
from compress.profiling.fusion import MOVES_NOTHING, heads
from compress.profiling.latency import padded_macs, rate_for
from compress.results import Estimate
from compress.types import FLOAT32, Note, Precision, Target

FUSIBLE = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "clamp"}
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
    head = heads(operators)
    groups: dict[str, list[Operator]] = {}
    for operator in operators:
        groups.setdefault(head[operator.name], []).append(operator)
    elements = dict(inputs) | {name: max(o.output_elements for o in group) for name, group in groups.items()}
    read = {name: _read(group, head, elements) for name, group in groups.items()}
    own = _precisions(groups, read, precisions, grids)
    integer = {name for name, precision in own.items() if precision.kind != "float"}
    islands = _islands(groups, read, own, integer)
    predicted = {cost.name: cost.latency_s for cost in estimate.per_layer}
    by_path: dict[str, int] = {}
    for name, group in groups.items():
        operator = next(o for o in group if o.name == name)
        if name in predicted:
            by_path[operator.path] = by_path.get(operator.path, 0) + 1
    return tuple(
        _work(
            next(o for o in group if o.name == name),
            by_path,
            own[name],
            sum(elements[tensor] for tensor in read[name]) + elements[name],
            target,
            predicted[name],
            _because(next(o for o in group if o.name == name), notes) if name in islands else None,
        )
        for name, group in groups.items()
        if name in predicted
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


def _read(group: Sequence[Operator], head: Mapping[str, str], elements: Mapping[str, int]) -> tuple[str, ...]:
    """The tensors that a group reads from outside, each once."""
    own = head[group[0].name]
    tensors = (head.get(name, name) for operator in group for name in operator.inputs)
    return tuple(dict.fromkeys(tensor for tensor in tensors if tensor != own and tensor in elements))


def _precisions(
    groups: Mapping[str, Sequence[Operator]],
    read: Mapping[str, Sequence[str]],
    planned: Mapping[str, Precision],
    grids: Collection[str],
) -> dict[str, Precision]:
    """The precision of each group: its layer's; of what has no weights, that of its first input, unless that result
    has no grid though something reads it."""
    readers = {tensor for tensors in read.values() for tensor in tensors}
    found: dict[str, Precision] = {}
    for name, group in groups.items():
        layer = next((o for o in group if o.name == name and o.path in planned and o.weights), None)
        if layer is not None:
            found[name] = planned[layer.path]
            continue
        in_float = bool(grids) and name in readers and not any(o.name in grids for o in group)
        inherited = next((found[tensor] for tensor in read[name] if tensor in found), FLOAT32)
        moves = all(o.kind in MOVES_NOTHING for o in group)
        found[name] = FLOAT32 if in_float and not moves else inherited
    return found


def _islands(
    groups: Mapping[str, Sequence[Operator]],
    read: Mapping[str, Sequence[str]],
    precisions: Mapping[str, Precision],
    integer: Collection[str],
) -> set[str]:
    """Groups in float32 that lead on to integers: layers anywhere in such a network, the rest if integers follow."""
    if not integer:
        return set()
    leads: set[str] = set()
    for name in reversed(list(groups)):
        if name in integer or name in leads:
            leads.update(read[name])
    return {
        name
        for name, group in groups.items()
        if precisions[name].kind == "float" and (any(o.weights for o in group) or name in leads)
    }


def _work(
    operator: Operator,
    by_path: Mapping[str, int],
    precision: Precision,
    moved_elements: int,
    target: Target,
    predicted_s: float,
    island: str | None,
) -> LayerWork:
    rate = rate_for(target, precision)
    computed = rate.precision
    reached = rate.macs_per_s * rate.efficiency
    padded = padded_macs(operator, target.channel_multiple)
    weight_bits = max(computed.weight_bits, 8) if target.weights_in_ram else computed.weight_bits
    moved = (operator.weights * weight_bits + moved_elements * computed.activation_bits) / 8
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
