"""Quantization-aware training, from a plan that is already calibrated.

The folded network's graph gets a quantizer at every grid (:mod:`compress.quantize.quantizers`), its scale a learned
parameter that starts at the calibrated grid. Batch norms were folded before, so the integers that training saw are the
integers that are exported.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx, nn

from compress.graph.trace import Network, trace
from compress.quantize.progressive import activate, groups, quantized_groups
from compress.quantize.quantizers import learned, with_quantizers
from compress.quantize.ranges import rounded_
from compress.training import Recipe, batch_size, fit
from compress.types import Context, Quantization, State

RECIPE = Recipe(optimizer="sgd", lr=5e-3, averaged=0.25)
"""A quarter of the float recipe's rate: without batch norms larger steps undo what calibration found. The last weights
are averaged, as near the end they go to and fro between two integers."""


@dataclass(frozen=True, slots=True)
class QuantizationAware:
    """Train a quantized state for ``epochs``, distilling from the context's teacher.

    A state that isn't quantized, and 0 epochs, come back as they are.

    Attributes:
        epochs: passes over the training split.
        lr: highest learning rate.
        progressive: quantize the weights one block after the other (:mod:`compress.quantize.progressive`); those that
            aren't yet are trained as real numbers. Activations are quantized from the start. The last block is
            quantized after half of the steps.
    """

    epochs: int = 1
    lr: float = RECIPE.lr
    progressive: bool = False
    label: ClassVar[str] = "train with quantizers"

    def __call__(self, state: State, context: Context) -> State:
        """The state with trained weights and scales."""
        if state.quantization is None or self.epochs < 1:
            return state
        inputs = context.data.train.inputs(2, context.generator)
        network = trace(state.model, (inputs,))
        student = with_quantizers(network, state.quantization)
        recipe = replace(
            RECIPE, epochs=self.epochs, lr=self.lr, batch_size=min(64, 2 * batch_size(context.data.train.n))
        )
        if self.progressive:
            _in_turn(student, state, network, context, self.epochs * -(-context.data.train.n // recipe.batch_size))
        fit(
            student,
            context.data.train,
            recipe,
            generator=context.generator,
            device=context.device,
            task=context.data.task,
            teacher=context.teacher,
            augment=context.data.augment,
            progress=context.progress,
        )
        student.cpu()
        return trained(state, student, state.quantization)


def _in_turn(student: fx.GraphModule, state: State, network: Network, context: Context, steps: int) -> None:
    """Have ``student`` quantize one block after the other as it is called in training."""
    assert state.quantization is not None
    inputs = context.data.train.inputs(context.samples, context.generator)
    order = groups(state.model, network, state.quantization, inputs, context.generator, context.progress)
    taken = 0

    def count(module: nn.Module, arguments: Any) -> None:
        nonlocal taken
        if module.training:
            activate(student, order, quantized_groups(taken, steps, len(order)))
            taken += 1

    student.register_forward_pre_hook(count)


def trained(state: State, student: nn.Module, quantization: Quantization) -> State:
    """The state with what ``student`` learned: parameters on their new grids, and the grids."""
    model = copy.deepcopy(state.model)
    found = dict(student.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in found:
                parameter.copy_(found[name])
    result = learned(student, quantization)
    rounded_(model, result.weights)
    return replace(state, model=model.eval(), quantization=result)
