"""Dot products of 8-bit integers: what an instruction set offers, as one strategy that every kernel is written in.

An accumulator is a vector of ``lanes`` int32, one output channel each. One step multiplies ``group`` (4) input
channels of one pixel with the weights of ``lanes`` output channels: ``acc[l] += sum_g x[g] * w[l][g]``. Weights of
fewer than 8 bits stay packed in memory and are unpacked in registers, as often as they are loaded:
a vector of them is loaded as ``bits / 8`` of a vector's bytes, repeated, and each repetition shifted until its bits
lead their bytes. They then stand for ``2^unit`` times the weight, which the accumulators' last shift takes out.
Binary weights become +64 and -64 where a dot product takes fewer instructions than additions; on AVX2 and plain NEON it
doesn't, see :class:`Differences`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.convolutions import UNITS
from compress.export.kernels.vectors import (
    Expr,
    let,
    load,
    numbers,
    repeated,
    shuffle,
    splat,
    typed,
    view,
)
from compress.integer.program import Convolution


@dataclass(frozen=True, slots=True)
class Dot(ABC):
    """A strategy; subclasses emit the arithmetic.

    Attributes:
        lanes: int32 accumulators in a vector.
        chunk: vectors of ``group`` channels that one load of activations gives.
        registers: vector registers.
        signed: activations are int8, else uint8.
        streams_weights: weights are loaded for one use after another while the activations of a block stay in
            registers; else the other way round.
    """

    lanes: int
    chunk: int
    registers: int
    signed: bool
    streams_weights: bool

    group = 4

    @property
    def vector_bytes(self) -> int:
        """Weights in a vector."""
        return self.lanes * self.group

    @property
    def largest(self) -> int:
        """Magnitude of an activation."""
        return 128 if self.signed else 255

    @property
    def element(self) -> str:
        """Type of an accumulator's lanes."""
        return "int32"

    @property
    def accumulator(self) -> str:
        """Type of an accumulator."""
        return typed(self.element, self.lanes)

    @property
    def operands(self) -> int:
        """Registers that a prepared activation or weight takes."""
        return 1

    @property
    def steps(self) -> float:
        """Multiply instructions of one step."""
        return 1

    def arrange(self, weight: NDArray[np.int8]) -> NDArray[np.int8]:
        """(..., lanes, group) weights as a vector (..., lanes * group) in the order in which it lies."""
        return weight.reshape(*weight.shape[:-2], self.vector_bytes)

    @property
    def issued(self) -> float:
        """Instructions of one step, without loads."""
        return 4.0 if self.steps == 2 else self.steps

    @property
    def together(self) -> int:
        """Products that are added up before they come to an accumulator."""
        return 1

    def fitted(self, op: Convolution) -> Dot | None:
        """The strategy as it is for the convolution's weights; None if sums with them might not come out exactly."""
        return self

    def start(self, value: Expr) -> Expr:
        """An accumulator that begins with int32 numbers."""
        return value

    def total(self, acc: Expr) -> Expr:
        """The int32 sums that an accumulator holds, modulo 2^32."""
        return acc

    def constant(self, op: Convolution) -> NDArray[np.int32] | int:
        """What sums hold beside the products, by output channel: taken out of the bias."""
        return 0

    def unit(self, bits: int) -> int:
        """The logarithm of what unpacked weights are multiplied with."""
        return UNITS[bits]

    @abstractmethod
    def activations(self, x: Any, offset: Expr) -> list[Expr]:
        """``chunk`` operands, each of ``group`` consecutive elements of ``x`` for all lanes."""

    @abstractmethod
    def weights(self, w: Any, offset: Expr, bits: int) -> Expr:
        """The operand of a vector of weights at a byte offset."""

    @abstractmethod
    def accumulate(self, acc: Expr, activation: Expr, weight: Expr) -> Expr:
        """The accumulator after one step."""

    def product(self, activation: Expr, weight: Expr) -> Expr:
        """What up to :attr:`together` steps give, added up, for :meth:`gather`; where that is more than one."""
        raise AssertionError(f"{type(self).__name__} adds up no products")

    def gather(self, acc: Expr, products: Expr) -> Expr:
        """The accumulator after the steps that gave sums of :meth:`product`."""
        raise AssertionError(f"{type(self).__name__} adds up no products")


@dataclass(frozen=True, slots=True)
class Interleaved(Dot):
    """A strategy whose lanes may have activations of their own, which depthwise convolutions need."""

    @abstractmethod
    def operand(self, interleaved: Expr) -> Expr:
        """A vector of ``lanes * group`` bytes, each lane with elements of its own, as an activation."""


