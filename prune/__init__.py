"""Structured pruning: one file an algorithm. ``from compress.prune import prune`` is the one call, and
``compare`` sets the methods side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.prune.api import Pruned, prune
    from compress.prune.comparison import Comparison, compare
    from compress.prune.protect import protect_classes
    from compress.prune.recall import Recall

__all__ = ["Comparison", "Pruned", "Recall", "compare", "protect_classes", "prune"]

_HOMES = {
    "Pruned": "api",
    "prune": "api",
    "Comparison": "comparison",
    "compare": "comparison",
    "Recall": "recall",
    "protect_classes": "protect",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"compress.prune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'compress.prune' has no attribute {name!r}")
