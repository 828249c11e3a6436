"""Kernels for every operator on every instruction set: plain loops that LLVM vectorizes, or a C compiler does."""

from __future__ import annotations

from collections.abc import Mapping

from compress.export.kernels import (
    portable_convolution,
    portable_float,
    portable_integer,
    portable_moves,
    portable_pools,
)
from compress.export.kernels.code import Placed
from compress.export.kernels.emitted import Emitted
from compress.export.kernels.isa import Isa
from compress.export.kernels.portable_moves import fill_halo, move
from compress.integer.program import Op

PARTS = (
    portable_convolution.emit,
    portable_integer.emit,
    portable_pools.emit,
    portable_float.emit,
    portable_moves.emit,
)


def emit(op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
    """The portable kernel of an operator; None for operators that a back end invented."""
    for part in PARTS:
        found = part(op, placed, isa, symbol)
        if found is not None:
            return found
    return None


__all__ = ["emit", "fill_halo", "move"]
