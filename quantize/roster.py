"""The quantization methods by the names that the command line and Python know them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from compress.quantize.hessian_aware import HessianAware
from compress.quantize.mixed import LayerError
from compress.quantize.uniform import Uniform
from compress.types import Stage

Make = Callable[[float, int], Stage]

METHODS: Mapping[str, Make] = {
    "hessian": lambda weight_bits, activation_bits: HessianAware(weight_bits, activation_bits),
    "layer-error": lambda weight_bits, activation_bits: LayerError(weight_bits, activation_bits),
    "uniform": lambda weight_bits, activation_bits: Uniform(round(weight_bits), activation_bits),
}
"""Method -> its stage for (average weight bits, activation bits)."""

MIXING = frozenset({"hessian", "layer-error"})
"""The methods that give layers different bits."""

DEFAULT = "hessian"
