"""Which strategy of :mod:`compress.export.kernels.dot` an instruction set takes for which weights."""

from __future__ import annotations

from collections.abc import Mapping

from compress.export.kernels.dot import Dot
from compress.export.kernels.dot_arm import ByLane, Pairwise, PairwiseDifferences, Sdot
from compress.export.kernels.dot_x86 import Madd, MaddBytes, SadDifferences, Vnni
from compress.export.kernels.isa import Isa
from compress.integer.program import Convolution


def strategies(isa: Isa) -> tuple[Dot, ...]:
    """The strategies of an instruction set for weights of any width, best first; the last one takes any weights."""
    registers = 32 if isa.dot in ("vnni512", "sdot", "neon") else 16
    if isa.dot == "vnni512":
        return (Vnni(16, 1, registers, False, False),)
    if isa.dot == "vnni256":
        return (Vnni(8, 1, registers, False, False),)
    if isa.dot == "avx2":
        return (Madd(8, 1, registers, False, False),)
    if isa.dot == "sdot":
        return (Sdot(4, 4, registers, True, True),)
    if isa.dot == "neon":
        return (Pairwise(4, 1, registers, True, True), ByLane(8, 8, registers, True, True))
    return ()


NARROW: Mapping[str, tuple[Dot, ...]] = {
    "avx2": (SadDifferences(4, 1, 16, False, False), MaddBytes(8, 1, 16, False, False)),
    "neon": (PairwiseDifferences(4, 1, 32, True, False),),
}
"""By instruction set, what is better for narrow weights, best first: additions for those of one bit where nothing
multiplies and adds at once; products of bytes where only those of narrow weights never saturate."""


def strategy(isa: Isa, op: Convolution) -> Dot | None:
    """The best strategy for a convolution."""
    fitting = (dot.fitted(op) for dot in (*NARROW.get(isa.dot, ()), *strategies(isa)))
    return next((dot for dot in fitting if dot is not None), None)


__all__ = ["NARROW", "strategies", "strategy"]
