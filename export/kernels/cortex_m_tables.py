"""What a Cortex-M convolution's kernel is compiled for, and the table that it reads the rest from."""

from __future__ import annotations

from dataclasses import dataclass

from compress.export.kernels.cortex_m_tiles import Tiles

GEOMETRY = (
    "out_rows", "block", "stride", "top", "in_rows", "span", "row", "left", "right", "groups", "channels", "zero",
    "pairs", "last", "second", "words", "skip", "turns", "end", "images", "split", "down", "apart", "columns", "step",
    "out_row", "out_apart", "outputs", "out_zero", "low", "high", "entry",
)  # fmt: skip
"""Words in front of a layer's table. Lengths of widened images are in words of two int16.

``out_rows``, ``in_rows``, ``channels``, ``outputs``: of the images; ``block``: output rows at a time; ``stride``, ``top``: of the
rows; ``span``: input rows under the kernel; ``row``: a widened row's words; ``left``, ``right``: words of zero points beside
it; ``groups``: how many fours of channels (or pixels) a row has; ``zero``: two zero points; ``pairs``: of output
channels, ``last``: the last one's first channel, ``second``: from its first to its second; ``words``: of a pair's packed
weights; ``skip``: bytes from a segment's end to the next segment; ``turns``: of the loop in a segment; ``end``: words of
unpacked weights; ``images``: where widened rows start; ``split``: 2 if two pixels are half a block apart, 1 if half a
row; ``down``, ``step``: from an output's inputs to those of the next row, of the next column; ``apart``, ``out_apart``,
``out_row``: between two pixels, in words of inputs and in outputs, and from row to row in outputs; ``columns``: pairs
of pixels in a row; ``out_zero``, ``low``, ``high``: of requantization; ``entry``: see :mod:`cortex_m_tiles`."""
ADDITION = ("add_own", "add_other", "add_constant", "add_shift", "add_low", "add_high")
"""Words behind them where an addition is fused; see :data:`compress.export.kernels.cortex_m_tiles.ADDITION`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kernel is compiled for.

    Attributes:
        bits: of stored weights.
        tiles: the inner loops, requantization included; None where that needs 64 bits, or the output is float32.
        unroll: of the inner loop without ``tiles``.
        floats: the output is float32.
    """

    bits: int
    tiles: Tiles | None
    unroll: int
    floats: bool

    @property
    def add(self) -> bool:
        """An addition follows."""
        return self.tiles is not None and self.tiles.addition is not None

    @property
    def entry(self) -> int:
        """Words of the table for a pair of output channels: two biases, then two multipliers and a word with two
        shifts (the second one times 256), or two scales."""
        return 4 if self.floats else 5

    @property
    def first_entry(self) -> int:
        """Words in front of them."""
        return len(GEOMETRY) + (len(ADDITION) if self.add else 0)


__all__ = ["ADDITION", "GEOMETRY", "Kind"]
