"""Functions of float32 numbers without a mathematics library: straight-line code that vectorizes.

Reductions and polynomials are those of S. Moshier's Cephes library (expf, logf, tanhf, erff), whose errors are at most
two units in the last place; ``pow`` is computed in float64. Infinities and NaNs come out as IEEE 754 asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.export.kernels.building import constant, has_float, registers, store
from compress.export.kernels.isa import Isa
from compress.integer.program import LARGEST_HALF

MAGIC = 0x4B400000
"""The bits of 1.5 * 2^23: a number of magnitude below 2^22 added to that has its nearest integer, halves to even, in
the lowest bits."""
LOG2_E, LN2_HIGH, LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
ERF = (
    7.853861353153693e-5,
    -8.010193625184903e-4,
    5.188327685732524e-3,
    -2.685381193529856e-2,
    1.128358514861418e-1,
    -3.761262582423300e-1,
    1.128379165726710,
)
ERFC = (
    2.326819970068386e-2,
    -1.387039388740657e-1,
    3.687424674597105e-1,
    -5.824733027278666e-1,
    6.210004621745983e-1,
    -4.944515323274145e-1,
    3.404879937665872e-1,
    -2.741127028184656e-1,
    5.638259427386472e-1,
)
"""Coefficients, the highest power's first."""


def f32(value: float) -> Any:
    """A float32 constant."""
    return constant(value, "float32")


def polynomial(x: Any, coefficients: Sequence[float], kind: str = "float32") -> Any:
    """Horner's scheme."""
    total = constant(coefficients[0], kind)
    for c in coefficients[1:]:
        total = total * x + constant(c, kind)
    return total


def named(value: Any) -> Any:
    """The value once computed, instead of its expression at every use."""
    kind = str(value.ty) if hasattr(value, "ty") else str(value.dtype)
    held = registers(1, kind)
    store(held, value, 0)
    return held[0]


def select(condition: Any, yes: Any, no: Any) -> Any:
    """``yes`` or ``no``; both are computed."""
    from tvm.tirx.script import builder as T

    return T.Select(condition, yes, no)


def nearest(x: Any) -> Any:
    """The nearest integer, halves to even: int32, for magnitudes below 2^22."""
    from tvm.tirx.script import builder as T

    return T.reinterpret("int32", x + f32(1.5 * 2**23)) - MAGIC


def half(x: Any) -> Any:
    """As float16 has it, halves to even, no farther than its largest number; float32 again.

    Numbers from 2^-14 on keep ten bits behind the first, smaller ones are multiples of 2^-24.
    """
    from tvm.tirx.script import builder as T

    x = named(x)
    bounded = named(T.min(T.max(x, f32(-LARGEST_HALF)), f32(LARGEST_HALF)))
    bits = named(T.reinterpret("int32", bounded))
    rounded = T.reinterpret("float32", (bits + 0xFFF + ((bits >> 13) & 1)) & -0x2000)
    small = T.cast(nearest(bounded * f32(2.0**24)), "float32") * f32(2.0**-24)
    is_small = (bits & 0x7FFFFFFF) < (127 - 14) << 23
    return named(select(is_nan(x), x, select(is_small, small, rounded)))


def is_nan(x: Any) -> Any:
    """By its bits: comparisons with itself get simplified away."""
    from tvm.tirx.script import builder as T

    return (T.reinterpret("int32", x) & 0x7FFFFFFF) > 0x7F800000


def power_of_two(n: Any) -> Any:
    """2^n for an int32 in [-126, 127]."""
    from tvm.tirx.script import builder as T

    return T.reinterpret("float32", (n + 127) << 23)


def exp(x: Any) -> Any:
    """e^x: ``2^n e^r`` with n the nearest integer to x / ln 2; the scaling is in two halves, for subnormal results."""
    from tvm.tirx.script import builder as T

    x = named(x)
    bounded = named(T.min(T.max(x, f32(-104.0)), f32(89.0)))
    n = named(nearest(bounded * f32(LOG2_E)))
    whole = T.cast(n, "float32")
    r = named(bounded - whole * f32(LN2_HIGH) - whole * f32(LN2_LOW))
    value = named((polynomial(r, EXP) * (r * r) + r) + f32(1))
    half = named(n >> 1)
    return named(select(is_nan(x), x, value * power_of_two(half) * power_of_two(n - half)))


def log(x: Any) -> Any:
    """The natural logarithm: of the exponent and of a mantissa in [sqrt(1/2), sqrt(2))."""
    from tvm.tirx.script import builder as T

    x = named(x)
    tiny = x < f32(2.0**-126)
    bits = named(T.reinterpret("int32", select(tiny, x * f32(2.0**23), x)))
    # Taking off the bits of sqrt(1/2) makes the exponent that of the mantissa's own range.
    shifted = named(bits - 0x3F3504F3)
    e = T.cast((shifted >> 23) - select(tiny, T.int32(23), T.int32(0)), "float32")
    m = named(T.reinterpret("float32", (shifted & 0x007FFFFF) + 0x3F3504F3) - f32(1))
    e = named(e)
    z = named(m * m)
    value = polynomial(m, LOG) * m * z + e * f32(LN2_LOW) - f32(0.5) * z + m + e * f32(LN2_HIGH)
    infinite = f32(float("inf"))
    value = select(x < infinite, value, x)
    value = select(x == f32(0), f32(float("-inf")), value)
    return named(select(x < f32(0), f32(float("nan")), value))


