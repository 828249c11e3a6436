"""The back end of NVIDIA GPUs: kernels of TensorIR in which each thread does one small piece of work.

Tensors lie densely, channels last, and neighbouring threads do neighbouring channels, so that what a warp reads and
writes lies together. ``cuda_tensor.py`` has convolutions in int8 that fill tensor cores; ``cuda_convolution.py`` the
others, in integers (dp4a where channels come in fours) and in float32; ``cuda_elements.py`` what is one output element
a thread. The rest are the portable kernels, of which :func:`compress.export.kernels.building.each` gives a thread to
each index.
"""

from __future__ import annotations

import re

from compress.export.kernels import cuda_convolution, cuda_elements, cuda_tensor
from compress.export.kernels import emit as emitting
from compress.export.kernels.building import BATCH, THREADS
from compress.export.kernels.code import Code
from compress.export.kernels.isa import Isa
from compress.integer.program import Program

BLOCK = 128
"""Threads of a block."""
SCALAR = Isa("x86", "nvptx64-nvidia-cuda", "cuda", (), "none", signed=True)
"""What the portable kernels are told: no vectors, and a unit for float32."""


def assemble(program: Program, gpu: str, batch: int = 1) -> Code:
    """The program, all of its 8-bit tensors signed, as kernels for a GPU.

    Args:
        program: see above.
        gpu: its architecture, ``sm_87``.
        batch: inputs at a time, one behind another in memory. Sizes of the code's buffers are those of one.

    Raises:
        BadInput: there is no kernel for an operator.
    """
    token, batched = THREADS.set(BLOCK), BATCH.set(batch)
    try:
        tensor = (cuda_tensor.emit,) if has_tensor_cores(gpu) else ()
        return emitting.assemble(program, SCALAR, (*tensor, cuda_convolution.emit, cuda_elements.emit))
    finally:
        THREADS.reset(token)
        BATCH.reset(batched)


def has_tensor_cores(gpu: str) -> bool:
    """Whether :mod:`compress.export.kernels.cuda_tensor` has kernels for it."""
    return capability(gpu) >= cuda_tensor.LEAST


def capability(gpu: str) -> int:
    """Ten times the compute capability: 87 for ``sm_87``, 0 where it isn't told."""
    found = re.fullmatch(r"sm_(\d+)[a-z]?", gpu)
    return int(found[1]) if found else 0


__all__ = ["BLOCK", "SCALAR", "assemble", "capability", "has_tensor_cores"]
