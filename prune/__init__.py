"""Structured pruning: one file an algorithm. ``from compress.prune import prune`` is the one call, and
``compare`` sets the methods side by side."""

from compress.prune.api import Pruned, prune
from compress.prune.comparison import Comparison, compare
from compress.prune.protect import protect_classes
from compress.prune.recall import Recall

__all__ = ["Comparison", "Pruned", "Recall", "compare", "protect_classes", "prune"]
