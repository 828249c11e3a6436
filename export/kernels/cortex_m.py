"""Kernels of Cortex-M cores with the DSP extension (M4, M7, M33, M55): ``smlad`` on pairs of int16."""

from __future__ import annotations

from dataclasses import replace

from compress.export.kernels import cortex_m_convolution, emit, fusion
from compress.export.kernels.code import Code
from compress.export.kernels.isa import Isa
from compress.integer.program import Op, Program

EMITTERS = (cortex_m_convolution.emit,)
"""First match wins; what none of them takes is left to the portable kernels."""


def code(program: Program, isa: Isa, prefix: str = "kernel") -> Code:
    """The kernels of a program whose 8-bit tensors are signed; all images lie densely.

    Raises:
        BadInput: an operator has no kernel.
    """
    return emit.assemble(_fused(program), isa, EMITTERS, prefix=prefix)


def _fused(program: Program) -> Program:
    """The program with those additions drawn into convolutions for which there is a kernel."""
    joined = fusion.fuse(program)
    ops: list[Op] = []
    for op in joined.ops:
        if isinstance(op, fusion.ConvolutionAdd) and not cortex_m_convolution.fusable(op):
            ops += [op.convolution, op.add]
        else:
            ops.append(op)
    used = {name for op in ops for name in (*op.inputs, op.output)} | set(program.inputs) | set(program.outputs)
    tensors = {name: tensor for name, tensor in program.tensors.items() if name in used}
    return replace(joined, ops=tuple(ops), tensors=tensors)


__all__ = ["EMITTERS", "code"]
