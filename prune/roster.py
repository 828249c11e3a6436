"""The pruning methods by the names that the command line and Python know them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from compress.prune.batch_norm_scale import BatchNormScale
from compress.prune.goal import Goal
from compress.prune.norm import Norm
from compress.prune.random_choice import RandomChoice
from compress.prune.taylor import Taylor
from compress.types import Stage

METHODS: Mapping[str, Callable[[Goal], Stage]] = {
    "norm": Norm,
    "bn-scale": BatchNormScale,
    "taylor": Taylor,
    "random": RandomChoice,
}
"""Method -> its stage for a goal."""

DEFAULT = "norm"
