"""How much the loss depends on each layer's weights: traces, eigenvalues and what rounding costs, side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compress import data as datasets
from compress import targets
from compress.graph.module import in_evaluation_mode
from compress.graph.trace import layer_name
from compress.quantize.calibrate import goes_through
from compress.quantize.hessian import top_eigenvalues, traces
from compress.quantize.mixed import integer_precisions
from compress.quantize.study import Study, shared_study
from compress.types import Budget, Context, LayerSensitivity, Progress, State, Target

IMAGES, EIGENVALUE_IMAGES = 128, 32
"""Inputs for traces, and how many of them for eigenvalues, whose cost grows with the square of that."""


def sensitivity(
    model: nn.Module,
    data: Any,
    *,
    target: Target | str | None = None,
    activation_bits: int = 8,
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> tuple[LayerSensitivity, ...]:
    """The sensitivity of every convolution and linear layer, in the order in which they run.

    The loss is the cross-entropy against the network's own predictions, for data without classes the squared error
    over the output's mean square, so no labels are read. Batch norms are folded first: the weights are those that
    would be rounded.

    Args:
        model: any traceable module with one input; it is not changed.
        data: as for :func:`compress.quantize.quantize`.
        target: whose widths are compared; this machine by default.
        activation_bits: which of the target's precisions.
        seed: the source of all randomness.
        progress: told what is happening.

    Raises:
        BadInput: the target has no integer kernels; data that can't be used.
        Untraceable: the network can't be traced.
    """
    device = target if isinstance(target, Target) else targets.load(target or "cpu")
    dataset = datasets.from_python(data, divisible=False)
    context = Context(device, Budget(), dataset, torch.Generator().manual_seed(seed), progress=progress, seed=seed)
    network = in_evaluation_mode(model)
    goes_through(network, dataset.name, dataset.train.inputs(2, torch.Generator().manual_seed(seed)))
    return of_job(State(network), context, activation_bits)


def of_job(state: State, context: Context, activation_bits: int) -> tuple[LayerSensitivity, ...]:
    """The same for a job's network, from the study that its candidates share."""
    return of_study(shared_study(state, context, integer_precisions(context.target, activation_bits)), context)


def of_study(study: Study, context: Context) -> tuple[LayerSensitivity, ...]:
    """Traces and eigenvalues beside what a study has found already."""
    inputs = study.inputs[:IMAGES].cpu()
    model = study.state.model
    size = min(study.batch, 32)
    loss, given = None, list[Any](inputs.split(size))
    if context.data.task != "classification":
        loss = _relative_error
        with torch.no_grad():
            given = [(x, model(x)) for x in given]
    context.progress("traces and eigenvalues of the Hessian")
    seed, shared = context.seed, context.shared
    found = traces(model, given, loss, generator=torch.Generator().manual_seed(seed), shared=shared)
    few = given[: max(1, EIGENVALUE_IMAGES // size)]
    top = top_eigenvalues(model, few, loss, generator=torch.Generator().manual_seed(seed), shared=shared)
    rows = []
    for weight in study.placement.weights:
        operator = study.operators[layer_name(weight)][0]
        costs = sorted((bits, cost) for (name, bits), cost in study.costs.weights.items() if name == weight)
        trace, value = found[operator.path], top[operator.path]
        rows.append(
            LayerSensitivity(
                operator.path,
                operator.kind,
                operator.weights,
                trace.value,
                trace.standard_error,
                value.value,
                tuple(costs),
            )
        )
    return tuple(rows)


def _relative_error(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return 0.5 * (output - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12)
