"""What kernels of convolutions begin with on every back end: the image, the bias, the width of stored weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compress.integer.fixed_point import wrap
from compress.integer.program import Convolution

UNITS = {8: 0, 4: 4, 2: 6, 1: 6}
"""By stored bits, for kernels that unpack weights in registers: the logarithm of what an unpacked weight is multiplied
with, as its bits then lead their byte."""


def image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(H, W, C) of an image, a sequence (T, C), which is one row, or a vector."""
    rows, columns, channels = (1,) * (3 - len(shape)) + shape
    return rows, columns, channels


def folded_bias(op: Convolution, zero_point: int) -> NDArray[np.int32]:
    """``bias - z * sum of the weights`` of each output channel, modulo 2^32 as accumulators are."""
    sums = op.weight.astype(np.int64).reshape(len(op.weight), -1).sum(axis=1)
    return wrap(op.bias.astype(np.int64) - zero_point * sums).astype(np.int32)


def stored_bits(weight_bits: int, weight: NDArray[np.int8], largest: int, bias: NDArray[np.int32] | None = None) -> int:
    """The bits that a weight takes in memory: ``weight_bits``, or the next width where that isn't exact.

    3 bits take 4; 1 bit takes 2 where there are zeros; all take 8 where :data:`UNITS` times a sum could leave 32 bits.

    Args:
        weight_bits: of the convolution.
        weight: (O, ...), with the zeros that fill up what is unpacked at once.
        largest: magnitude of what a weight is multiplied with.
        bias: (O,), if the sums that are multiplied hold it.
    """
    bits = 4 if weight_bits == 3 else weight_bits
    magnitudes = np.abs(weight.astype(np.int64))
    if bits == 1 and not (magnitudes == 1).all():
        bits = 2
    sums = magnitudes.reshape(len(weight), -1).sum(axis=1) * largest
    if bias is not None:
        sums = sums + np.abs(bias.astype(np.int64))
    return bits if int(sums.max()) < 1 << (31 - UNITS[bits]) else 8


__all__ = ["UNITS", "folded_bias", "image", "stored_bits"]
