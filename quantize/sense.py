"""The sensing step: give a network's sensing layer its patterns, and train what reads them.

First the closed form of :mod:`compress.quantize.sensing_start`: patterns and the linear estimate that the training
images call for. Then, with epochs, the patterns are trained together with the network: a reconstruction network by
:mod:`compress.networks.sensing_training`, any other by the loss of its task, distilling from the network that sees the
image. At the end the patterns are fixed: no later step changes them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from compress.data import PatchSplit
from compress.errors import BadInput
from compress.networks.sensing import Reconstruction
from compress.networks.sensing_training import Schedule, train
from compress.quantize.binary import ADAM_EPSILON
from compress.quantize.sensing import SensingLayer
from compress.quantize.sensing_start import Statistics, start
from compress.training import Recipe, batch_size, fit
from compress.types import Context, Note, State

IMAGES = 8192
"""Training images, at most, that the closed form is computed from."""
PATCH = 96
"""Side of the patches that reconstruction is trained on, at most."""
RATE, PATTERN_RATE = 1e-3, 5.0
"""Adam's rate for a network behind patterns, and what that of the patterns' latent weights is multiplied by."""


@dataclass(frozen=True, slots=True)
class Sense:
    """Patterns for the network's sensing layer.

    Attributes:
        ratio: measurements a pixel, as asked for.
        epochs: passes over the training split; 0 leaves the closed form.
        begin: compute the closed form; False goes on from the patterns that the network has.
    """

    ratio: float
    epochs: int = 0
    begin: bool = True
    label: ClassVar[str] = "sense"

    def __call__(self, state: State, context: Context) -> State:
        """The state with its patterns.

        Raises:
            BadInput: the network has no sensing layer, or training diverged.
        """
        model = copy.deepcopy(state.model)
        layer = next((module for module in model.modules() if isinstance(module, SensingLayer)), None)
        if layer is None:
            raise BadInput("the network has no sensing layer to give patterns to")
        found = None
        if self.begin:
            context.progress("patterns in closed form")
            images = context.data.train.inputs(IMAGES, context.generator)
            found = start(layer, images.split(256), generator=context.generator)
        notes: tuple[Note, ...] = ()
        if self.epochs:
            self._train(model, layer, found, context)
        elif self.begin:
            notes = (Note("sensing", "patterns", "in closed form, not trained: --epochs trains them with the network"),)
        layer.fix()
        return replace(state, model=model.cpu().eval(), notes=state.notes + notes)

    def _train(self, model: nn.Module, layer: SensingLayer, found: Statistics | None, context: Context) -> None:
        split = context.data.train
        if isinstance(model, Reconstruction):
            block = layer.block or min(layer.size)
            patch = max(block, min(PATCH, *split.shape[1:]) // block * block)
            schedule = Schedule(steps=1, patch=patch)
            steps = self.epochs * max(1, -(-split.n // schedule.batch))
            train(
                model,
                _light(context),
                replace(schedule, steps=steps),
                seed=int(torch.randint(2**31, (1,), generator=context.generator)),
                device=context.device,
                statistics=found,
                progress=context.progress,
            )
            return
        layer.learn()
        fit(
            model,
            split,
            Recipe(
                epochs=self.epochs,
                lr=RATE,
                batch_size=batch_size(split.n),
                optimizer="adamw",
                epsilon=ADAM_EPSILON,
                weight_decay=0.0,
            ),
            generator=context.generator,
            device=context.device,
            task=context.data.task,
            teacher=context.teacher,
            augment=context.data.augment,
            rates=lambda name: PATTERN_RATE if name.endswith("learning.latent") else 1.0,
            progress=context.progress,
        )


def _light(context: Context) -> list[Tensor]:
    """The training images as light, (C, H, W) each."""
    split = context.data.train
    if isinstance(split, PatchSplit):
        return [split.pixels[i].float() / 255 for i in range(len(split.sizes))]
    return list(split.inputs(split.n, torch.Generator().manual_seed(context.seed)))


__all__ = ["Sense"]
