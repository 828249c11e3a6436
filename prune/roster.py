"""The pruning methods by the names that the command line and Python know them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from compress.prune.norm import Norm
from compress.types import Stage

Make = Callable[[float | None, float | None, tuple[str, ...], bool], Stage]

METHODS: Mapping[str, Make] = {
    "norm": lambda macs, params, skip, has_data: Norm(macs, params, skip, recalibrates=has_data),
}
"""Method -> its stage for (fraction of MACs kept, of parameters kept, layers to skip, whether there is data)."""

DEFAULT = "norm"