def sigmoid(x: Any) -> Any:
    """``1 / (1 + e^-x)``."""
    return f32(1) / (f32(1) + exp(f32(0) - x))


def tanh(x: Any) -> Any:
    """A polynomial up to 0.625, ``1 - 2 / (e^2|x| + 1)`` beyond."""
    x = named(x)
    size = named(absolute(x))
    z = named(x * x)
    near = polynomial(z, TANH) * z * x + x
    far = f32(1) - f32(2) / (exp(size + size) + f32(1))
    return named(select(size < f32(0.625), near, with_sign(far, x)))


def erf(x: Any) -> Any:
    """The error function: ``x T(x^2)`` up to 1, ``1 - e^(-x^2) P(1/x^2) / x`` beyond."""
    from tvm.tirx.script import builder as T

    x = named(x)
    size = named(absolute(x))
    z = named(x * x)
    near = x * polynomial(z, ERF)
    # Beyond 4 the result is 1; the bound keeps the fraction in the range of the polynomial.
    beyond = named(T.min(T.max(size, f32(1)), f32(4)))
    inverse = named(f32(1) / beyond)
    far = f32(1) - exp(f32(0) - beyond * beyond) * inverse * polynomial(inverse * inverse, ERFC)
    value = select(size < f32(1), near, with_sign(far, x))
    return named(select(is_nan(x), x, value))


def absolute(x: Any) -> Any:
    """``|x|``."""
    from tvm.tirx.script import builder as T

    return T.reinterpret("float32", T.reinterpret("int32", x) & 0x7FFFFFFF)


def with_sign(x: Any, sign: Any) -> Any:
    """A positive ``x`` under the sign of ``sign``."""
    from tvm.tirx.script import builder as T

    bits = T.reinterpret("int32", x) | (T.reinterpret("int32", sign) & T.int32(-(2**31)))
    return T.reinterpret("float32", bits)


def sqrt(x: Any, isa: Isa) -> Any:
    """The square root, by instruction or by Newton's method on its inverse, to one unit in the last place."""
    from tvm.tirx.script import builder as T

    if has_float(isa):
        return T.sqrt(x)
    x = named(x)
    small = x < f32(2.0**-100)
    scaled = named(select(small, x * f32(2.0**64), x))
    y = named(T.reinterpret("float32", T.int32(0x5F3759DF) - (T.reinterpret("int32", scaled) >> 1)))
    for _ in range(3):
        y = named(y * (f32(1.5) - (f32(0.5) * scaled * y) * y))
    root = named(scaled * y)
    root = named(root + f32(0.5) * y * (scaled - root * root))
    root = select(small, root * f32(2.0**-32), root)
    root = select((x > f32(0)) & (x < f32(float("inf"))), root, x)
    return named(select(x < f32(0), f32(float("nan")), root))


def power(a: Any, b: Any) -> Any:
    """``a^b = 2^(b log2 |a|)`` in float64, with the sign that an odd integer exponent asks for."""
    from tvm.tirx.script import builder as T

    def wide(value: float) -> Any:
        return constant(value, "float64")

    a, b = named(a), named(b)
    size = named(absolute(a))
    # log2 of |a| = e + log2 m, with log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172.
    tiny = size < f32(2.0**-126)
    bits = named(T.reinterpret("int32", select(tiny, size * f32(2.0**23), size)) - 0x3F3504F3)
    e = T.cast((bits >> 23) - select(tiny, T.int32(23), T.int32(0)), "float64")
    m = named(T.cast(T.reinterpret("float32", (bits & 0x007FFFFF) + 0x3F3504F3), "float64"))
    s = named((m - wide(1)) / (m + wide(1)))
    series = polynomial(named(s * s), [1 / k for k in range(15, 0, -2)], "float64")
    logarithm = e + s * series * wide(2 * LOG2_E)
    exponent = named(T.cast(b, "float64") * logarithm)
    exponent = named(T.min(T.max(exponent, wide(-160)), wide(130)))
    n = named(nearest(T.cast(exponent, "float32")))
    r = named((exponent - T.cast(n, "float64")) * wide(0.6931471805599453))
    factorials = [1.0]
    for k in range(1, 11):
        factorials.append(factorials[-1] / k)
    half = named(n >> 1)
    value = named(T.cast(polynomial(r, factorials[::-1], "float64"), "float32"))
    value = value * power_of_two(half) * power_of_two(n - half)
    infinite = f32(float("inf"))
    value = select(size == f32(0), select(b > f32(0), f32(0), infinite), value)
    value = named(select(size == infinite, select(b > f32(0), infinite, f32(0)), value))
    # Floats of 2^24 and more are even; below, their integer part fits.
    part = named(T.cast(T.min(T.max(b, f32(-16777216.0)), f32(16777216.0)), "int32"))
    whole = (T.cast(part, "float32") == b) | (absolute(b) >= f32(16777216.0))
    odd = whole & (absolute(b) < f32(16777216.0)) & ((part & 1) != 0)
    negative = select(odd, f32(0) - value, select(whole, value, f32(float("nan"))))
    value = select(a < f32(0), negative, value)
    value = select(is_nan(a) | is_nan(b), f32(float("nan")), value)
    return named(select((b == f32(0)) | (a == f32(1)), f32(1), value))


__all__ = [
    "absolute",
    "erf",
    "exp",
    "is_nan",
    "log",
    "named",
    "nearest",
    "power",
    "select",
    "sigmoid",
    "sqrt",
    "tanh",
]
