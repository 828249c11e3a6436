"""Quantization-aware training, from a plan that is already calibrated.

The folded network's graph gets a quantizer at every grid (:mod:`compress.quantize.quantizers`), its scale a learned
parameter that starts at the calibrated grid. Batch norms were folded before, so the integers that training saw are the
integers that are exported.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from compress import lessons
from compress.errors import Untraceable
from compress.graph.fold import fold_batch_norm
from compress.graph.hardware import fixed_parameters
from compress.graph.trace import Network
from compress.graph.traces import traced
from compress.quantize.progressive import activate, groups, quantized_groups
from compress.quantize.quantizers import FOLDER, SCALE_RATE, Quantizer, learned, weight_quantizer, with_quantizers
from compress.quantize.ranges import rounded_
from compress.training import Recipe, batch_size, fit, unexplained
from compress.types import Context, Note, Quantization, State

RECIPE = Recipe(optimizer="adamw", lr=1e-2, weight_decay=0.0, averaged=0.25)
"""Weights are trained in steps of their own grid, by Adam: about 1% of a step at most each time, whatever a layer's or
a channel's scale; at 3% four epochs end below half an epoch. The last weights are averaged, as near the end they go to
and fro between two integers."""

ENOUGH = 1e-3
"""Share of the teacher's output (:func:`compress.training.unexplained`) that an epoch of training leaves: a network
that misses less has nothing to recover, and loses where its rounding made up for its errors layer by layer."""

REAL_RATE = 2e-3
"""Adam's rate for biases and for weights that stay float, at the recipe's rate."""


@dataclass(frozen=True, slots=True)
class QuantizationAware:
    """Train a quantized state for ``epochs``, distilling from the context's teacher.

    A state that isn't quantized, and 0 epochs, come back as they are.

    Attributes:
        epochs: passes over the training split.
        lr: highest learning rate of the weights, in steps of their grid; the other parameters' go along.
        progressive: quantize the weights one block after the other (:mod:`compress.quantize.progressive`); those that
            aren't yet are trained as real numbers. Activations are quantized from the start. The last block is
            quantized after half of the steps.
        enough: a state that misses at most this share of its teacher's output comes back as it is, with a note.
    """

    epochs: int = 1
    lr: float = RECIPE.lr
    progressive: bool = False
    enough: float = 0.0
    label: ClassVar[str] = "train with quantizers"

    def __call__(self, state: State, context: Context) -> State:
        """The state with trained weights and scales."""
        if state.quantization is None or self.epochs < 1:
            return state
        inputs = context.data.train.inputs(2, context.generator)
        network = traced(state.model, (inputs,), context.shared)
        student = with_quantizers(network, state.quantization)
        missed = self._missed(student, context)
        if missed <= self.enough:
            why = f"left out: it misses {missed:.2%} of its teacher's output, which training wouldn't recover"
            return replace(state, notes=(*state.notes, Note("", self.label, why)))
        weights = _in_steps(student, state.quantization, state.model)
        recipe = replace(
            RECIPE, epochs=self.epochs, lr=self.lr, batch_size=min(64, 2 * batch_size(context.data.train.n))
        )
        if self.progressive:
            _in_turn(student, state, network, context, self.epochs * -(-context.data.train.n // recipe.batch_size))
        teacher = None if context.teacher is None else _without_batch_norms(context.teacher, inputs, context)
        fit(
            student,
            context.data.train,
            recipe,
            generator=context.generator,
            device=context.device,
            task=context.data.task,
            teacher=teacher,
            augment=context.data.augment,
            rates=lambda name: _rate(name) / RECIPE.lr,
            progress=context.progress,
            lessons=lessons.of(context, teacher, recipe.batch_size),
        )
        student.cpu()
        for module, parameter in weights:
            remove_parametrizations(module, parameter)
        return trained(state, student, state.quantization)

    def _missed(self, student: nn.Module, context: Context) -> float:
        """The share of the teacher's output that is lost; infinite where nobody asks or can say."""
        if self.enough <= 0 or context.teacher is None or context.data.train.n < 2:
            return math.inf
        images, wanted = lessons.compared(context, context.teacher)
        return unexplained(student, wanted, images)


def _without_batch_norms(teacher: nn.Module, inputs: Tensor, context: Context) -> nn.Module:
    """What computes the teacher's outputs in fewer passes over memory; the teacher itself if it can't be traced.

    Made once a job: candidates have the same teacher.
    """
    made: tuple[nn.Module, nn.Module] | None = context.shared.get("folded teacher")
    if made is not None and made[0] is teacher:
        return made[1]
    try:
        folded = fold_batch_norm(teacher, traced(teacher, (inputs,), context.shared))[0].eval()
    except Untraceable:
        folded = teacher
    context.shared["folded teacher"] = teacher, folded
    return folded


class _Steps(nn.Module):
    """A weight as so many steps of its grid: what is trained is the weight over the scale it starts with."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.register_buffer("step", quantizer.get_buffer("start").clone().view(quantizer.view))

    def forward(self, steps: Tensor) -> Tensor:
        """The weight."""
        return steps * self.get_buffer("step")

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained."""
        return weight / self.get_buffer("step")


def _in_steps(student: fx.GraphModule, quantization: Quantization, model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Have the quantized weights of ``student`` be trained in steps of their grids: the modules and the names there.

    Those that are in hardware aren't trained.
    """
    found = []
    fixed = fixed_parameters(model)
    for name in quantization.weights:
        if name in fixed:
            weight_quantizer(student, name).requires_grad_(False)
            continue
        path, _, parameter = name.rpartition(".")
        module = student.get_submodule(path)
        register_parametrization(module, parameter, _Steps(weight_quantizer(student, name)))
        found.append((module, parameter))
    return found


def _rate(name: str) -> float:
    if name.startswith(f"{FOLDER}."):
        return SCALE_RATE
    return RECIPE.lr if ".parametrizations." in f".{name}" else REAL_RATE


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
