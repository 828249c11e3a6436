"""What pruning knows of a job's networks before it removes anything, kept for all its candidates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compress.types import Context


def known(context: Context) -> dict[Any, Any]:
    """Where it is kept, by key. It depends on the job's seed alone, not on who asks first."""
    found: dict[Any, Any] = context.shared.setdefault("pruning", {})
    return found


def calibration_inputs(context: Context) -> tuple[Tensor, torch.Generator]:
    """``context.samples`` training inputs, (N, ...), and the generator that drew them by the seed, as it was then."""
    held, key = known(context), ("calibration inputs", context.seed, context.samples)
    if key not in held:
        generator = torch.Generator().manual_seed(context.seed)
        inputs = context.data.train.inputs(context.samples, generator)
        held[key] = inputs, generator.get_state()
    inputs, state = held[key]
    generator = torch.Generator()
    generator.set_state(state)
    return inputs, generator


__all__ = ["calibration_inputs", "known"]