def unpacked(w: Any, offset: Expr, vector_bytes: int, bits: int) -> Expr:
    """A vector of int8 weights times ``2^UNITS[bits]``."""
    if bits == 8:
        return load(w, offset, vector_bytes)
    shifted, element = shifted_fields(w, offset, vector_bytes, bits)
    count, dtype = vector_bytes // element, f"int{8 * element}"
    kept = shifted & numbers([repeated((0xFF << (8 - bits)) & 0xFF, element)] * count, dtype)
    if bits == 1:
        kept = kept | numbers([repeated(0x40, element)] * count, dtype)
    return view(kept, typed("int8", vector_bytes))


def shifted_fields(w: Any, offset: Expr, vector_bytes: int, bits: int) -> tuple[Expr, int]:
    """A vector with a weight's bits on top of each byte and others below, and the bytes of its lanes."""
    wide, element, few = _every_field(w, offset, vector_bytes, bits, "int")
    count = vector_bytes // element
    return wide << numbers([bits * (i // few) for i in range(count)], f"int{8 * element}"), element


def lowered_fields(w: Any, offset: Expr, vector_bytes: int, bits: int) -> Expr:
    """A vector of bytes with a weight's bits lowest in each, and zeros above."""
    wide, element, few = _every_field(w, offset, vector_bytes, bits, "uint")
    count, dtype = vector_bytes // element, f"uint{8 * element}"
    lowered = wide >> numbers([8 - bits - bits * (i // few) for i in range(count)], dtype)
    mask = int.from_bytes(bytes([(1 << bits) - 1]) * element, "little")
    return view(lowered & numbers([mask] * count, dtype), typed("uint8", vector_bytes))


def _every_field(w: Any, offset: Expr, vector_bytes: int, bits: int, kind: str) -> tuple[Expr, int, int]:
    """Packed weights, once for every field of a byte; the bytes of its lanes, and how many lanes a field has."""
    size = vector_bytes * bits // 8
    element = min(size, 4)  # bytes, of the lanes that are shifted
    few, count, dtype = size // element, vector_bytes // element, f"{kind}{8 * element}"
    packed = view(load(w, offset, size), typed(dtype, few))
    wide = splat(packed, count) if few == 1 else shuffle([packed] * (8 // bits), range(count))
    return wide, element, few


def pack(vectors: NDArray[np.int8], bits: int) -> NDArray[np.int8]:
    """Vectors of weights (..., vector_bytes) as bytes in memory; :func:`unpacked` is the other way.

    Returns:
        int8 (..., vector_bytes * bits / 8).
    """
    if bits == 8:
        return np.ascontiguousarray(vectors)
    repeats = 8 // bits
    size = vectors.shape[-1] // repeats
    whole = vectors.view(np.uint8) if bits > 1 else (vectors < 0).astype(np.uint8)
    fields = whole & np.uint8((1 << bits) - 1)
    parts = fields.reshape(*vectors.shape[:-1], repeats, size)
    places = (8 - bits - bits * np.arange(repeats)).astype(np.uint8)
    packed = np.bitwise_or.reduce(parts << places[:, None], axis=-2)
    return np.ascontiguousarray(packed.astype(np.uint8)).view(np.int8)


@dataclass(frozen=True, slots=True)
class Differences(Dot):
    """Weights of one bit, without products: activations are added and subtracted as absolute differences of bytes.

    With activations u in [0, 255], a weight of 1 stands as the byte 0, one of -1 as 255: ``|u - 0| = u`` and
    ``|u - 255| = 255 - u``, which is ``w u`` plus 255 for each -1. Signed activations are ``u - 128``.
    """

    def fitted(self, op: Convolution) -> Dot | None:
        """For weights of one bit, in whole groups of channels: what fills a group up would count."""
        return self if op.weight_bits == 1 and op.weight.shape[3] % self.group == 0 else None

    def unit(self, bits: int) -> int:
        """0."""
        return 0

    def constant(self, op: Convolution) -> NDArray[np.int32] | int:
        """255 for each weight of -1, and 128 times the weights where activations are signed."""
        weight = op.weight.reshape(len(op.weight), -1).astype(np.int64)
        found = 255 * (weight < 0).sum(axis=1) + (128 * weight.sum(axis=1) if self.signed else 0)
        constant: NDArray[np.int32] = found.astype(np.int32)
        return constant

    def weights(self, w: Any, offset: Expr, bits: int) -> Expr:
        """Bytes of 0 and 255."""
        shifted, _ = shifted_fields(w, offset, self.vector_bytes, bits)
        signed = view(shifted, typed("int8", self.vector_bytes))
        return let(view(signed >> numbers([7] * self.vector_bytes, "int8"), typed("uint8", self.vector_bytes)))


__all__ = ["Differences", "Dot", "Interleaved", "pack", "shifted_fields", "unpacked"]
