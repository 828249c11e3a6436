"""Small tools for writing kernels as TensorIR: the frame of a function, offsets, rescaling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.code import Kernel, Placed
from compress.export.kernels.isa import Isa
from compress.export.kernels.vectors import clamp, splat, typed
from compress.integer.program import Requantize

THREADS: ContextVar[int] = ContextVar("threads", default=0)
"""Threads of a block where kernels are written for a GPU, one row of work a thread; 0 on processors."""
BATCH: ContextVar[int] = ContextVar("batch", default=1)
"""Inputs at a time where kernels are written for a GPU: each has blocks of its own, along the grid's second axis."""


class Activation(NamedTuple):
    """The parameter for a tensor, of which a batch has one an input; all other parameters are constants."""

    name: str
    dtype: str
    elements: int


@dataclass(eq=False)
class Body:
    """A function that is being written.

    Attributes:
        buffers: one for each pointer, flat.
        first, last: the rows to do, if the kernel has rows.
        kernel: what came out, once the function has been left.
        batched: the buffers that hold a tensor of each input, and the elements of one; with ``image``, which input.
    """

    buffers: list[Any] = field(default_factory=list)
    batched: list[tuple[Any, int]] = field(default_factory=list)
    image: Any = None
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
    threads = THREADS.get()
    with IRBuilder() as ib:
        if threads:
            with _threaded(symbol, pointers, rows, body, threads):
                yield body
            body.kernel = Kernel(symbol, _of_its_image(from_zero(ib.get()), body), rows)
            return
        with T.prim_func(s_tir=True):
            T.func_name(symbol)
            T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
            data = [T.arg(name, T.ptr(dtype)) for name, dtype, _ in pointers]
            if rows is not None:
                body.first, body.last = T.arg("first", T.int32()), T.arg("last", T.int32())
            for (_, dtype, elements), address in zip(pointers, data, strict=True):
                body.buffers.append(T.decl_buffer((max(elements, 1),), dtype, data=address))
            yield body
        body.kernel = Kernel(symbol, ib.get(), rows)


