"""Programs of one operator, or of few, that every back end has to compute as the reference does.

Each case is a program with unsigned or signed tensors and inputs for it; :func:`cases` makes them from a name, so
that a back end's tests can pick. Numbers are random from a seed of the case's own name, and include the extremes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from compress.integer import program as p
from compress.integer.signedness import with_signedness

Case = tuple[p.Program, dict[str, np.ndarray]]
CASES: dict[str, Callable[[np.random.Generator], Case]] = {}
WEIGHTS = {8: (-127, 128), 4: (-8, 8), 3: (-4, 4), 2: (-2, 2)}


def case(name: str, signed: bool | None = None) -> Case:
    """A case by name; with ``signed`` its 8-bit tensors are all int8, or all uint8."""
    program, inputs = CASES[name](np.random.default_rng(zlib.crc32(name.encode())))
    if signed is None:
        return program, inputs
    wanted = with_signedness(program, signed)
    moved = {}
    for name_, value in inputs.items():
        dtype = wanted.tensors[name_].dtype
        same = dtype == value.dtype.name
        moved[name_] = value if same else (value.view(np.uint8) ^ 0x80).view(dtype)
    return wanted, moved


def numbers(g: np.random.Generator, tensor: p.Tensor) -> np.ndarray:
    """Random numbers of a tensor's type, its extremes among them."""
    if tensor.dtype == "float32":
        return g.normal(size=tensor.shape).astype(np.float32)
    low, high = p.LIMITS[tensor.dtype]
    value = g.integers(low, high + 1, tensor.shape).astype(tensor.dtype)
    flat = value.reshape(-1)
    flat[g.integers(0, flat.size, 2)] = low, high
    return value


def requantize(
    g: np.random.Generator, count: int, shift: int | tuple[int, int] = (34, 40), zero: int = 4, ends: tuple = (0, 255)
) -> p.Requantize:
    """Random factors; ``shift`` is one for all, or a range."""
    low, high = shift if isinstance(shift, tuple) else (shift, shift)
    m = g.integers(2**30, 2**31, count).astype(np.int32)
    m[0] = 2**31 - 1
    return p.Requantize(m, g.integers(low, high + 1, count).astype(np.int32), zero, *ends)


def single(
    op: Callable[..., p.Op], inputs: list[p.Tensor], output: p.Tensor, g: np.random.Generator, **fields: object
) -> Case:
    """A program of one operator."""
    made = op("node", tuple(t.name for t in inputs), output.name, **fields)
    tensors = {t.name: t for t in [*inputs, output]}
    program = p.Program(tensors, (made,), tuple(dict.fromkeys(t.name for t in inputs)), (output.name,))
    return program, {t.name: numbers(g, t) for t in inputs}


def weights(g: np.random.Generator, shape: tuple[int, ...], bits: int) -> np.ndarray:
    if bits == 1:
        return (g.integers(0, 2, shape) * 2 - 1).astype(np.int8)
    values = g.integers(*WEIGHTS[bits], shape).astype(np.int8)
    values.reshape(-1)[0] = WEIGHTS[bits][0]
    return values


def add(name: str, make: Callable[[np.random.Generator], Case]) -> None:
    """One more case."""
    assert name not in CASES
    CASES[name] = make
