"""The strategies of x86: ``vpdpbusd`` (AVX-512 VNNI, AVX-VNNI); ``vpmaddubsw``, ``vpmaddwd``, ``vpsadbw`` (AVX2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.dot import Differences, Dot, Interleaved, lowered_fields, unpacked
from compress.export.kernels.vectors import (
    Expr,
    cast,
    intrinsic,
    let,
    load,
    numbers,
    part,
    splat,
    typed,
    view,
)
from compress.integer.program import Convolution

MOST_TOGETHER = 8
"""Products that are added up in 16 bits: more hardly save anything, and their code is long."""


@dataclass(frozen=True, slots=True)
class Vnni(Interleaved):
    """``vpdpbusd``: unsigned activations, 4 products a lane."""

    def activations(self, x: Any, offset: Expr) -> list[Expr]:
        """The 4 bytes in every lane."""
        return [let(_in_every_lane(x, offset, self.lanes))]

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

    For weights whose sums would saturate in :class:`MaddBytes`. A vector of weights holds all even pairs, then all odd
    ones, so that sign extension gives the operands.
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
        return [self.operand(_in_every_lane(x, offset, self.lanes))]

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
class MaddBytes(Dot):
    """``vpmaddubsw`` on AVX2: sums of two products of bytes, in 16 bits; ``vpmaddwd`` with ones adds two of them.

    ``2 * 255 * 64 < 2^15``, so weights of 7 bits or fewer never let a sum saturate. The narrower they are, the more
    such sums are added before they leave 16 bits: 2 with weights of 6 bits, 8 with 4.

    Attributes:
        sums: of products in 16 bits, at most.
    """

    sums: int = 1

    @property
    def steps(self) -> float:
        """``vpmaddubsw``, and ``vpmaddwd`` once for all sums."""
        return 1.0 + 1.0 / self.together

    @property
    def issued(self) -> float:
        """An addition each."""
        return 2.0 * self.steps if self.together > 1 else 3.0

    @property
    def together(self) -> int:
        """Few enough that a step's code stays short."""
        return min(self.sums, MOST_TOGETHER)

    def fitted(self, op: Convolution) -> Dot | None:
        """For weights from -64 to 64 of more than one bit, with as many sums as stay in 16 bits."""
        largest = int(np.abs(op.weight.astype(np.int64)).max(initial=1))
        sums = (2**15 - 1) // (2 * self.largest * largest)
        return replace(self, sums=sums) if sums and op.weight_bits > 1 else None

    def unit(self, bits: int) -> int:
        """0: weights are unpacked as they are."""
        return 0

    def activations(self, x: Any, offset: Expr) -> list[Expr]:
        """The 4 bytes in every lane."""
        return [let(_in_every_lane(x, offset, self.lanes))]

    def weights(self, w: Any, offset: Expr, bits: int) -> Expr:
        """Signed bytes; of packed ones ``vpshufb`` looks up what their bits stand for."""
        if bits == 8:
            return let(load(w, offset, self.vector_bytes))
        values = [i - (i >> (bits - 1) << bits) for i in range(1 << bits)]
        table = numbers([values[i % len(values)] for i in range(self.vector_bytes)], "int8")
        kind = typed("int8", self.vector_bytes)
        fields = view(lowered_fields(w, offset, self.vector_bytes, bits), kind)
        return let(intrinsic(kind, "llvm.x86.avx2.pshuf.b", table, fields))

    def product(self, activation: Expr, weight: Expr) -> Expr:
        """16 sums of two."""
        kind = typed("int16", self.lanes * 2)
        return let(intrinsic(kind, "llvm.x86.avx2.pmadd.ub.sw", activation, weight))

    def gather(self, acc: Expr, products: Expr) -> Expr:
        """Of every lane both sums."""
        ones = numbers([1] * (self.lanes * 2), "int16")
        return acc + intrinsic(self.accumulator, "llvm.x86.avx2.pmadd.wd", products, ones)

    def accumulate(self, acc: Expr, activation: Expr, weight: Expr) -> Expr:
        """Two multiplications, one addition."""
        return self.gather(acc, self.product(activation, weight))


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


def _in_every_lane(x: Any, offset: Expr, lanes: int) -> Expr:
    """4 bytes, once for each lane."""
    return view(splat(view(load(x, offset, 4), "int32"), lanes), typed("uint8", 4 * lanes))


def _uint16(value: int) -> Expr:
    from tvm import tirx

    return tirx.const(value, "uint16")


__all__ = ["Madd", "MaddBytes", "SadDifferences", "Vnni"]
