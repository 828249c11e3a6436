"""A program whose convolutions in float take their operands as float16, where a device's tensor cores do.

Sums stay in float32, and so does everything else: no tensor is stored in float16. The largest errors are those of
rounding an operand, 2^-11 of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from compress.integer import program as p


def with_half(program: p.Program, fits: Callable[[p.FloatConvolution, p.Program], bool]) -> p.Program:
    """``program`` with ``half`` set at its float convolutions that ``fits`` says yes to."""
    ops = tuple(
        replace(op, half=True) if isinstance(op, p.FloatConvolution) and fits(op, program) else op for op in program.ops
    )
    return replace(program, ops=ops)


__all__ = ["with_half"]
