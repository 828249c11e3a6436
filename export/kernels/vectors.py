"""Vectors in TensorIR: loads, stores, shuffles and the arithmetic that instruction selection recognizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Expr = Any
"""A ``tvm.tirx.PrimExpr``, or an int where one will do."""


def let(value: Expr) -> Expr:
    """``value`` under a name, so that it is computed once."""
    from tvm.tirx.script import builder as T

    return T.bind(value)


def load(buffer: Any, offset: Expr, lanes: int) -> Expr:
    """``buffer[offset : offset + lanes]``."""
    from tvm.tirx.script import builder as T

    return buffer[offset] if lanes == 1 else buffer[T.ramp(offset, 1, lanes)]


def put(buffer: Any, value: Expr, offset: Expr, lanes: int) -> None:
    """``buffer[offset : offset + lanes] = value``."""
    from tvm.tirx.script import builder as T

    T.buffer_store(buffer, value, [offset if lanes == 1 else T.ramp(offset, 1, lanes)])


def variable(dtype: str, lanes: int) -> Any:
    """A register that is written more than once: a buffer of one vector; read and write its element 0."""
    from tvm.tirx.script import builder as T

    return T.alloc_buffer((1,), typed(dtype, lanes), scope="local")


def assign(register: Any, value: Expr) -> None:
    """Writes a :func:`variable`."""
    from tvm.tirx.script import builder as T

    T.buffer_store(register, value, [0])


def typed(dtype: str, lanes: int) -> str:
    """``int32x16``; ``int32`` for one lane."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def view(value: Expr, dtype: str) -> Expr:
    """The same bits as another type."""
    from tvm.tirx.script import builder as T

    return T.reinterpret(dtype, value)


def cast(value: Expr, dtype: str) -> Expr:
    """Lane by lane to another type; ``dtype`` is that of a lane."""
    from tvm.tirx.script import builder as T

    _, _, lanes = str(value.ty).partition("x")
    return T.cast(value, typed(dtype, int(lanes or 1)))


def shuffle(values: Sequence[Expr], indices: Sequence[int]) -> Expr:
    """The vectors one behind another, and of their lanes those at ``indices``."""
    from tvm import tirx

    return tirx.Shuffle(list(values), list(indices))


def part(value: Expr, first: int, lanes: int) -> Expr:
    """Some lanes that follow each other; a scalar for one."""
    return shuffle([value], range(first, first + lanes))


def numbers(values: Sequence[int], dtype: str) -> Expr:
    """A constant vector."""
    from tvm import tirx

    if len(set(values)) == 1:
        one = tirx.const(values[0], dtype)
        return splat(one, len(values))
    return tirx.Shuffle([tirx.const(value, dtype) for value in values], list(range(len(values))))


def repeated(byte: int, count: int) -> int:
    """A signed integer of ``count`` bytes that are all ``byte``."""
    return int.from_bytes(bytes([byte]) * count, "little", signed=True)


def splat(value: Expr, lanes: int) -> Expr:
    """One number in every lane."""
    from tvm.tirx.script import builder as T

    return value if lanes == 1 else T.broadcast(value, lanes)


def intrinsic(dtype: str, name: str, *arguments: Expr) -> Expr:
    """An LLVM intrinsic without side effects."""
    from tvm.tirx.script import builder as T

    return T.call_llvm_pure_intrin(dtype, name, *arguments)


def clamp(value: Expr, low: Expr, high: Expr) -> Expr:
    """``min(max(value, low), high)``, lane by lane; all of one type."""
    from tvm.tirx.script import builder as T

    return T.min(T.max(value, low), high)


__all__ = [
    "Expr",
    "assign",
    "cast",
    "clamp",
    "intrinsic",
    "let",
    "load",
    "numbers",
    "part",
    "put",
    "repeated",
    "shuffle",
    "splat",
    "typed",
    "variable",
    "view",
]
