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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.convolutions import UNITS
from compress.export.kernels.isa import Isa
from compress.export.kernels.vectors import (
    Expr,
    cast,
    intrinsic,
    let,
    load,
    numbers,
    part,
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
    def steps(self) -> int:
        """Multiply instructions of one step."""
        return 1

    def arrange(self, weight: NDArray[np.int8]) -> NDArray[np.int8]:
        """(..., lanes, group) weights as a vector (..., lanes * group) in the order in which it lies."""
        return weight.reshape(*weight.shape[:-2], self.vector_bytes)

    def takes(self, op: Convolution) -> bool:
        """Whether sums with the convolution's weights come out exactly."""
        return True

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
    size = vector_bytes * bits // 8
    element = min(size, 4)  # bytes, of the lanes that are shifted
    few, count, dtype = size // element, vector_bytes // element, f"int{8 * element}"
    packed = view(load(w, offset, size), typed(dtype, few))
    wide = splat(packed, count) if few == 1 else shuffle([packed] * (8 // bits), range(count))
    return wide << numbers([bits * (i // few) for i in range(count)], dtype), element


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
class Vnni(Interleaved):
    """``vpdpbusd``: unsigned activations, 4 products a lane."""

    def activations(self, x: Any, offset: Expr) -> list[Expr]:
        """The 4 bytes in every lane."""
        word = view(load(x, offset, 4), "int32")
        return [let(view(splat(word, self.lanes), typed("uint8", self.vector_bytes)))]

    def operand(self, interleaved: Expr) -> Expr:
        """As it is."""
        return let(interleaved)

    def weights(self, w: Any, offset: Expr, bits: int) -> Expr:
        """Signed bytes."""
        return let(unpacked(w, offset, self.vector_bytes, bits))

    def accumulate(self, acc: Expr, activation: Expr, weight: Expr) -> Expr:
        """One instruction."""
        name = f"llvm.x86.avx512.vpdpbusd.{self.lanes * 32}"
        return intrinsic(self.accumulator, name, acc, activation, weight)


@dataclass(frozen=True, slots=True)
class Madd(Interleaved):
    """``vpmaddwd`` on AVX2: of the 4 bytes of a lane the even and the odd ones as 16-bit pairs.

    (``vpmaddubsw`` would take bytes, but saturates.) A vector of weights holds all even pairs, then all odd ones, so
    that sign extension gives the operands.
    """

    @property
    def operands(self) -> int:
        """Even and odd."""
        return 2

    @property
    def steps(self) -> int:
        """Even and odd."""
        return 2

    def arrange(self, weight: NDArray[np.int8]) -> NDArray[np.int8]:
        """Weights 0 and 2 of all lanes, then 1 and 3."""
        pairs = np.stack([weight[..., 0::2], weight[..., 1::2]], axis=-3)
        return np.ascontiguousarray(pairs).reshape(*weight.shape[:-2], self.vector_bytes)

    def activations(self, x: Any, offset: Expr) -> list[Expr]:
        """The 4 bytes in every lane."""
        word = view(load(x, offset, 4), "int32")
        return [self.operand(view(splat(word, self.lanes), typed("uint8", self.vector_bytes)))]

    def operand(self, interleaved: Expr) -> Expr:
        """Even and odd bytes as 16-bit numbers."""
        pairs = let(view(interleaved, typed("uint16", self.lanes * 2)))
        kind = typed("int16", self.lanes * 2)
        eight, low = splat(_uint16(8), self.lanes * 2), splat(_uint16(255), self.lanes * 2)
        return let(view(pairs & low, kind)), let(view(pairs >> eight, kind))

    def weights(self, w: Any, offset: Expr, bits: int) -> Expr:
        """Even and odd weights as 16-bit numbers."""
        half = self.vector_bytes // 2
        if bits == 8:
            return tuple(let(cast(load(w, offset + i * half, half), "int16")) for i in (0, 1))
        whole = let(unpacked(w, offset, self.vector_bytes, bits))
        return tuple(let(cast(part(whole, i * half, half), "int16")) for i in (0, 1))

    def accumulate(self, acc: Expr, activation: Expr, weight: Expr) -> Expr:
        """Two multiplications, two additions."""
        name = "llvm.x86.avx2.pmadd.wd" if self.lanes == 8 else "llvm.x86.sse2.pmadd.wd"
        products = [intrinsic(self.accumulator, name, x, w) for x, w in zip(activation, weight, strict=True)]
        return acc + products[0] + products[1]


@dataclass(frozen=True, slots=True)
class Differences(Dot):
    """Weights of one bit, without products: activations are added and subtracted as absolute differences of bytes.

    With activations u in [0, 255], a weight of 1 stands as the byte 0, one of -1 as 255: ``|u - 0| = u`` and
    ``|u - 255| = 255 - u``, which is ``w u`` plus 255 for each -1. Signed activations are ``u - 128``.
    """

    def takes(self, op: Convolution) -> bool:
        """Weights of one bit, whole groups of channels: what fills a group up would count."""
        return op.weight_bits == 1 and op.weight.shape[3] % self.group == 0

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


@dataclass(frozen=True, slots=True)
class SadDifferences(Differences):
    """``vpsadbw`` on AVX2: 32 additions or subtractions in two instructions.

    Sums of eight bytes come in 64-bit lanes, whose upper words stay zero but for the bias's sign.
    """

    group = 8

    @property
    def steps(self) -> int:
        """``vpsadbw``, ``vpaddq``."""
        return 2

    @property
    def element(self) -> str:
        """Of 64 bits."""
        return "int64"

    def start(self, value: Expr) -> Expr:
        """In 64 bits."""
        return cast(value, "int64")

    def total(self, acc: Expr) -> Expr:
        """The lower words."""
        return cast(acc, "int32")

    def activations(self, x: Any, offset: Expr) -> list[Expr]:
        """The 8 bytes in every lane."""
        word = view(load(x, offset, 8), "int64")
        return [let(view(splat(word, self.lanes), typed("uint8", self.vector_bytes)))]

    def accumulate(self, acc: Expr, activation: Expr, weight: Expr) -> Expr:
        """Two instructions."""
        return acc + intrinsic(self.accumulator, "llvm.x86.avx2.psad.bw", activation, weight)


@dataclass(frozen=True, slots=True)
class PairwiseDifferences(Differences):
    """Plain NEON: ``uabd``, ``uaddlp``, ``uadalp`` add or subtract 16 in three instructions, none a multiplication."""

    @property
    def steps(self) -> int:
        """``uabd``, ``uaddlp``, ``uadalp``."""
        return 3

    def activations(self, x: Any, offset: Expr) -> list[Expr]:
        """The 4 bytes in every lane, 128 added to each."""
        word = splat(view(load(x, offset, 4), "int32"), 4)
        return [let(view(word ^ numbers([repeated(0x80, 4)] * 4, "int32"), "uint8x16"))]

    def accumulate(self, acc: Expr, activation: Expr, weight: Expr) -> Expr:
        """Three instructions."""
        apart = intrinsic("uint8x16", "llvm.aarch64.neon.uabd.v16i8", activation, weight)
        pairs = intrinsic("int16x8", "llvm.aarch64.neon.uaddlp.v8i16.v16i8", apart)
        return acc + intrinsic("int32x4", "llvm.aarch64.neon.uaddlp.v4i32.v8i16", pairs)


@dataclass(frozen=True, slots=True)
class Sdot(Interleaved):
    """Arm's ``sdot``: signed activations, 16 channels in a register, 4 of them chosen by lane."""

    def activations(self, x: Any, offset: Expr) -> list[Expr]:
        """16 channels, of which each operand is a word, repeated."""
        words = let(view(load(x, offset, 16), "int32x4"))
        return [view(shuffle([words], [i] * 4), "int8x16") for i in range(4)]

    def operand(self, interleaved: Expr) -> Expr:
        """As it is."""
        return let(interleaved)

    def weights(self, w: Any, offset: Expr, bits: int) -> Expr:
        """Signed bytes."""
        return let(unpacked(w, offset, 16, bits))

    def accumulate(self, acc: Expr, activation: Expr, weight: Expr) -> Expr:
        """One instruction."""
        return intrinsic("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", acc, weight, activation)


@dataclass(frozen=True, slots=True)
class Pairwise(Dot):
    """Plain NEON: ``smull`` and ``smlal`` add two products in 16 bits, ``sadalp`` adds pairs of those to the sums.

    16 products in three instructions, two of them multiplications. Exact while no weight is -128:
    ``|x w| <= 128 * 127``, and twice that stays below 2^15. A vector of weights holds channels 0 and 1 of all
    lanes, then 2 and 3.
    """

    @property
    def operands(self) -> int:
        """Both pairs of channels."""
        return 2

    @property
    def steps(self) -> int:
        """``smull``, ``smlal``, ``sadalp``."""
        return 3

    def takes(self, op: Convolution) -> bool:
        """No weight is -128."""
        return bool((op.weight > -128).all())

    def unit(self, bits: int) -> int:
        """0: weights are shifted back, so that none is -128."""
        return 0

    def arrange(self, weight: NDArray[np.int8]) -> NDArray[np.int8]:
        """Weights 0 and 1 of all lanes, then 2 and 3."""
        pairs = np.stack([weight[..., :2], weight[..., 2:]], axis=-3)
        return np.ascontiguousarray(pairs).reshape(*weight.shape[:-2], self.vector_bytes)

    def activations(self, x: Any, offset: Expr) -> list[Expr]:
        """4 channels as two pairs, each repeated."""
        pairs = [let(view(load(x, offset + 2 * i, 2), "int16")) for i in (0, 1)]
        return [tuple(let(view(splat(pair, 4), "int8x8")) for pair in pairs)]

    def weights(self, w: Any, offset: Expr, bits: int) -> Expr:
        """Both pairs of channels."""
        if bits == 8:
            return tuple(let(load(w, offset + i * 8, 8)) for i in (0, 1))
        whole = let(unpacked(w, offset, 16, bits) >> numbers([UNITS[bits]] * 16, "int8"))
        return tuple(part(whole, i * 8, 8) for i in (0, 1))

    def accumulate(self, acc: Expr, activation: Expr, weight: Expr) -> Expr:
        """Three instructions."""
        products = [
            intrinsic("int16x8", "llvm.aarch64.neon.smull.v8i16", w, x) for x, w in zip(activation, weight, strict=True)
        ]
        pairs = products[0] + products[1]
        return acc + intrinsic("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", pairs)


@dataclass(frozen=True, slots=True)
class ByLane(Dot):
    """Plain NEON with any weights: ``smlal`` and ``smlal2`` by lane, 8 products in two instructions."""

    group = 1

    @property
    def steps(self) -> int:
        """``smlal`` and ``smlal2``."""
        return 2

    def activations(self, x: Any, offset: Expr) -> list[Expr]:
        """8 channels in 16 bits, each repeated."""
        wide = let(cast(load(x, offset, 8), "int16"))
        return [shuffle([wide], [i] * 8) for i in range(8)]

    def weights(self, w: Any, offset: Expr, bits: int) -> Expr:
        """8 output channels in 16 bits."""
        return let(cast(unpacked(w, offset, 8, bits), "int16"))

    def accumulate(self, acc: Expr, activation: Expr, weight: Expr) -> Expr:
        """Two instructions; halves of a product of 8 lanes."""
        return acc + cast(activation, "int32") * cast(weight, "int32")


def _uint16(value: int) -> Expr:
    from tvm import tirx

    return tirx.const(value, "uint16")


def strategies(isa: Isa) -> tuple[Dot, ...]:
    """The strategies of an instruction set for weights of any width, best first; the last one takes any weights."""
    registers = 32 if isa.dot in ("vnni512", "sdot", "neon") else 16
    if isa.dot == "vnni512":
        return (Vnni(16, 1, registers, False, False),)
    if isa.dot == "vnni256":
        return (Vnni(8, 1, registers, False, False),)
    if isa.dot == "avx2":
        return (Madd(8, 1, registers, False, False),)
    if isa.dot == "sdot":
        return (Sdot(4, 4, registers, True, True),)
    if isa.dot == "neon":
        return (Pairwise(4, 1, registers, True, True), ByLane(8, 8, registers, True, True))
    return ()


ADDITIONS: Mapping[str, Dot] = {
    "avx2": SadDifferences(4, 1, 16, False, False),
    "neon": PairwiseDifferences(4, 1, 32, True, False),
}
"""By instruction set, what takes weights of one bit where an instruction doesn't multiply and add at once."""


def strategy(isa: Isa, op: Convolution) -> Dot | None:
    """The best strategy for a convolution."""
    narrow = (ADDITIONS[isa.dot],) if isa.dot in ADDITIONS else ()
    return next((dot for dot in (*narrow, *strategies(isa)) if dot.takes(op)), None)


__all__ = [
    "ADDITIONS",
    "ByLane",
    "Differences",
    "Dot",
    "Interleaved",
    "Madd",
    "Pairwise",
    "PairwiseDifferences",
    "SadDifferences",
    "Sdot",
    "Vnni",
    "pack",
    "strategies",
    "strategy",
]
