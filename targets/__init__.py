"""Devices as data: one TOML file each, every number with its source, date and evidence."""

from __future__ import annotations

from compress.targets.loader import Row, describe, load, names

__all__ = ["Row", "describe", "load", "names"]
