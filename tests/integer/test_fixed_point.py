"""Laws of fixed-point rescaling, against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from compress.integer import fixed_point as fp

EDGES = (2**-31, 2**-30, 0.5, 1.0, 1.0 - 2**-53, 2**-0.5, 2**28, 2**29 * (1 - 2**-53), 3.0, 1 / 3)


def factors(count: int = 300) -> list[float]:
    g = np.random.default_rng(0)
    return [*EDGES, *(float(v) for v in 2.0 ** g.uniform(-31, 29, count))]


@pytest.mark.parametrize("factor", factors())
def test_a_multiplier_is_the_nearest_fraction_of_31_bits(factor):
    m, s = fp.multiplier(factor)
    assert 2**30 <= m < 2**31
    assert 1 <= s <= fp.LARGEST_SHIFT
    # No other fraction with this denominator is nearer: the error is at most half of its unit (a whole one where
    # rounding up reached 2^31 and the unit doubled).
    assert abs(Fraction(m, 2**s) - Fraction(factor)) <= Fraction(1, 2 ** (s + 1))
    assert abs(Fraction(m, 2**s) / Fraction(factor) - 1) <= Fraction(1, 2**31)


@pytest.mark.parametrize("exponent", [-32, -33, -40, -55, -61])
def test_a_tiny_factor_loses_bits_of_its_multiplier_and_no_more(exponent):
    factor = 1.37 * 2.0**exponent
    m, s = fp.multiplier(factor)
    assert s == fp.LARGEST_SHIFT
    assert abs(Fraction(m, 2**s) - Fraction(factor)) <= Fraction(1, 2**63)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, -math.inf, math.nan, 2.0**29, 1e300])
def test_a_factor_outside_is_refused(factor):
    with pytest.raises(ValueError, match="must lie in"):
        fp.multiplier(factor)


def test_multipliers_are_those_of_each_factor():
    m, s = fp.multipliers(factors(20))
    assert m.dtype == s.dtype == np.int32
    assert [(int(a), int(b)) for a, b in zip(m, s, strict=True)] == [fp.multiplier(f) for f in factors(20)]


@pytest.mark.parametrize("shift", range(1, 63))
def test_rescaling_rounds_the_exact_product_halves_up(shift):
    g = np.random.default_rng(shift)
    a = [-(2**31), 2**31 - 1, -1, 0, 1, *(int(v) for v in g.integers(-(2**31), 2**31, 20))]
    m = [2**30, 2**31 - 1, 1, *(int(v) for v in g.integers(2**30, 2**31, 5))]
    if shift < 40:  # halves: a product that is an odd number of 2^(shift - 1)
        a.append(2 ** (shift - 1) * 3 if shift < 30 else 2**29)
        m.append(1 if shift < 30 else 2 ** max(shift - 30, 0))
    for each in m:
        got = fp.rescale(np.array(a, np.int64), each, shift)
        assert got.dtype == np.int64
        assert list(got) == [math.floor(Fraction(v * each, 2**shift) + Fraction(1, 2)) for v in a]


def test_halves_go_up_on_both_sides_of_zero():
    assert list(fp.rescale(np.array([-3, -1, 1, 3]), 1, 1)) == [-1, 0, 1, 2]


def test_rescaling_broadcasts_over_channels():
    a = np.arange(-6, 6).reshape(2, 2, 3)
    m, s = np.array([2**30, 2**30 + 1, 2**31 - 1], np.int32), np.array([31, 30, 29], np.int32)
    got = fp.rescale(a, m, s)
    for channel in range(3):
        assert np.array_equal(got[..., channel], fp.rescale(a[..., channel], int(m[channel]), int(s[channel])))


PAIRS = [(1.0, 1.0), (1.0, -1.0), (0.3, 0.7), (1e-6, 1.0), (0.0, 2.0), (2.0**18, 1.0), (1e-9, 1e-9), (1.0,), (-0.4,)]


@pytest.mark.parametrize("pair", [*PAIRS, (2**-10 * (1 - 2**-22), 1e-5), (1 - 2**-22, 0.5)])
def test_small_multipliers_share_a_shift_and_stay_within_32_bits(pair):
    values, shift = fp.small_multipliers(pair)
    assert 1 <= shift <= 30
    for value, factor in zip(values, pair, strict=True):
        assert abs(value) < 2**fp.OPERAND_BITS
        assert abs(Fraction(value, 2**shift) - Fraction(factor)) <= Fraction(1, 2 ** (shift + 1))
    # The largest sum: operands of 8 bits less a zero point of 8 bits lie in [-255, 255].
    assert 255 * sum(map(abs, values)) + 2 ** (shift - 1) < 2**31
    if max(map(abs, pair)) > 2**-9:
        assert max(map(abs, values)) >= 2 ** (fp.OPERAND_BITS - 1) - 1


@pytest.mark.parametrize("pair", [(0.0,), (0.0, 0.0), (2.0**19,), (math.inf, 1.0), (math.nan, 1.0)])
def test_small_multipliers_outside_are_refused(pair):
    with pytest.raises(ValueError, match="must lie in"):
        fp.small_multipliers(pair)


def test_accumulators_wrap_modulo_2_to_the_32():
    a = np.array([2**31, -(2**31) - 1, 2**32 + 5, -(2**33) - 7, 2**31 - 1, -(2**31), 0], np.int64)
    got = fp.wrap(a)
    assert got.dtype == np.int64
    assert list(got) == [(int(v) + 2**31) % 2**32 - 2**31 for v in a]
