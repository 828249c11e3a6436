"""From limits in a user's words to an allocation: what each choice stores, holds in memory and takes.

Bytes of the file, RAM, seconds and bit operations are counted as the rest of the project counts them: RAM by the
lifetimes of :mod:`compress.profiling.memory`, seconds by :mod:`compress.profiling.latency`, the file's size by weights
as they are packed and, where files are written, by what a file of this network takes beside its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from compress.errors import LimitsUnreachable
from compress.graph import costs
from compress.graph.operators import Operator
from compress.graph.trace import kind, layer_name, shape
from compress.profiling import memory
from compress.quantize import hardware
from compress.quantize.allocation import Allocation, solve
from compress.quantize.choices import LayerChoice, Limits, Option, Problem, TensorChoice, on_target, stored_bits
from compress.quantize.placement import JOINS
from compress.quantize.ranges import weight_grid
from compress.quantize.study import Study
from compress.types import FLOAT32, Budget, Context, Note, Quantization

BIAS_BYTES = 4
"""Of a parameter that isn't a layer's weight: float32, or int32 where it is an integer layer's bias."""


def asked(budget: Budget, weight_bits: float) -> Limits:
    """The limits of a budget that choosing widths can keep."""
    return Limits(
        weight_bytes=budget.flash_bytes,
        weight_bits=weight_bits,
        bit_operations=budget.bit_operations,
        ram_bytes=budget.ram_bytes,
        latency_s=budget.latency_s,
    )


