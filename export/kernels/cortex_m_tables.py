"""What a Cortex-M convolution's kernel is compiled for, and the table that it reads the rest from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.cortex_m_tiles import Tiles
from compress.integer.fixed_point import wrap

GEOMETRY = (
    "out_rows", "block", "stride", "top", "in_rows", "span", "row", "left", "right", "groups", "channels", "zero",
    "pairs", "last", "second", "words", "skip", "turns", "end", "images", "split", "down", "apart", "columns", "step",
    "out_row", "out_apart", "outputs", "out_zero", "low", "high", "entry", "blocks", "x_row", "y_row",
)  # fmt: skip
"""Numbers in front of a layer's table, of 16 bits where all fit, else of 32. Lengths of widened images are in words of
two int16, or of four bytes with :attr:`Kind.differences`.

``out_rows``, ``in_rows``, ``channels``, ``outputs``: of the images; ``block``: output rows at a time; ``stride``,
``top``: of the rows; ``span``: input rows under the kernel; ``row``: a widened row's words; ``left``, ``right``: words
of zero points beside it; ``groups``: how many fours of channels (or pixels) a row has; ``zero``: the zero point, or two
bytes of it; ``pairs``: of output channels, ``last``: the last one's first channel, ``second``: from its first to its
second; ``words``: of a pair's packed weights; ``skip``: bytes from a segment's end to the next segment; ``turns``: of
the loop in a segment; ``end``: words of unpacked weights; ``images``: where widened rows start; ``split``: 1 if two
pixels are half a block apart, 0 if half a row; ``down``, ``step``: from an output's inputs to those of the next row, of
the next column; ``apart``, ``out_apart``, ``out_row``: between two pixels, in words of inputs and in outputs, and from
row to row in outputs; ``columns``: pairs of pixels in a row; ``out_zero``, ``low``, ``high``: of requantization;
``entry``, ``x_row``, ``y_row``: see :mod:`cortex_m_tiles`; ``blocks``: how many."""
ADDITION = ("add_own", "add_other", "add_constant", "add_shift", "add_low", "add_high")
"""Words behind them where an addition is fused; see :data:`compress.export.kernels.cortex_m_tiles.ADDITION`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kernel is compiled for.

    Attributes:
        bits: of stored weights.
        wide: :data:`GEOMETRY` takes 32 bits a number.
        tiles: the inner loops, requantization included; None where that needs 64 bits, or the output is float32.
        unroll: of the inner loop without ``tiles``.
        line: one output pixel of a 1x1 kernel: weights are unpacked in registers. No ``tiles``.
        high: the products' high words are all that requantization needs.
        floats: the output is float32.
    """

    bits: int
    wide: bool
    tiles: Tiles | None
    unroll: int
    floats: bool
    line: bool
    high: bool

    @property
    def differences(self) -> bool:
        """One-bit weights, without products; see :mod:`cortex_m_tiles`."""
        return self.tiles is not None and self.tiles.differences

    @property
    def add(self) -> bool:
        """An addition follows."""
        return self.tiles is not None and self.tiles.addition is not None

    @property
    def head(self) -> int:
        """Words that :data:`GEOMETRY` takes."""
        return len(GEOMETRY) if self.wide else (len(GEOMETRY) + 1) // 2

    @property
    def first_entry(self) -> int:
        """Words in front of the output channels' numbers: for each pair of them two biases and two multipliers, or
        scales; behind those of all pairs, but for scales, a byte a channel with its shift."""
        return self.head + (len(ADDITION) if self.add else 0)


ENTRY = 4
"""Words of a pair of output channels."""


def words(numbers: Sequence[int]) -> NDArray[np.int32]:
    """Numbers as int32, modulo 2^32."""
    return wrap(np.array(numbers, np.int64)).astype(np.int32)


def narrow(numbers: Sequence[int]) -> bool:
    """Whether all are of 16 bits."""
    return all(-(1 << 15) <= number < 1 << 15 for number in numbers)


def halves(numbers: Sequence[int]) -> NDArray[np.int32]:
    """Numbers of 16 bits, two a word."""
    padded = [*numbers, *[0] * (len(numbers) % 2)]
    return np.array(padded, np.int16).view(np.int32)


def as_bytes(numbers: NDArray[np.int64]) -> NDArray[np.int32]:
    """Numbers of 8 bits, four a word."""
    flat = numbers.reshape(-1)
    return np.pad(flat, (0, -flat.size % 4)).astype(np.int8).view(np.int32)


__all__ = ["ADDITION", "ENTRY", "GEOMETRY", "Kind", "as_bytes", "halves", "narrow", "words"]
