"""What a back end makes of a program: kernels, the order in which they are called, and the buffers they share.

A back end turns a :class:`compress.integer.program.Program` into a :class:`Code`; the memory plan, the C driver, the
linker and the loader know nothing else. Kernels are TVM PrimFuncs of C's calling convention, so the library needs no
runtime: ``void symbol(POINTER..., [int32_t first, int32_t last])``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.integer.program import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """How an image (H, W, C) lies in its buffer.

    Attributes:
        channels: elements from one pixel to the next, at least C.
        halo: rows above, columns left, rows below, columns right of the image that hold the zero point, so that a
            convolution needs no test for the border.
    """

    channels: int
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor and how it lies. Tensors that aren't images lie densely, and their layout is None."""

    tensor: Tensor
    layout: Layout | None = None

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements from one index of each axis to the next."""
        shape = self.tensor.shape
        if self.layout is not None:
            width = shape[1] + self.layout.halo[1] + self.layout.halo[3]
            return (width * self.layout.channels, self.layout.channels, 1)
        found: list[int] = [1]
        for size in reversed(shape[1:]):
            found.insert(0, found[0] * size)
        return tuple(found) if shape else ()

    @property
    def origin(self) -> int:
        """Elements in front of the first one of the image."""
        if self.layout is None:
            return 0
        top, left = self.layout.halo[:2]
        return top * self.strides[0] + left * self.strides[1]

    @property
    def elements(self) -> int:
        """Elements of the buffer, halo and padding included."""
        if self.layout is None:
            return self.tensor.elements
        top, _, bottom, _ = self.layout.halo
        return (self.tensor.shape[0] + top + bottom) * self.strides[0]

    @property
    def bytes(self) -> int:
        """Bytes of the buffer."""
        return self.elements * np.dtype(self.tensor.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Buffer:
    """A piece of the arena, or of one of the network's ends.

    Attributes:
        name: the tensor's, or of scratch memory.
        bytes: what is written, plus what kernels may read behind it.
        alignment: in bytes.
    """

    name: str
    bytes: int
    alignment: int = 4


@dataclass(frozen=True, slots=True)
class Constant:
    """Read-only numbers by their place in :attr:`Code.constants`."""

    index: int


Argument = str | Constant
"""The name of a buffer, or a constant."""


@dataclass(frozen=True, eq=False, slots=True)
class Kernel:
    """A function of the library.

    Attributes:
        symbol: a C identifier.
        function: the ``tvm.tirx.PrimFunc``; its ``global_symbol`` is ``symbol``. Parameters are pointers, and with
            ``rows`` two int32 more.
        rows: None, or how many rows of work there are: the last two arguments are the first row and the one behind
            the last, and parts may run at the same time.
    """

    symbol: str
    function: Any
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a kernel.

    Attributes:
        kernel: which.
        arguments: for its pointers, in order.
        reads, writes: the buffers among them, for the memory plan; scratch memory is written.
        in_place: (written, read) pairs that may share their memory, if the read one is needed no longer.
        op: name of the program's operator, for profiles.
    """

    kernel: Kernel
    arguments: tuple[Argument, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    in_place: tuple[tuple[str, str], ...] = ()
    op: str = ""


@dataclass(frozen=True)
class Code:
    """Everything that the library is made of.

    Attributes:
        buffers: by name; the network's inputs and outputs too.
        calls: in order.
        constants: arrays of int8, uint8, int16, int32, int64 or float32, as kernels read them; 64-byte aligned.
        aliases: buffer -> (buffer, byte offset) that it lies in.
        inputs, outputs: names of buffers that the caller gives; they lie densely, channels last, and kernels read
            nothing behind the inputs.
        tensors: those of inputs and outputs, for the interface.
    """

    buffers: Mapping[str, Buffer]
    calls: tuple[Call, ...]
    constants: tuple[NDArray[Any], ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    aliases: Mapping[str, tuple[str, int]] = field(default_factory=dict)


__all__ = ["Argument", "Buffer", "Call", "Code", "Constant", "Kernel", "Layout", "Placed"]
