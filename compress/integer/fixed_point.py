"""Fixed-point rescaling, the only way in which integer results are rounded.

A real factor ``r > 0`` stands as ``M / 2^s`` with integers M and s. Rescaling an integer ``a`` is

    rescale(a) = (a * M + 2^(s-1)) >> s,

with an arithmetic shift, so halves go up. Accumulators (32 bits) take M of 31 bits and a 64-bit product; 8-bit
operands take M of 22 bits, so that everything stays within 32 bits (:func:`small_multipliers`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ACCUMULATOR_BITS = 31
"""Bits of the multiplier of an accumulator: M lies in [2^30, 2^31)."""
OPERAND_BITS = 21
"""Bits of the largest multiplier of 8-bit operands: M lies in [2^20, 2^21), so two products and the rounding term
stay below 2^31."""
LARGEST_SHIFT = 62


def multiplier(factor: float) -> tuple[int, int]:
    """(M, s) with ``M / 2^s`` nearest to ``factor``: M in [2^30, 2^31), s in [1, 62].

    Factors below 2^-32 come out as M of fewer bits.

    Raises:
        ValueError: ``factor`` isn't in (0, 2^29).
    """
    if not (math.isfinite(factor) and 0 < factor < 2**29):
        raise ValueError(f"a rescaling factor must lie in (0, 2^29), not {factor!r}")
    fraction, exponent = math.frexp(factor)  # fraction in [0.5, 1)
    shift = ACCUMULATOR_BITS - exponent
    value = round(math.ldexp(fraction, ACCUMULATOR_BITS))
    if value == 1 << ACCUMULATOR_BITS:
        value, shift = value >> 1, shift - 1
    if shift > LARGEST_SHIFT:
        value, shift = round(math.ldexp(factor, LARGEST_SHIFT)), LARGEST_SHIFT
    return value, shift


def multipliers(factors: Sequence[float] | NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """:func:`multiplier` of each factor: two int32 arrays."""
    pairs = [multiplier(float(factor)) for factor in factors]
    return np.array([m for m, _ in pairs], np.int32), np.array([s for _, s in pairs], np.int32)


def small_multipliers(factors: Sequence[float]) -> tuple[tuple[int, ...], int]:
    """Multipliers of 8-bit operands under one shift: the largest lies in [2^20, 2^21), the shift in [1, 30].

    Signs are kept; a factor may be 0 as long as one isn't.

    Raises:
        ValueError: the largest isn't in (0, 2^19), or isn't finite.
    """
    largest = max(abs(factor) for factor in factors)
    if not (math.isfinite(largest) and 0 < largest < 2**19):
        raise ValueError(f"a rescaling factor must lie in (0, 2^19), not {largest!r}")
    shift = min(OPERAND_BITS - math.frexp(largest)[1], 30)
    values = tuple(round(math.ldexp(factor, shift)) for factor in factors)
    if max(abs(value) for value in values) >= 1 << OPERAND_BITS:
        shift -= 1
        values = tuple(round(math.ldexp(factor, shift)) for factor in factors)
    return values, shift


def rescale(a: NDArray[np.int64], m: int | NDArray[np.int32], s: int | NDArray[np.int32]) -> NDArray[np.int64]:
    """``(a * m + 2^(s-1)) >> s`` in int64; ``m`` and ``s`` broadcast against ``a``."""
    wide, shift = np.asarray(m, np.int64), np.asarray(s, np.int64)
    return np.asarray((a.astype(np.int64) * wide + (np.int64(1) << (shift - 1))) >> shift, np.int64)


def wrap(a: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums as 32-bit accumulators hold them: modulo 2^32, in [-2^31, 2^31)."""
    return a.astype(np.int32).astype(np.int64)


__all__ = [
    "ACCUMULATOR_BITS",
    "LARGEST_SHIFT",
    "OPERAND_BITS",
    "multiplier",
    "multipliers",
    "rescale",
    "small_multipliers",
    "wrap",
]
