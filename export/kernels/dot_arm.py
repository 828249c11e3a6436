"""The strategies of 64-bit Arm: ``sdot``, and what plain NEON has in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.convolutions import UNITS
from compress.export.kernels.dot import Differences, Dot, Interleaved, unpacked
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
    view,
)
from compress.integer.program import Convolution


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

    def fitted(self, op: Convolution) -> Dot | None:
        """For weights without -128."""
        return self if (op.weight > -128).all() else None

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


__all__ = ["ByLane", "Pairwise", "PairwiseDifferences", "Sdot"]
