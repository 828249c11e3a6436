"""A program in the kernels of dot products: additions joined to convolutions, halos, and which emitter does what."""

from __future__ import annotations

from collections.abc import Mapping

from compress.export.kernels import dot_convolution, dot_depthwise, dot_pool
from compress.export.kernels.code import Code, Layout
from compress.export.kernels.emit import assemble as put_together
from compress.export.kernels.emitted import Emitter
from compress.export.kernels.fusion import fuse
from compress.export.kernels.halos import halos
from compress.export.kernels.isa import Isa
from compress.integer.program import Program

EMITTERS: tuple[Emitter, ...] = (dot_depthwise.emit, dot_convolution.emit, dot_pool.emit)


def assemble(program: Program, isa: Isa, prefix: str = "kernel") -> Code:
    """The program as kernels; the signedness of its 8-bit tensors is the instruction set's.

    Raises:
        BadInput: an operator has no kernel.
    """
    margins = halos(program, isa)

    def layouts(joined: Program, _: Isa) -> Mapping[str, Layout]:
        return {name: layout for name, layout in margins.items() if name in joined.tensors}

    return put_together(fuse(program), isa, EMITTERS, layouts, prefix)


__all__ = ["EMITTERS", "assemble"]
