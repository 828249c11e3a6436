"""The quantization methods by the names that the command line and Python know them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from compress.quantize.hessian_aware import HessianAware
from compress.quantize.mixed import LayerError
from compress.quantize.uniform import Uniform
from compress.types import Stage


class Make(Protocol):
    """Makes a method's stage."""

    def __call__(self, weight_bits: float, activation_bits: int, *, nearest: bool = False) -> Stage:
        """For average weight bits and activation bits; ``nearest`` is for those in :data:`LIMITED`."""


def _hessian(weight_bits: float, activation_bits: int, *, nearest: bool = False) -> Stage:
    return HessianAware(weight_bits, activation_bits, nearest)


def _layer_error(weight_bits: float, activation_bits: int, *, nearest: bool = False) -> Stage:
    return LayerError(weight_bits, activation_bits)


def _uniform(weight_bits: float, activation_bits: int, *, nearest: bool = False) -> Stage:
    return Uniform(round(weight_bits), activation_bits)


METHODS: Mapping[str, Make] = {"hessian": _hessian, "layer-error": _layer_error, "uniform": _uniform}
"""Method -> what makes its stage."""

MIXING = frozenset({"hessian", "layer-error"})
"""The methods that give layers different bits."""

LIMITED = frozenset({"hessian"})
"""The methods that choose bits under limits on the file, RAM, latency and bit operations."""

DEFAULT = "hessian"
