"""Grids for layers whose weights are in hardware: two values a row, which integers hold as they are.

Nothing is chosen, rounded or trained here. A row of -s and +s is the integers -1 and 1 with the scale s, in one bit; a
row of 0 and s is 0 and 1, in two. What has no kernels for so few bits stores them in more, with the same result. The
image in front gets a grid, so that integer kernels run; what the layer gives has the grid that its reader asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from compress.graph.groups import PRODUCES
from compress.graph.hardware import in_hardware
from compress.graph.operators import Operator
from compress.graph.trace import Network, kind, layer_name
from compress.quantize.ranges import activation_grid, observe
from compress.types import Context, Grid, LayerPlan, Note, Precision, State, Target

WHY = "its weights are in hardware: they stay as they are"


def chosen(operators: tuple[Operator, ...], model: nn.Module) -> tuple[Operator, ...]:
    """Those of ``operators`` whose weights are for a method to choose bits for."""
    fixed = set(in_hardware(model))
    return tuple(operator for operator in operators if operator.path not in fixed)


def precisions(model: nn.Module, target: Target) -> dict[str, Precision]:
    """The precision of each layer in hardware, by path; layers whose rows have more than two values are left out.

    None has one on a target without integer kernels.
    """
    activation_bits = max((p.activation_bits for p in target.precisions if p.kind == "integer"), default=0)
    found = {}
    for path in in_hardware(model):
        weight = model.get_submodule(path).get_parameter("weight")
        integers = _integers(weight)
        if integers is not None and activation_bits:
            found[path] = Precision(1 if bool((integers != 0).all()) else 2, activation_bits, "binary")
    return found


def weight_grids(model: nn.Module, chosen: Mapping[str, Precision]) -> dict[str, Grid]:
    """The grid of each of those layers' weights."""
    found = {}
    for path, precision in chosen.items():
        rows = model.get_submodule(path).get_parameter("weight").detach().flatten(1)
        top = rows.abs().amax(1)
        scale = tuple(float(s) for s in torch.where(top > 0, top, 1.0))
        bits = precision.weight_bits
        found[f"{path}.weight"] = Grid(scale, 0, bits, True, 0, narrow=bits > 1)
    return found


def placed(state: State, network: Network, inputs: Tensor, context: Context) -> State:
    """A quantized state with the grids of its layers in hardware, too.

    Args:
        state: quantized, but for those layers.
        network: the trace of the network, whose nodes the state's grids are named after.
        inputs: calibration inputs (N, ...).
        context: target and generator.
    """
    quantization = state.quantization
    assert quantization is not None
    known = precisions(state.model, context.target)
    left = tuple(Note(path, "weights", f"{WHY}, in float") for path in in_hardware(state.model) if path not in known)
    if not known:
        return replace(state, notes=state.notes + left)
    sources: dict[str, int] = {}
    for node in network.nodes:
        weight = network.parameter(node.args[1]) if kind(node) in PRODUCES and len(node.args) > 1 else None
        if weight is None or layer_name(weight) not in known:
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source.name not in quantization.activations and source.name not in quantization.carried:
            sources[source.name] = known[layer_name(weight)].activation_bits
    samples = observe(network, sources, inputs.to("cpu"), context.generator) if sources else {}
    grids = {name: activation_grid(samples[name], bits, context.target.activations) for name, bits in sources.items()}
    plan = state.plan.updated(
        *(LayerPlan(path, state.plan.layer(path).keep, precision) for path, precision in known.items())
    )
    notes = tuple(Note(path, str(precision), WHY) for path, precision in known.items())
    return replace(
        state,
        plan=plan,
        quantization=replace(
            quantization,
            weights={**quantization.weights, **weight_grids(state.model, known)},
            activations={**quantization.activations, **grids},
        ),
        notes=state.notes + notes + left,
    )


def _integers(weight: Tensor) -> Tensor | None:
    """A weight's rows over their largest magnitudes, if that gives -1, 0 and 1 alone."""
    rows = weight.detach().flatten(1)
    top = rows.abs().amax(1, keepdim=True)
    steps = rows / torch.where(top > 0, top, 1.0)
    whole = steps.round()
    return whole if bool(((steps - whole).abs() < 1e-6).all()) else None


__all__ = ["chosen", "placed", "precisions", "weight_grids"]
