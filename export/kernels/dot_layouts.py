"""Where images have halos: wide enough for every convolution that reads them, so that padding costs nothing."""

from __future__ import annotations

from collections.abc import Mapping

from compress.export.kernels.code import Layout
from compress.export.kernels.dot_convolution import halo
from compress.export.kernels.fusion import ConvolutionAdd
from compress.export.kernels.isa import Isa
from compress.integer.program import Convolution, Op, Program


def layouts(program: Program, isa: Isa) -> Mapping[str, Layout]:
    """Halos of the images that 8-bit convolutions read; channels lie densely."""
    found: dict[str, tuple[int, int, int, int]] = {}
    for op in program.ops:
        convolution = _convolution(op)
        name = op.inputs[0] if op.inputs else ""
        if convolution is None or len(program.tensors[name].shape) != 3:
            continue
        needed = halo(convolution, program.tensors[name].shape, program.tensors[op.output].shape)
        there = found.get(name, (0, 0, 0, 0))
        top, left, bottom, right = (max(a, b) for a, b in zip(needed, there, strict=True))
        found[name] = top, left, bottom, right
    return {name: Layout(program.tensors[name].shape[2], margins) for name, margins in found.items() if any(margins)}


def _convolution(op: Op) -> Convolution | None:
    if isinstance(op, ConvolutionAdd):
        return op.convolution
    return op if isinstance(op, Convolution) else None


__all__ = ["layouts"]
