"""Structured pruning: one file an algorithm. ``from compress.prune import prune`` is the one call."""

from compress.prune.api import Pruned, prune

__all__ = ["Pruned", "prune"]
