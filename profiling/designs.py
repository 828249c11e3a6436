"""The networks that a calibration times: chains of few operators, small networks to fit, others to check the fit.

A chain repeats one or two kinds of operators at one size, so that their cost stands out from that of a call. Sizes are
drawn by a fixed generator, log-uniformly, over what networks for small devices are made of. The networks are drawn
likewise: residual ones, inverted residuals with depthwise convolutions, and plain ones; of each, some with the widths
that people give them and some with one for every layer of its own, as pruning leaves them. Those that check come from
other seeds than those that are fitted.

Times are fitted by networks above all: what a layer costs hangs on what ran before it. A depthwise convolution behind
another finds its image in the cache of its own core and takes half as long as behind a pointwise one. Instructions are
the same anywhere, and chains tell their prices apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from compress.profiling.drawing import Drawing, Drawn
from compress.types import Precision

CHAINS, FITTED, CHECKED = 15, 96, 20
"""How many of each there are for one runtime and one kind of numbers whose times are fitted."""
COUNTED_CHAINS, COUNTED = 45, 120
"""How many there are where instructions are counted, of chains and of networks to fit."""
MOST_MACS = 3e7
"""Of one operator of a chain."""
LEAST = 4
"""Channels."""
Random = np.random.Generator


def chains(precision: Precision, count: int = CHAINS, largest: float = MOST_MACS) -> list[Drawn]:
    """``count`` chains; of fewer, the kinds that networks hold most of."""
    made = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        random = np.random.default_rng((7, number))
        made.append(kind(f"{kind.__name__.strip('_')}-{number}", precision, random, largest))
    return made


def networks(precision: Precision, count: int, seed: int, largest: float = MOST_MACS) -> list[Drawn]:
    """``count`` networks from generators of ``seed``."""
    made = []
    for number in range(count):
        style = STYLES[number % len(STYLES)]
        random = np.random.default_rng((seed, number))
        made.append(style(f"{style.__name__.strip('_')}-{seed}-{number}", precision, random, largest))
    return made


def _log(random: Random, low: float, high: float) -> int:
    return round(float(np.exp(random.uniform(np.log(low), np.log(high)))))


def _channels(random: Random, low: int = 6, high: int = 160, step: int = 0) -> int:
    """Multiples of ``step``; without one a third of them of 16 and a third of 8, as networks are drawn, and the rest
    any, as pruning leaves them."""
    found = _log(random, low, high)
    step = step or int(random.choice([16, 8, 1]))
    return max(step, step * round(found / step))


class _Widths:
    """Channels of the layers of one network: of a third of all networks multiples of 16 throughout and of a third of 8,
    as networks are drawn by hand; in the rest each layer has its own, as pruning leaves them.
    """

    def __init__(self, random: Random) -> None:
        self.random, self.step = random, int(random.choice([16, 8, 0]))

    def __call__(self, low: int, high: int) -> int:
        """Between ``low`` and ``high``, or next to it."""
        return _channels(self.random, low, high, self.step)

    def fitting(self, macs_a_channel: float, wanted: int, largest: float) -> int:
        """As many as are wanted, or as ``largest`` multiply-accumulates allow, one step at least."""
        return _fitting(macs_a_channel, wanted, largest, self.step)


def _side(random: Random, macs_a_pixel: float, largest: float, most: int = 128) -> int:
    """Pixels a side so that a layer has between 1/500 of ``largest`` and ``largest`` multiply-accumulates."""
    macs = float(np.exp(random.uniform(np.log(largest / 500), np.log(largest))))
    return int(np.clip(round((macs / macs_a_pixel) ** 0.5), 2, most))


def _dense(name: str, precision: Precision, random: Random, largest: float) -> Drawn:
    return _to_and_fro(name, precision, random, largest, 3, _channels(random), _channels(random), 0.8)


def _strided(name: str, precision: Precision, random: Random, largest: float) -> Drawn:
    a, kernel = _channels(random, 8, 64), int(random.choice([1, 3, 5]))
    d = Drawing(name, a, max(8, _side(random, kernel**2 * a * a / 4, largest)), precision)
    x = d.conv(d.input, _channels(random, a, 2 * a), kernel, 2)
    return d.done(d.conv(x, _channels(random, a, 2 * a), kernel, 2))


def _stem(name: str, precision: Precision, random: Random, largest: float) -> Drawn:
    out, channels = _channels(random, 8, 64), int(random.choice([1, 3]))
    kernel, stride = int(random.choice([3, 3, 5, 7])), int(random.choice([1, 2]))
    d = Drawing(name, channels, _log(random, 16, 64), precision)
    return d.done(d.conv(d.input, out, kernel, stride))


def _pointwise(name: str, precision: Precision, random: Random, largest: float) -> Drawn:
    return _to_and_fro(name, precision, random, largest, 1, _channels(random, 8, 256), _channels(random, 8, 256), 0.6)


def _to_and_fro(
    name: str, precision: Precision, random: Random, largest: float, kernel: int, a: int, b: int, activated: float
) -> Drawn:
    """Four convolutions from ``a`` channels to ``b`` and back; so large a share of them has an activation function."""
    d = Drawing(name, a, _side(random, kernel**2 * a * b, largest), precision)
    x = d.input
    for out in (b, a, b, a):
        x = d.conv(x, out, kernel, activation="relu" if random.random() < activated else None)
    return d.done(x)


def _separable(name: str, precision: Precision, random: Random, largest: float) -> Drawn:
    """Depthwise convolutions between pointwise ones: alone they would find their images in the cache of their core."""
    a, kernel = _channels(random, 8, 96), int(random.choice([3, 3, 5]))
    inner = max(a, _channels(random, a, 4 * a))
    d = Drawing(name, a, _side(random, a * inner, largest), precision)
    x = d.input
    for stride in (1, int(random.choice([1, 2]))):
        x = d.conv(d.conv(x, inner, 1), inner, kernel, stride, groups=inner)
        x = d.conv(x, a, 1, activation=None)
    return d.done(x)


def _widening(name: str, precision: Precision, random: Random, largest: float) -> Drawn:
    """A few channels to many, which are read but once: what is written tells itself from what is read."""
    a, b = _channels(random, 3, 32), _channels(random, 48, 256)
    d = Drawing(name, a, _side(random, a * b, largest), precision)
    x = d.conv(d.input, b, 1)
    return d.done(d.linear(d.global_pool(d.conv(x, b, 3, 2, groups=b)), 10))


def _linear(name: str, precision: Precision, random: Random, largest: float) -> Drawn:
    d = Drawing(name, _log(random, 16, 320), 1, precision)
    x = d.flat(d.input)
    for _ in range(3):
        x = d.linear(x, _log(random, 16, 320), "relu")
    return d.done(d.linear(x, _log(random, 4, 1000)))


def _residual(name: str, precision: Precision, random: Random, largest: float) -> Drawn:
    channels = _channels(random)
    d = Drawing(name, channels, _side(random, channels * channels, largest / 4), precision)
    x = d.conv(d.input, channels, 1)
    y = x
    for _ in range(3):
        y = d.add(d.conv(y, channels, 1, activation=None), x)
    return d.done(y)


def _pooled(name: str, precision: Precision, random: Random, largest: float) -> Drawn:
    channels = _channels(random)
    d = Drawing(name, channels, max(8, _side(random, channels * channels, largest / 4)), precision)
    x = d.max_pool(d.conv(d.input, channels, 1))
    x = d.conv(d.max_pool(x), channels, 1)
    return d.done(d.linear(d.global_pool(x), 10))


def _curved(name: str, precision: Precision, random: Random, largest: float) -> Drawn:
    channels = _channels(random)
    d = Drawing(name, channels, _side(random, channels * channels, largest / 4), precision)
    x = d.conv(d.input, channels, 1, activation="silu")
    return d.done(d.conv(d.conv(x, channels, 1, activation="silu"), channels, 1, activation="silu"))


def _resnet(name: str, precision: Precision, random: Random, largest: float) -> Drawn:
    d, widths = Drawing(name, 3, _log(random, 16, 64), precision), _Widths(random)
    # Any: all that is added to the first layer's output has its width, and after pruning that is seldom a whole one.
    width = widths(8, 40) if widths.step else _log(random, 8, 40)
    x = d.conv(d.input, width, 3, int(random.choice([1, 1, 2])))
    for stage in range(int(random.integers(1, 4))):
        for block in range(int(random.choice([1, 2, 3, 5]))):
            down = stage > 0 and block == 0
            width = widths.fitting(9 * width * x.size**2, widths(width, 2 * width), largest) if down else width
            y = d.conv(x, widths(max(4, width // 2), width), 3, 2 if down else 1)
            y = d.conv(y, width, 3, activation=None)
            x = d.add(y, d.conv(x, width, 1, 2, activation=None) if down else x)
    return d.done(d.linear(d.global_pool(x), int(random.integers(2, 101))))


def _mobile(name: str, precision: Precision, random: Random, largest: float) -> Drawn:
    d, widths = Drawing(name, 3, _log(random, 24, 224 if largest >= MOST_MACS else 112), precision), _Widths(random)
    x = d.conv(d.input, widths(8, 32), 3, 2)
    for _ in range(int(random.integers(2, 13))):
        stride = int(random.choice([1, 1, 2])) if x.size > 4 else 1
        inner = x.channels * int(random.integers(2, 7))
        y = d.conv(d.conv(x, inner, 1), inner, int(random.choice([3, 3, 5])), stride, groups=inner)
        out = x.channels if random.random() < 0.5 else widths(8, 96)
        y = d.conv(y, widths.fitting(inner * y.size**2, out, largest), 1, activation=None)
        x = d.add(y, x, None) if (y.size, y.channels) == (x.size, x.channels) else y
    x = d.conv(x, widths.fitting(x.channels * x.size**2, widths(64, 1280), largest), 1)
    return d.done(d.linear(d.global_pool(x), _fitting(x.channels, _log(random, 2, 1000), largest)))


def _plain(name: str, precision: Precision, random: Random, largest: float) -> Drawn:
    d, widths = Drawing(name, int(random.choice([1, 3])), _log(random, 16, 40), precision), _Widths(random)
    x = d.conv(d.input, widths(8, 40), int(random.choice([3, 5])))
    for _ in range(int(random.integers(1, 5))):
        if x.size >= 8 and random.random() < 0.6:
            x = d.max_pool(x)
        x = d.conv(x, widths.fitting(9 * x.channels * x.size**2, widths(12, 128), largest), 3)
    x = d.global_pool(x) if random.random() < 0.5 or x.elements > 2048 else d.flat(x)
    return d.done(d.linear(d.linear(x, _log(random, 16, 160), "relu"), int(random.integers(2, 101))))


def _fitting(macs_a_channel: float, wanted: int, largest: float, step: int = 0) -> int:
    """As many numbers as are wanted, or as many steps as ``largest`` multiply-accumulates allow, one step at least;
    without a step :data:`LEAST`."""
    return max(step or LEAST, min(wanted, int(largest / macs_a_channel) // (step or 1) * (step or 1)))


KINDS: Sequence[Callable[[str, Precision, Random, float], Drawn]] = (
    _dense, _pointwise, _separable, _dense, _residual, _linear, _strided, _widening, _dense, _separable, _pooled, _stem,
    _pointwise, _separable, _curved,
)  # fmt: skip
STYLES: Sequence[Callable[[str, Precision, Random, float], Drawn]] = (_resnet, _mobile, _plain)


__all__ = ["CHAINS", "CHECKED", "COUNTED", "COUNTED_CHAINS", "FITTED", "MOST_MACS", "chains", "networks"]
