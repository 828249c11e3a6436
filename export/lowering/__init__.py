"""From an ONNX file with explicit quantize/dequantize pairs to a program of integer operators."""

from compress.export.lowering.errors import CannotLower
from compress.export.lowering.lower import lower

__all__ = ["CannotLower", "lower"]