def problem(study: Study, context: Context, limits: Limits) -> Problem:
    """What can be chosen in the network of ``study``, with the figures that ``limits`` is about."""
    widths = study.activation_widths
    layers = tuple(_layer(study, weight) for weight in study.placement.weights)
    tensors: tuple[TensorChoice, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    if len(widths) > 1 or limits.ram_bytes is not None:
        tensors = tuple(
            TensorChoice(name, 0, 0, 0, {bits: study.costs.activations.get((name, bits), 0.0) for bits in widths})
            for name in study.placement.tensors
        )
        ties = _joined(study)
    else:
        layers = tuple(replace(layer, reads=()) for layer in layers)
    operators = costs.operators(study.network)
    inputs = _inputs(study)
    if limits.ram_bytes is not None:
        held, together = _memory(study, operators, inputs)
        tensors, ties = (*tensors, *held), (*ties, *together)
    weights = sum({operator.path: operator.weights for operator in operators if operator.weights}.values())
    chosen = {operator.path for group in study.operators.values() for operator in group}
    chosen &= {layer.name for layer in layers}
    floats = {o.path: o.weights for o in operators if o.weights and o.path not in chosen}
    there = hardware.precisions(study.state.model, context.target)
    packed = sum(-(-floats.pop(path, 0) * stored_bits(there[path].weight_bits) // 8) for path in there)
    rest = max(0, BIAS_BYTES * (costs.size(study.network).params - weights + sum(floats.values()))) + packed
    in_ram = context.target.weights_in_ram
    found = Problem(layers, tensors, ties, in_ram, fixed_weight_bytes=rest, fixed_ram_bytes=rest if in_ram else 0)
    if limits.latency_s is not None:
        found = on_target(
            found,
            operators,
            context.target,
            inputs=inputs,
            precisions=study.precisions,
            fixed={**dict.fromkeys(floats, FLOAT32), **there},
        )
    return found


def binding(study: Study, context: Context, limits: Limits) -> Limits:
    """``limits`` without that on RAM where the widest precisions are within it."""
    if limits.ram_bytes is None:
        return limits
    operators = costs.operators(study.network)
    bits = study.activation_widths[-1]
    owned = [name for name in (*study.placement.tensors, *study.placement.carried) if study.owner(name) is not None]
    weights = sum(p.numel() for p in study.state.model.parameters()) * BIAS_BYTES
    peak = memory.peak_ram(operators, dict.fromkeys(owned, bits), weights, context.target, inputs=_inputs(study))
    return replace(limits, ram_bytes=None) if peak.bytes <= limits.ram_bytes else limits


def _inputs(study: Study) -> dict[str, int]:
    return {name: study.inputs[0].numel() for name in study.network.inputs}


def _layer(study: Study, weight: str) -> LayerChoice:
    operators = study.operators[layer_name(weight)]
    weights, macs = operators[0].weights, sum(operator.macs for operator in operators)
    reads = [study.owner(operator.inputs[0]) for operator in operators if operator.inputs]
    options = tuple(
        Option(
            precision,
            study.costs.weights[weight, precision.weight_bits],
            -(-weights * stored_bits(precision.weight_bits) // 8),
            macs * precision.weight_bits * precision.activation_bits,
        )
        for precision in study.precisions
        if (weight, precision.weight_bits) in study.costs.weights
    )
    return LayerChoice(
        operators[0].path, weights, tuple(dict.fromkeys(name for name in reads if name is not None)), options
    )


def _joined(study: Study) -> tuple[tuple[str, ...], ...]:
    """The operands of every addition, product and concatenation: kernels take them at equal width."""
    found = []
    for node in study.network.nodes:
        if kind(node) in JOINS:
            sources = [study.owner(each.name) for each in node.all_input_nodes if shape(each)]
            tied = tuple(dict.fromkeys(name for name in sources if name is not None))
            if len(tied) > 1:
                found.append(tied)
    return tuple(found)


def _memory(
    study: Study, operators: tuple[Operator, ...], inputs: Mapping[str, int]
) -> tuple[list[TensorChoice], list[tuple[str, ...]]]:
    """The memory that tensors lie in, each as a tensor that is as wide as those that lie in it.

    Tensors that lie in the same memory one after the other are tied, as a wider one couldn't overwrite a narrower one.
    """
    widths = study.activation_widths
    owners = {
        name: owner for name in (*study.placement.tensors, *study.placement.carried) if (owner := study.owner(name))
    }
    held, ties = [], []
    for number, life in enumerate(memory.lifetimes(operators, dict.fromkeys(owners, widths[-1]), inputs=inputs)):
        name = f"memory {number} ({life.names[0]})"
        inside = tuple(dict.fromkeys(owners[each] for each in life.names if each in owners))
        if life.bits == widths[-1] and inside:
            held.append(TensorChoice(name, life.elements, life.first, life.last, dict.fromkeys(widths, 0.0)))
            ties.append((name, *inside))
        else:
            held.append(TensorChoice(name, life.elements, life.first, life.last, {life.bits: 0.0}))
    return held, ties


def file_overhead(study: Study, context: Context) -> int:
    """Bytes that a file of the network takes beside its packed weights, at most; without files, its other parameters.

    That of the narrowest precisions: they need more operators than wider ones do.
    """
    if context.file_bytes is None:
        return 0
    least = min(study.precisions)
    parameters = dict(study.state.model.named_parameters())
    weights = {
        name: weight_grid(parameters[name], least.weight_bits, axis)
        for name, (_, axis) in study.placement.weights.items()
    }
    weights |= hardware.weight_grids(study.state.model, hardware.precisions(study.state.model, context.target))
    activations = {name: grids[study.activation_widths[0]] for name, grids in study.grids.items()}
    state = replace(study.state, quantization=Quantization(weights, activations, study.placement.carried))
    packed = sum(-(-parameters[name].numel() * stored_bits(least.weight_bits) // 8) for name in weights)
    return context.file_bytes(state) - packed


def allocate(found: Problem, limits: Limits, device: Limits, nearest: bool) -> tuple[Allocation, tuple[Note, ...]]:
    """The allocation of least perturbation within the limits.

    Args:
        found: what can be chosen.
        limits: what was asked for.
        device: the same and what the device has; where it can't be met, the least possible is met and a note says so.
        nearest: the same for ``limits``.

    Raises:
        LimitsUnreachable: ``limits`` can't be met, and the nearest isn't wanted.
    """
    try:
        return solve(found, device), ()
    except LimitsUnreachable as error:
        if not nearest:
            try:
                solve(found, limits)
            except LimitsUnreachable as refused:
                raise _in_the_budgets_words(refused) from None
        note = Note("the whole network", "bits", f"{_in_the_budgets_words(error)}; the nearest was taken")
        given = {name: max(limit, error.least[name]) for name, limit in device.given().items()}
    while True:
        try:
            return solve(found, Limits(**given)), (note,)  # type: ignore[arg-type]  # bytes stay integers
        except LimitsUnreachable:
            given.pop(next(name for name in GIVEN_UP if name in given))


def _in_the_budgets_words(error: LimitsUnreachable) -> LimitsUnreachable:
    """The same with the names of :class:`compress.types.Budget`."""
    names = {"weight_bytes": "flash_bytes"}
    limits, least = (
        {names.get(name, name): value for name, value in each.items()} for each in (error.limits, error.least)
    )
    return LimitsUnreachable(limits, least)


GIVEN_UP = ("latency_s", "bit_operations", "ram_bytes", "weight_bytes", "weight_bits")
"""The order in which limits are given up that can be met alone, but not together."""
