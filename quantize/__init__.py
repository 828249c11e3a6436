"""Quantization: one file an algorithm. ``from compress.quantize import quantize`` is the one call."""

from compress.quantize.api import Quantized, quantize
from compress.quantize.sensitivity import sensitivity

__all__ = ["Quantized", "quantize", "sensitivity"]
