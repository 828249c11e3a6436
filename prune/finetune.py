"""Recover after pruning: train the smaller network, distilling from the uncompressed one."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from compress import lessons
from compress.training import Recipe, batch_size, fit, unexplained
from compress.types import Context, State

LEAST_RATE, HIGHEST_RATE = 5e-3, Recipe().lr
"""Learning rates for a network that computes what its teacher does, and for one that has all of it to learn anew."""

ADAM_RATE = 1e-3
"""Adam's for networks that make images: the squared error of pixels is small, and the size of Adam's steps doesn't
depend on it."""

AVERAGED = 0.25
"""Share of the steps whose weights are averaged at the end."""


Teacher = nn.Module | torch.Tensor | None
"""The network to learn from, or its output on the images."""


@dataclass(frozen=True, slots=True)
class FineTune:
    """Train a float state for ``epochs`` with the recipe of :mod:`compress.training`; 0 does nothing.

    Attributes:
        epochs: passes over the training split.
        lr: highest learning rate; None chooses it by what there is to recover (:func:`rate`), and takes
            :data:`ADAM_RATE` for networks that make images.
    """

    epochs: int = 1
    lr: float | None = None
    label: ClassVar[str] = "fine-tune"

    def __call__(self, state: State, context: Context) -> State:
        """The state with its network trained."""
        if self.epochs < 1:
            return state
        model = copy.deepcopy(state.model)
        how = self._recipe(context, model)
        fit(
            model,
            context.data.train,
            how,
            generator=context.generator,
            device=context.device,
            task=context.data.task,
            teacher=context.teacher,
            augment=context.data.augment,
            progress=context.progress,
            lessons=lessons.of(context, context.teacher, how.batch_size),
        )
        return replace(state, model=model.cpu().eval())

    def _recipe(self, context: Context, model: nn.Module) -> Recipe:
        n = context.data.train.n
        if context.data.task == "reconstruction":
            lr = ADAM_RATE if self.lr is None else self.lr
            return Recipe(self.epochs, lr, batch_size(n), "adamw", weight_decay=0.0, averaged=AVERAGED)
        if context.teacher is None or self.lr is not None:
            return recipe(self.epochs, n, model, None, torch.empty(0), self.lr)
        images, wanted = lessons.compared(context, context.teacher)
        return recipe(self.epochs, n, model, wanted, images, self.lr)


def recipe(
    epochs: int, n: int, model: nn.Module, teacher: Teacher, images: torch.Tensor, lr: float | None = None
) -> Recipe:
    """How to train ``model`` for ``epochs`` on ``n`` inputs, of which ``images`` are some.

    ``lr`` is the highest learning rate; None chooses it (:func:`rate`).
    """
    chosen = rate(model, teacher, images) if lr is None else lr
    return Recipe(epochs=epochs, lr=chosen, batch_size=batch_size(n), averaged=AVERAGED)


def rate(model: nn.Module, teacher: Teacher, images: torch.Tensor) -> float:
    """The highest learning rate: low where the network is nearly its teacher, since large steps lose that first.

    ``LEAST_RATE (HIGHEST_RATE / LEAST_RATE)^u`` with ``u``, in [0, 1], the share of the teacher's output that the
    network misses (:func:`compress.training.unexplained`); 1 without a teacher.
    """
    missing = 1.0 if teacher is None or len(images) < 2 else min(1.0, unexplained(model, teacher, images))
    return LEAST_RATE * math.pow(HIGHEST_RATE / LEAST_RATE, missing)
