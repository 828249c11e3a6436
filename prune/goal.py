"""What pruning has to reach, and what it has to leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compress.types import FLOAT32, Precision

Measure = Literal["macs", "latency_s"]
"""What networks get smaller by."""


@dataclass(frozen=True, slots=True)
class Goal:
    """The request that every pruning method takes.

    Attributes:
        macs, params: fractions of the multiply-accumulates and of the parameters to keep, in (0, 1].
        latency_s, ram_bytes: what the target's models may predict at most for one input.
        precision, runtime: of the layers, and what runs them, in those predictions; None for the target's own runtime.
        skip: layers (module paths) whose channels stay.
        protect_classes: classes whose recall must not fall.
        sees_data: whether the context's inputs are the user's data; if not, only their shape counts.
        tuned_after: whether fine-tuning follows, so that descending on the original's tensors would be in vain.
    """

    macs: float | None = None
    params: float | None = None
    latency_s: float | None = None
    ram_bytes: int | None = None
    skip: tuple[str, ...] = ()
    protect_classes: tuple[int, ...] = ()
    sees_data: bool = True
    tuned_after: bool = False
    precision: Precision = FLOAT32
    runtime: str | None = None


UNLIMITED = Goal()
"""Asks for nothing; predictions are of float networks in the target's own runtime."""
