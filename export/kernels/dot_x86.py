"""The strategies of x86: ``vpdpbusd`` (AVX-512 VNNI, AVX-VNNI), ``vpmaddwd`` and ``vpsadbw`` (AVX2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.dot import Differences, Interleaved, unpacked
from compress.export.kernels.vectors import (
    Expr,
    cast,
    intrinsic,
    let,
    load,
    part,
    splat,
    typed,
    view,
)


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


def _uint16(value: int) -> Expr:
    from tvm import tirx

    return tirx.const(value, "uint16")


__all__ = ["Madd", "SadDifferences", "Vnni"]
