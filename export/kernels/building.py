"""Small tools for writing kernels as TensorIR: the frame of a function, offsets, rescaling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from compress.export.kernels.code import Kernel, Placed
from compress.integer.program import Requantize


@dataclass(eq=False)
class Body:
    """A function that is being written.

    Attributes:
        buffers: one for each pointer, flat.
        first, last: the rows to do, if the kernel has rows.
        kernel: what came out, once the function has been left.
    """

    buffers: list[Any] = field(default_factory=list)
    first: Any = None
    last: Any = None
    kernel: Kernel | None = None

    @property
    def done(self) -> Kernel:
        """The kernel.

        Raises:
            ValueError: the function is still being written.
        """
        if self.kernel is None:
            raise ValueError("the function isn't finished; ask behind its with block")
        return self.kernel


@contextmanager
def function(symbol: str, pointers: Sequence[tuple[str, str, int]], rows: int | None = None) -> Iterator[Body]:
    """A function of C's calling convention; write its statements in the ``with`` block.

    Args:
        symbol: its name.
        pointers: (name, dtype, elements) of each parameter. No two overlap where one is written, except that an
            operator in place may write an element once it has read it.
        rows: see :attr:`Kernel.rows`.
    """
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script import builder as T

    body = Body()
    with IRBuilder() as ib:
        with T.prim_func(s_tir=True):
            T.func_name(symbol)
            T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
            data = [T.arg(name, T.ptr(dtype)) for name, dtype, _ in pointers]
            if rows is not None:
                body.first, body.last = T.arg("first", T.var("int32")), T.arg("last", T.var("int32"))
            for (_, dtype, elements), address in zip(pointers, data, strict=True):
                body.buffers.append(T.decl_buffer((max(elements, 1),), dtype, data=address))
            yield body
        body.kernel = Kernel(symbol, ib.get(), rows)


def pointer(name: str, place: Placed) -> tuple[str, str, int]:
    """The parameter for a tensor."""
    return name, place.tensor.dtype, place.elements


def dot(strides: Sequence[int], index: Sequence[Any], origin: int = 0) -> Any:
    """``origin + sum strides[i] * index[i]``."""
    total: Any = origin
    for stride, i in zip(strides, index, strict=True):
        if stride:
            total = total + i * stride if stride != 1 else total + i
    return total


def at(place: Placed, *index: Any) -> Any:
    """The offset of an element in its buffer."""
    return dot(place.strides, index, place.origin)


@contextmanager
def loops(extents: Sequence[int]) -> Iterator[list[Any]]:
    """Nested loops from 0; the indices."""
    from contextlib import ExitStack

    from tvm.tirx.script import builder as T

    with ExitStack() as stack:
        yield [stack.enter_context(T.serial(extent)) if extent != 1 else 0 for extent in extents]


def store(buffer: Any, value: Any, offset: Any) -> None:
    """``buffer[offset] = value``."""
    from tvm.tirx.script import builder as T

    T.buffer_store(buffer, value, [offset])


def clamp(value: Any, low: Any, high: Any) -> Any:
    """``min(max(value, low), high)``; numbers are of ``value``'s type."""
    from tvm.tirx.script import builder as T

    return T.min(T.max(value, low), high)


def rescale(acc: Any, multiplier: Any, shift: Any) -> Any:
    """:func:`compress.integer.fixed_point.rescale` of an int32: int64."""
    from tvm.tirx.script import builder as T

    wide = T.cast(acc, "int64") * T.cast(multiplier, "int64")
    if isinstance(shift, int):
        return (wide + T.int64(1 << (shift - 1))) >> T.int64(shift)
    s = T.cast(shift, "int64")
    return (wide + (T.int64(1) << (s - T.int64(1)))) >> s


def requantized(acc: Any, multiplier: Any, shift: Any, to: Requantize, dtype: str) -> Any:
    """An int32 accumulator on the output's grid, clamped, of the output's type.

    The clamp stands in front of the zero point and in 64 bits: factors of more than 1 may leave 32.
    """
    from tvm.tirx.script import builder as T

    value = rescale(acc, multiplier, shift)
    bounded = T.cast(clamp(value, T.int64(to.low - to.zero_point), T.int64(to.high - to.zero_point)), "int32")
    return T.cast(bounded + to.zero_point, dtype)


__all__ = ["Body", "at", "clamp", "dot", "function", "loops", "pointer", "requantized", "rescale", "store"]
