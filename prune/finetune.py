"""Recover after pruning: train the smaller network, distilling from the uncompressed one."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

from compress.training import Recipe, batch_size, fit
from compress.types import Context, State


@dataclass(frozen=True, slots=True)
class FineTune:
    """Train a float state for ``epochs`` with the recipe of :mod:`compress.training`; 0 does nothing."""

    epochs: int = 1
    lr: float = Recipe().lr
    label: ClassVar[str] = "fine-tune"

    def __call__(self, state: State, context: Context) -> State:
        """The state with its network trained."""
        if self.epochs < 1:
            return state
        model = copy.deepcopy(state.model)
        fit(
            model,
            context.data.train,
            Recipe(epochs=self.epochs, lr=self.lr, batch_size=batch_size(context.data.train.n)),
            generator=context.generator,
            device=context.device,
            task=context.data.task,
            teacher=context.teacher,
            augment=context.data.augment,
            progress=context.progress,
        )
        return replace(state, model=model.cpu().eval())
