"""Quantization by one call from Python."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from compress import data as datasets
from compress import targets
from compress.errors import BadInput, UnknownName
from compress.graph import costs
from compress.graph.module import in_evaluation_mode
from compress.graph.qdq import insert
from compress.graph.traces import traced
from compress.quantize import roster
from compress.quantize.calibrate import goes_through
from compress.quantize.mixed import default_activation_bits
from compress.types import FLOAT32, Budget, Context, Plan, Quantization, Record, State, Target

LIMITS = ("flash_bytes", "ram_bytes", "latency_s", "bit_operations")
"""What of a budget is met by the choice of bits."""


@dataclass(frozen=True)
class Quantized:
    """What :func:`quantize` returns.

    Attributes:
        model: a network of the user's own class, batch norms folded, its weights on their grids;
            activations are not rounded in it.
        simulation: a module that computes what the exported file computes, activations rounded too.
        plan: the precision of every layer.
        report: sizes before and after, and what stays float and why.
        state: model, plan and grids as the exporters take them.
    """

    model: nn.Module
    simulation: nn.Module
    plan: Plan
    report: Record
    state: State


def quantize(
    model: nn.Module,
    data: Any,
    *,
    weight_bits: float | None = None,
    activation_bits: int | None = None,
    budget: Budget | None = None,
    target: Target | str | None = None,
    method: str | None = None,
    seed: int = 0,
) -> Quantized:
    """Round a network's weights and find the ranges of its activations, without training.

    Args:
        model: any traceable module with one input; it is not changed.
        data: calibration data: a DataLoader, an (inputs, labels) pair, a generator of batches, or just
            a float32 tensor of inputs (N, ...).
        weight_bits: average over all layers' weights, at most; a method that gives every layer the same bits rounds it.
            32 leaves the network in float: the identity.
        activation_bits: bits of activations, 8 by default. Where a limit of ``budget`` can't be met with as many,
            single tensors get fewer, as far as the target has kernels for that.
        budget: gives both where they aren't given, and limits: ``flash_bytes`` of the packed weights and the other
            parameters (a file's own structure comes on top), ``ram_bytes``, ``latency_s`` as predicted,
            ``bit_operations``. Its ``macs``, ``params`` and ``max_accuracy_drop`` aren't for this step.
        target: whose precisions are allowed, and whether activations are signed; this machine by default.
        method: one of ``compress.quantize.roster.METHODS``; None for the best for what was asked.
        seed: the source of all randomness.

    Raises:
        BadInput: bits that the target can't run, an unknown method, data that can't be used.
        LimitsUnreachable: limits that can't be met; the least possible is named.
        Untraceable: the network can't be traced.
    """
    budget = budget or Budget()
    model = in_evaluation_mode(model)
    device = targets.load(target or "cpu") if not isinstance(target, Target) else target
    bits = next((float(b) for b in (weight_bits, budget.weight_bits) if b is not None), 8.0)
    activations = next(
        (b for b in (activation_bits, budget.activation_bits) if b is not None), default_activation_bits(device)
    )
    chosen = method or roster.DEFAULT
    if chosen not in roster.METHODS:
        raise UnknownName("quantization method", chosen, roster.METHODS)
    limits = {name: getattr(budget, name) for name in LIMITS if getattr(budget, name) is not None}
    if limits and chosen not in roster.LIMITED:
        raise BadInput(
            f"{chosen} chooses no bits under {', '.join(limits)}; take method {' or '.join(sorted(roster.LIMITED))!r}, "
            "or leave them out of the budget"
        )
    for name, limit in limits.items():
        if not limit > 0:
            raise BadInput(f"{name}={limit}: a limit must be above 0")
    if bits == FLOAT32.weight_bits and not limits:
        if activation_bits not in (None, FLOAT32.activation_bits):
            raise BadInput(
                f"weight_bits=32 with activation_bits={activation_bits}: no kernel reads integers with float weights; "
                "give 1 to 8 bits for both, or 32"
            )
    elif not 1 <= bits <= 8:
        raise BadInput(f"weight_bits={bits:g}: integer weights have 1 to 8 bits, 32 leave the network in float")
    dataset = datasets.from_python(data, divisible=False)
    context = Context(device, budget, dataset, torch.Generator().manual_seed(seed), seed=seed)
    example = dataset.train.inputs(2, torch.Generator().manual_seed(seed))
    goes_through(model, dataset.name, example)
    state = State(copy.deepcopy(model), Plan(seed=seed))
    network = traced(state.model, (example,), context.shared)
    if not costs.layer_operators(network):
        raise BadInput("the network has no convolution or linear layer, so there is nothing to quantize")
    before = costs.size(network)
    start = time.perf_counter()
    if bits == FLOAT32.weight_bits:
        activations = FLOAT32.activation_bits
    else:
        state = roster.METHODS[chosen](bits, activations)(state, context)
    seconds = time.perf_counter() - start
    network = traced(state.model, (example,), context.shared)
    quantization = state.quantization or Quantization()
    report = Record(
        chosen,
        {"weight_bits": bits, "activation_bits": activations},
        seconds,
        before,
        costs.size(network, quantization.layer_bits),
        state.notes,
    )
    state = replace(state, records=(report,))
    simulation = insert(network, quantization)
    return Quantized(state.model, simulation, state.plan, report, state)
