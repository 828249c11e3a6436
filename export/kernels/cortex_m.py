"""Kernels of Cortex-M cores with the DSP extension (M4, M7, M33, M55): ``smlad`` on pairs of int16."""

from __future__ import annotations

from compress.export.kernels import cortex_m_convolution, emit, fusion
from compress.export.kernels.code import Code
from compress.export.kernels.isa import Isa
from compress.integer.program import Program

EMITTERS = (cortex_m_convolution.emit,)
"""First match wins; what none of them takes is left to the portable kernels."""


def code(program: Program, isa: Isa, prefix: str = "kernel") -> Code:
    """The kernels of a program whose 8-bit tensors are signed; all images lie densely.

    Raises:
        BadInput: an operator has no kernel.
    """
    return emit.assemble(fusion.fuse(program), isa, EMITTERS, prefix=prefix)


__all__ = ["EMITTERS", "code"]
