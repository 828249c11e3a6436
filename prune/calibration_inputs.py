"""The inputs that pruning looks at: drawn once, for all networks of a job."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.types import Context


def calibration_inputs(context: Context) -> tuple[Tensor, torch.Generator]:
    """``context.samples`` training inputs, (N, ...), and the generator that drew them by the seed, as it was then."""
    key = ("calibration inputs", context.seed, context.samples)
    if key not in context.shared:
        generator = torch.Generator().manual_seed(context.seed)
        inputs = context.data.train.inputs(context.samples, generator)
        context.shared[key] = inputs, generator.get_state()
    inputs, state = context.shared[key]
    generator = torch.Generator()
    generator.set_state(state)
    return inputs, generator


__all__ = ["calibration_inputs"]
