"""Quantization-aware training through brevitas, from a plan that is already calibrated.

The folded network's graph gets a brevitas quantizer at every grid: ``IntQuant`` with straight-through
rounding, its scale a learned parameter in the logarithm (Esser et al., *Learned Step Size Quantization*,
ICLR 2020; Jain et al., *Trained Quantization Thresholds*, MLSys 2020, for the logarithm), started at the
calibrated grid. Zero points and bits stay. Batch norms were folded before, so the integers that training
saw are the integers that are exported.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx, nn

from compress.graph.groups import PRODUCES
from compress.graph.module import plain_module
from compress.graph.trace import Network, kind, trace
from compress.quantize.ranges import rounded_
from compress.training import Recipe, batch_size, fit
from compress.types import Context, Grid, Quantization, State

RECIPE = Recipe(optimizer="sgd", lr=5e-3)
"""A quarter of the float recipe's rate: without batch norms larger steps undo what calibration found."""


@dataclass(frozen=True, slots=True)
class QuantizationAware:
    """Train a quantized state for ``epochs``, distilling from the context's teacher.

    A state that isn't quantized, and 0 epochs, come back as they are.
    """

    epochs: int = 1
    lr: float = RECIPE.lr
    label: ClassVar[str] = "train with quantizers"

    def __call__(self, state: State, context: Context) -> State:
        """The state with trained weights and scales."""
        if state.quantization is None or self.epochs < 1:
            return state
        inputs = context.data.train.inputs(2, context.generator)
        network = trace(state.model, (inputs,))
        student = _with_quantizers(network, state.quantization)
        fit(
            student,
            context.data.train,
            replace(RECIPE, epochs=self.epochs, lr=self.lr, batch_size=min(64, 2 * batch_size(context.data.train.n))),
            generator=context.generator,
            device=context.device,
            task=context.data.task,
            teacher=context.teacher,
            progress=context.progress,
        )
        student.cpu()
        return _trained(state, student)


class Quantizer(nn.Module):
    """One brevitas quantizer on one of our grids. The scale is learned, one for each of the grid's."""

    def __init__(self, grid: Grid, dims: int) -> None:
        super().__init__()
        from brevitas.core.function_wrapper import Identity, TensorClamp, TensorClampSte
        from brevitas.core.quant import IntQuant
        from brevitas.core.restrict_val import LogFloatRestrictValue
        from brevitas.core.scaling import ParameterScaling

        # Weights keep a gradient when they leave the grid, so that they can come back; for activations
        # the clipped part must not have one.
        clamp = TensorClampSte() if grid.axis is not None else TensorClamp()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.round = IntQuant(
                narrow_range=grid.narrow, signed=grid.signed, input_view_impl=Identity(), tensor_clamp_impl=clamp
            )
            init = torch.tensor(grid.scale, dtype=torch.float32)
            self.scaling = ParameterScaling(init, tuple(init.shape), LogFloatRestrictValue())
        self.grid = grid
        self.view = [1] * dims
        if grid.axis is not None:
            self.view[grid.axis] = -1
        self.register_buffer("bits", torch.tensor(float(grid.bits)))
        self.register_buffer("zero_point", torch.tensor(float(grid.zero_point)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` rounded to the grid and back, same shape, with straight-through gradients."""
        scale = self.scaling(x)
        scale = scale.view(self.view) if self.grid.axis is not None else scale.squeeze()
        result: torch.Tensor = self.round(scale, self.zero_point, self.bits, x)
        return result

    def learned(self) -> Grid:
        """The grid with the scale that training found."""
        scale = self.scaling(torch.empty(1)).detach().flatten()
        return replace(self.grid, scale=tuple(float(s) for s in scale))


def _with_quantizers(network: Network, quantization: Quantization) -> fx.GraphModule:
    module = plain_module(network)
    graph = module.graph
    nodes = {node.name: node for node in graph.nodes}
    quantizers = nn.ModuleDict()
    module.add_module("quantizers", quantizers)
    for name in (*quantization.activations, *quantization.carried):
        key = quantization.carried.get(name, name)
        if key not in quantizers:
            quantizers[key] = Quantizer(quantization.activations[key], 0)
        users = [user for user in nodes[name].users if user.op != "output" and kind(user) != "sym_size"]
        with graph.inserting_after(nodes[name]):
            call = graph.call_module(f"quantizers.{key}", (nodes[name],))
        for user in users:
            user.replace_input_with(nodes[name], call)
    for node in list(graph.nodes):
        if node.op == "call_function" and kind(node) in PRODUCES and len(node.args) > 1:
            weight = node.args[1]
            if isinstance(weight, fx.Node) and weight.op == "get_attr" and str(weight.target) in quantization.weights:
                name = str(weight.target)
                key = "weight_" + name.replace(".", "__")
                if key not in quantizers:
                    quantizers[key] = Quantizer(quantization.weights[name], module.get_parameter(name).dim())
                with graph.inserting_before(node):
                    node.replace_input_with(weight, graph.call_module(f"quantizers.{key}", (weight,)))
    module.recompile()
    return module


def _trained(state: State, student: fx.GraphModule) -> State:
    """The state with what ``student`` learned: parameters on their new grids, and the grids."""
    assert state.quantization is not None
    model = copy.deepcopy(state.model)
    learned = dict(student.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in learned:
                parameter.copy_(learned[name])
    grids: Mapping[str, Grid] = {
        path.removeprefix("quantizers."): module.learned()
        for path, module in student.named_modules()
        if isinstance(module, Quantizer)
    }
    weights = {name: grids["weight_" + name.replace(".", "__")] for name in state.quantization.weights}
    activations = {name: grids[name] for name in state.quantization.activations}
    rounded_(model, weights)
    return replace(
        state, model=model.eval(), quantization=replace(state.quantization, weights=weights, activations=activations)
    )