@contextmanager
def _threaded(
    symbol: str, pointers: Sequence[tuple[str, str, int]], rows: int | None, body: Body, threads: int
) -> Iterator[None]:
    """The function for a GPU: flat tensors, and a thread for each row of work."""
    from tvm.tirx.script import builder as T

    count, batch = 1 if rows is None else rows, BATCH.get()
    size = min(threads, count)
    with T.prim_func(s_tir=True), ExitStack() as stack:
        T.func_name(symbol)
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        for each in pointers:
            name, dtype, elements = each
            of_all = elements * batch if isinstance(each, Activation) else elements
            body.buffers.append(T.match_buffer(T.arg(name, T.handle()), (max(of_all, 1),), dtype))
            if batch > 1 and isinstance(each, Activation):
                body.batched.append((body.buffers[-1], elements))
        if batch > 1:
            body.image = stack.enter_context(T.launch_thread("blockIdx.y", batch))
        with T.launch_thread("blockIdx.x", -(-count // size)) as block, T.launch_thread("threadIdx.x", size) as thread:
            if rows is None:
                yield
                return
            index = block * size + thread
            body.first, body.last = index, index + 1
            if count % size == 0:
                yield
                return
            with T.If(index < count), T.Then():
                yield


def _of_its_image(function: Any, body: Body) -> Any:
    """The function with every access to a batched tensor moved to its own image's."""
    from tvm import ir, tirx
    from tvm_ffi import structural_map

    if not body.batched:
        return function

    def moved(accessed: Any, indices: Any) -> list[Any] | None:
        for buffer, elements in body.batched:
            if accessed.same_as(buffer):
                (index,) = indices
                start = body.image * elements
                if isinstance(index, tirx.Ramp):
                    return [tirx.Ramp(index.base + start, index.stride, index.lanes)]
                return [index + start]
        return None

    def loaded(load: Any) -> Any:
        found = moved(load.source, load.indices)
        return load if found is None else tirx.BufferLoad(load.source, found)

    def stored(store: Any) -> Any:
        found = moved(store.buffer, store.indices)
        return store if found is None else tirx.BufferStore(store.buffer, store.value, found)

    return function.with_body(structural_map(function.body, [(ir.TensorLoad, loaded), (tirx.BufferStore, stored)]))


def from_zero(function: Any) -> Any:
    """The function with every loop counted from 0.

    TVM's own pass for that, ``CanonicalizeLoop``, which comes first of all for a GPU, shifts a loop's variable where it
    is used but not in the bounds of loops inside: windows then begin where the first thread's do. It leaves alone what
    begins at 0.
    """
    from tvm import tirx
    from tvm_ffi import structural_map

    def counted(loop: Any) -> Any:
        if isinstance(loop.min, tirx.IntImm) and loop.min.value == 0:
            return loop
        index = tirx.Var(loop.loop_var.name, loop.loop_var.ty)

        def shifted(variable: Any) -> Any:
            return index + loop.min if variable.same_as(loop.loop_var) else variable

        body = structural_map(loop.body, [(tirx.Var, shifted)])
        return tirx.For(index, tirx.const(0, "int32"), loop.extent, loop.kind, body)

    return function.with_body(structural_map(function.body, [(tirx.For, counted)]))


@contextmanager
def each(
    symbol: str, pointers: Sequence[tuple[str, str, int]], extents: Sequence[int], *, shared: bool = False
) -> Iterator[tuple[Body, list[Any]]]:
    """A function that does the same for each index of a grid, in any order; write what one index asks for.

    On processors these are loops, on a GPU there is a thread for each index; neighbours differ in the last one.

    Args:
        symbol, pointers: as in :func:`function`.
        extents: of the grid.
        shared: the first axis is the kernel's rows, so that threads of a processor can share them.

    Yields:
        The function, and the index.
    """
    from tvm.tirx.script import builder as T

    if THREADS.get():
        with function(symbol, pointers, prod(extents)) as body:
            yield body, unravelled(body.first, extents)
    elif shared:
        with (
            function(symbol, pointers, extents[0]) as body,
            T.serial(body.first, body.last) as row,
            loops(extents[1:]) as index,
        ):
            yield body, [row, *index]
    else:
        with function(symbol, pointers) as body, loops(extents) as index:
            yield body, index


def unravelled(position: Any, shape: Sequence[int]) -> list[Any]:
    """The index of a position in a dense tensor."""
    found: list[Any] = []
    for size in reversed(shape):
        found.insert(0, position % size if size > 1 else 0)
        position = position // size if size > 1 else position
    return found


def pointer(name: str, place: Placed) -> tuple[str, str, int]:
    """The parameter for a tensor, an :class:`Activation`."""
    return Activation(name, place.tensor.dtype, place.elements)


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
    from tvm.tirx.script import builder as T

    with ExitStack() as stack:
        yield [stack.enter_context(T.serial(extent)) if extent != 1 else 0 for extent in extents]


def store(buffer: Any, value: Any, offset: Any) -> None:
    """``buffer[offset] = value``."""
    from tvm.tirx.script import builder as T

    T.buffer_store(buffer, value, [offset])


def lanes(isa: Isa) -> int:
    """32-bit numbers in a vector register; 1 where there are none, and for plain C."""
    return {"vnni512": 16, "vnni256": 8, "avx2": 8, "sdot": 4, "neon": 4}.get(isa.dot, 1)


def fused(isa: Isa) -> bool:
    """Whether float32 has a fused multiply-add of one instruction; plain C has none."""
    return has_float(isa) and isa.dot != "none" if isa.family == "x86" else has_float(isa)


def has_float(isa: Isa) -> bool:
    """Whether there is a unit for float32, which takes square roots too; plain C counts as having none."""
    if isa.family == "cortex-m":
        return isa.abi == "hard"
    return isa.family in ("x86", "aarch64") or "+f" in isa.features


def constant(value: float, dtype: str, width: int = 1) -> Any:
    """A number of the type, in every lane."""
    from tvm import tirx

    return splat(tirx.const(float(value) if dtype.startswith("float") else int(value), dtype), width)


def registers(count: int, dtype: str) -> Any:
    """A small array of the function's own, indexed by constants alone, so that it becomes registers."""
    from tvm.tirx.script import builder as T

    return T.alloc_buffer((count,), dtype, scope="local" if THREADS.get() else "global")


HIGH = 33
"""From this shift on, rescaling needs the high word of the product only (:func:`rescaled`)."""


@dataclass(frozen=True, eq=False, slots=True)
class Rescaling:
    """What :func:`rescaled` reads: ``(acc * multiplier + half) >> shift``, or of the high words.

    Where every shift is :data:`HIGH` or more, the sum needs 32 bits only. With ``acc * M = 2^32 h + l`` the rounding
    term ``2^(s-1)`` is a multiple of 2^32, so ``(acc * M + 2^(s-1)) >> s = (h + 2^(s-33)) >> (s-32)`` exactly, and
    ``|h| <= 2^30`` leaves room for the sum. ``half`` and ``shift`` are then those of the right-hand side.

    Attributes:
        multiplier: int32.
        half: int32 with ``high``, else int64.
        shift: int32.
        high: see above.
    """

    multiplier: NDArray[np.int32]
    half: NDArray[Any]
    shift: NDArray[np.int32]
    high: bool

    @classmethod
    def of(cls, how: Requantize, channels: int | None = None, padded: int | None = None) -> Rescaling:
        """The arrays, repeated to ``channels`` and padded with harmless numbers to ``padded``."""
        count = how.multiplier.size if channels is None else channels
        size = count if padded is None else padded
        m, s = np.zeros(size, np.int32), np.full(size, int(how.shift.max()), np.int32)
        m[:count], s[:count] = how.multiplier.ravel(), how.shift.ravel()
        high = int(how.shift.min()) >= HIGH
        if high:
            return cls(m, (np.int32(1) << (s - HIGH)).astype(np.int32), (s - (HIGH - 1)).astype(np.int32), True)
        return cls(m, np.int64(1) << (s.astype(np.int64) - 1), s, False)

    @property
    def tables(self) -> tuple[NDArray[Any], ...]:
        """The arrays as constants of a kernel."""
        return self.multiplier, self.half, self.shift

    @property
    def parameters(self) -> list[tuple[str, str, int]]:
        """The kernel's parameters for them."""
        names = ("multiplier", "half", "shift")
        return [(name, str(table.dtype), table.size) for name, table in zip(names, self.tables, strict=True)]

    def numbers(self, width: int = 1) -> tuple[Any, Any, Any]:
        """The first of each, as numbers in the code."""
        m, half, shift = (constant(int(table[0]), str(table.dtype), width) for table in self.tables)
        return m, half, shift


def rescaled(acc: Any, multiplier: Any, half: Any, shift: Any, high: bool, width: int = 1) -> Any:
    """:func:`compress.integer.fixed_point.rescale` of int32s by :class:`Rescaling`: int32 with ``high``, else int64."""
    from tvm.tirx.script import builder as T

    wide = typed("int64", width)
    product = T.cast(acc, wide) * T.cast(multiplier, wide)
    if high:
        return (T.cast(product >> constant(32, "int64", width), typed("int32", width)) + half) >> shift
    return (product + half) >> T.cast(shift, wide)


def requantized(acc: Any, factors: tuple[Any, Any, Any], to: Requantize, high: bool, dtype: str, width: int = 1) -> Any:
    """Accumulators on the output's grid, clamped, of the output's type.

    The clamp stands in front of the zero point: factors of more than 1 may leave 32 bits.

    Args:
        acc: int32, of ``width`` lanes.
        factors: multiplier, half and shift; see :class:`Rescaling`.
        to: limits and zero point.
        high: the factors are of high words.
        dtype: of the output.
        width: lanes.
    """
    from tvm.tirx.script import builder as T

    m, half, shift = factors
    value = rescaled(acc, m, half, shift, high, width)
    low, top = (constant(limit - to.zero_point, "int32" if high else "int64", width) for limit in (to.low, to.high))
    bounded = clamp(value, low, top)
    if not high:
        bounded = T.cast(bounded, typed("int32", width))
    return T.cast(bounded + constant(to.zero_point, "int32", width), typed(dtype, width))


__all__ = [
    "BATCH",
    "HIGH",
    "Activation",
    "Body",
    "Rescaling",
    "at",
    "constant",
    "dot",
    "each",
    "from_zero",
    "function",
    "fused",
    "has_float",
    "lanes",
    "loops",
    "pointer",
    "registers",
    "requantized",
    "rescaled",
    "store",
    "unravelled",
]
