"""Structured pruning: one file an algorithm. ``from compress.prune import prune`` is the one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.prune.api import Pruned, prune

__all__ = ["Pruned", "prune"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from compress.prune import api

        return getattr(api, name)
    raise AttributeError(f"module 'compress.prune' has no attribute {name!r}")
