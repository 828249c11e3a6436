"""The back end of 64-bit Arm: ``sdot`` where there is one, else plain NEON."""

from __future__ import annotations

from compress.export.kernels import dot_convolution, dot_depthwise, dot_pool
from compress.export.kernels.code import Code
from compress.export.kernels.dot_layouts import layouts
from compress.export.kernels.emit import assemble as put_together
from compress.export.kernels.emitted import Emitter
from compress.export.kernels.fusion import fuse
from compress.export.kernels.isa import Isa
from compress.integer.program import Program

EMITTERS: tuple[Emitter, ...] = (dot_depthwise.emit, dot_convolution.emit, dot_pool.emit)


def assemble(program: Program, isa: Isa, prefix: str = "kernel") -> Code:
    """The program as kernels; its 8-bit tensors are int8."""
    return put_together(fuse(program), isa, EMITTERS, layouts, prefix)


__all__ = ["EMITTERS", "assemble", "layouts"]
