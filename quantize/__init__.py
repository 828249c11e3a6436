"""Quantization: one file an algorithm. ``from compress.quantize import quantize`` is the one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.quantize.api import Quantized, quantize

__all__ = ["Quantized", "quantize"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from compress.quantize import api

        return getattr(api, name)
    raise AttributeError(f"module 'compress.quantize' has no attribute {name!r}")
