"""The back end of NVIDIA GPUs: kernels of TensorIR in which each thread does one small piece of work.

Tensors lie densely, channels last, and neighbouring threads do neighbouring channels, so that what a warp reads and
writes lies together. ``cuda_convolution.py`` has convolutions, in integers (dp4a where channels come in fours) and in
float32; ``cuda_elements.py`` what is one output element a thread. The rest are the portable kernels, of which
:func:`compress.export.kernels.building.each` gives a thread to each index.
"""

from __future__ import annotations

from compress.export.kernels import cuda_convolution, cuda_elements
from compress.export.kernels import emit as emitting
from compress.export.kernels.building import THREADS
from compress.export.kernels.code import Code
from compress.export.kernels.isa import Isa
from compress.integer.program import Program

BLOCK = 128
"""Threads of a block."""
SCALAR = Isa("x86", "nvptx64-nvidia-cuda", "cuda", (), "none", signed=True)
"""What the portable kernels are told: no vectors, and a unit for float32."""


def assemble(program: Program) -> Code:
    """The program, all of its 8-bit tensors signed, as kernels for a GPU.

    Raises:
        BadInput: there is no kernel for an operator.
    """
    token = THREADS.set(BLOCK)
    try:
        return emitting.assemble(program, SCALAR, (cuda_convolution.emit, cuda_elements.emit))
    finally:
        THREADS.reset(token)


__all__ = ["BLOCK", "SCALAR", "assemble"]
