"""The pruning methods by the names that the command line and Python know them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from compress.prune.batch_norm_scale import BatchNormScale
from compress.prune.blocks import Blocks
from compress.prune.coreset import Coreset
from compress.prune.goal import Goal
from compress.prune.learned_coreset import LearnedCoreset
from compress.prune.norm import Norm
from compress.prune.random_choice import RandomChoice
from compress.prune.reconstruct import Reconstruct
from compress.prune.taylor import Taylor
from compress.types import Stage

METHODS: Mapping[str, Callable[[Goal], Stage]] = {
    "reconstruct": Reconstruct,
    "blocks": Blocks,
    "norm": Norm,
    "coreset": Coreset,
    "learned-coreset": LearnedCoreset,
    "bn-scale": BatchNormScale,
    "taylor": Taylor,
    "random": RandomChoice,
}
"""Method -> its stage for a goal."""

DEFAULT = "reconstruct"
"""The best where there are inputs of the user's."""

WITHOUT_DATA = "norm"
"""The best where there are none."""
