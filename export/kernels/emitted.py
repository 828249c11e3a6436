"""What an emitter of kernels is, and what it hands over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from compress.export.kernels.code import Kernel, Layout, Placed
from compress.export.kernels.isa import Isa
from compress.integer.program import Op, Program


@dataclass(frozen=True, eq=False, slots=True)
class Emitted:
    """The kernel of one operator and what it needs.

    Attributes:
        kernel: parameters are the operator's inputs, its output, ``constants``, scratch memory if there is any, and
            the rows ``first`` and ``last`` if the kernel has rows. Kernels that differ in nothing but their symbol
            become one, so what varies from layer to layer is better a constant than a number in the code.
        constants: in the kernel's order, each padded to what the kernel reads behind it.
        scratch: bytes of memory that hold nothing before and after. Kernels with rows have none.
        in_place: which inputs may share their memory with the output; their layouts must be equal.
        extra_read: bytes that the kernel may read behind the buffer of any of its inputs, and ignores.
        fills_halo: the kernel writes the output's halo itself.
    """

    kernel: Kernel
    constants: tuple[NDArray[Any], ...] = ()
    scratch: int = 0
    in_place: tuple[int, ...] = ()
    extra_read: int = 0
    fills_halo: bool = False


Emitter = Callable[[Op, Mapping[str, Placed], Isa, str], Emitted | None]
"""``(op, placed, isa, symbol)``: the kernel named ``symbol`` for ``op``, or None if this emitter has none for it.

A back end that fuses operators rewrites the program first, with subclasses of :class:`Op` of its own."""

Kernels = Callable[[Any, Mapping[str, Placed], Isa, str], Emitted]
"""As an emitter, for one kind of operator that it always has a kernel for."""

Layouts = Callable[[Program, Isa], Mapping[str, Layout]]
"""How images lie; those that are left out lie densely. What stands in the gap between a pixel's last channel and the
next pixel (:attr:`Layout.channels`) is undefined, except in the halo, which holds the zero point throughout."""

ALIGNMENT: Mapping[str, int] = {"x86": 64, "aarch64": 16, "cortex-m": 8, "riscv": 8}
"""Bytes, of buffers in the arena. The caller's own, the inputs and outputs, are aligned to their elements alone."""


def table(kernels: Mapping[type[Op], Kernels]) -> Emitter:
    """The emitter of the kinds of operators that a table has."""

    def emit(op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
        kernel = kernels.get(type(op))
        return kernel(op, placed, isa, symbol) if kernel is not None else None

    return emit


def flat(place: Placed) -> bool:
    """Whether the tensor's numbers follow each other without a gap, wherever the first one lies."""
    dense = Placed(place.tensor).strides
    return all(
        size == 1 or own == other for size, own, other in zip(place.tensor.shape, place.strides, dense, strict=True)
    )


__all__ = ["ALIGNMENT", "Emitted", "Emitter", "Kernels", "Layouts", "flat", "table"]
