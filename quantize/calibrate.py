"""From a plan with precisions to a quantized state: fold, place, observe, round."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx, nn

from compress.errors import BadData
from compress.graph.fold import fold_batch_norm, foldable
from compress.graph.groups import PRODUCES
from compress.graph.trace import Network, kind
from compress.graph.traces import traced
from compress.quantize import hardware
from compress.quantize.placement import Placement, place
from compress.quantize.ranges import activation_grid, observe, rounded_, weight_grid
from compress.types import Context, Grid, Plan, Quantization, State


def calibration_inputs(context: Context, generator: torch.Generator) -> torch.Tensor:
    """Training inputs to calibrate on, float32 (N, ...), normalized.

    Raises:
        BadData: they are all alike.
    """
    inputs = context.data.train.inputs(context.samples, generator)
    if len(inputs) > 1 and bool((inputs == inputs[:1]).all()):
        raise BadData(context.data.name, "all inputs are alike, so they show no layer's range", "give different ones")
    return inputs


def folded(state: State, inputs: torch.Tensor, context: Context | None = None) -> tuple[State, Network]:
    """``state`` with its batch norms folded, and the trace of that: its own model where there are none to fold.

    Args:
        state: isn't changed.
        inputs: two of them or more, float32 (N, ...).
        context: of the job whose traces are shared.
    """
    example = (inputs[:2],)
    model = state.model
    shared = {} if context is None else context.shared
    network = traced(model, example, shared)
    pairs, notes = foldable(model, network)
    if pairs:
        model, _ = fold_batch_norm(model, network)
        network = traced(model, example, shared)
    return replace(state, model=model.eval(), notes=state.notes + notes + network.notes), network


def calibrated(state: State, network: Network, plan: Plan, inputs: torch.Tensor, context: Context) -> State:
    """Round the weights and find the activation grids that ``plan`` asks for.

    Args:
        state: its model is the folded one that ``network`` traces.
        network: the trace.
        plan: the layers' precisions.
        inputs: calibration inputs, float32 (N, ...), normalized.
        context: target (signed or unsigned activations) and generator.
    """
    placement = place(network, plan)
    model = copy.deepcopy(state.model)
    activations = activation_grids(placement, network, inputs, context)
    least = least_scales(network, placement, activations, model)
    weights = {
        name: weight_grid(model.get_parameter(name), bits, axis, least.get(name))
        for name, (bits, axis) in placement.weights.items()
    }
    rounded_(model, weights)
    quantization = Quantization(weights, activations, placement.carried)
    made = replace(state, model=model, plan=plan, quantization=quantization, notes=state.notes + placement.notes)
    return hardware.placed(made, network, inputs, context)


def least_scales(
    network: Network, placement: Placement, activations: Mapping[str, Grid], model: nn.Module
) -> dict[str, torch.Tensor]:
    """Weight -> the scale of each output channel below which its bias wouldn't fit into 32 bits, which hold it in
    steps of the weight's scale times the input's.

    Filters that a batch norm has switched off have weights next to 0 and a bias that isn't.
    """
    found: dict[str, torch.Tensor] = {}
    for node in network.nodes:
        weight, bias = (network.parameter(node.args[at]) if len(node.args) > at else None for at in (1, 2))
        source = node.args[0] if node.args else None
        if weight is None or weight not in placement.weights or bias is None or not isinstance(source, fx.Node):
            continue
        grid = activations.get(placement.carried.get(source.name, source.name))
        if grid is not None and PRODUCES[kind(node)] == 0:
            needed = model.get_parameter(bias).detach().abs().double() / (grid.scale[0] * 2.0**30)
            found[weight] = needed.maximum(found[weight]) if weight in found else needed
    return found


def activation_grids(placement: Placement, network: Network, inputs: torch.Tensor, context: Context) -> dict[str, Grid]:
    """The grid of every quantized tensor, from what the float network computes on ``inputs``."""
    samples = activation_samples(placement, network, inputs, context, context.generator)
    return {
        name: activation_grid(samples[name], bits, context.target.activations)
        for name, bits in placement.tensors.items()
    }


def activation_samples(
    placement: Placement, network: Network, inputs: torch.Tensor, context: Context, generator: torch.Generator
) -> Mapping[str, torch.Tensor]:
    """A flat sample of every tensor that gets a grid.

    Raises:
        BadData: the network computes NaN or infinity.
    """
    samples = observe(network, placement.tensors, inputs, generator)
    for name, values in samples.items():
        if not torch.isfinite(values).all():
            raise BadData(
                context.data.name,
                f"the network computes NaN or infinity at {name} on it",
                "check the inputs and the weights",
            )
    return samples


def goes_through(model: nn.Module, data: str, example: torch.Tensor) -> None:
    """See that inputs like ``example`` (N, ...) go through ``model``, which is in evaluation mode.

    Raises:
        BadData: they don't.
    """
    try:
        with torch.no_grad():
            model(example)
    except Exception as error:  # the user's own code may raise anything
        with contextlib.suppress(Exception), torch.no_grad():
            model(example[:1])
            return  # its code fixes the batch
        lines = str(error).splitlines() or [""]
        raise BadData(
            data,
            f"inputs of {' x '.join(map(str, example.shape[1:]))} don't go through the network "
            f"({type(error).__name__}: {lines[0][:160]})",
            "give inputs of the size and channels that it takes",
        ) from error
