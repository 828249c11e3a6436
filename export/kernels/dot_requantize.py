"""What follows the sums: rescaling to the output's grid, a residual addition, clamping, and the stores.

The rounding term of :func:`compress.integer.fixed_point.rescale` and the output's zero point are one 64-bit constant,
``2^(s-1) + z * 2^s``. Where all shifts are 32 or more, the quotient's bits lie in the products' upper words, and the
rest of the shift happens in 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.dot import Dot
from compress.export.kernels.vectors import (
    Expr,
    cast,
    clamp,
    intrinsic,
    let,
    load,
    numbers,
    part,
    put,
    shuffle,
    splat,
    typed,
    view,
)
from compress.integer.program import Add, Requantize

LARGEST_FOLDED_SHIFT = 53
"""``255 * 2^53`` beside a product below 2^62 stays within 64 bits."""


@dataclass(frozen=True, slots=True)
class Residual:
    """An addition behind the requantization: ``add.inputs`` are this result and ``other``, in the order of ``own``.

    Attributes:
        add: the operator.
        own: which of its inputs the requantized sums are, 0 or 1.
        zero_points: of its inputs.
    """

    add: Add
    own: int
    zero_points: tuple[int, int]

    def constants(self, signed: bool) -> NDArray[np.int32]:
        """What the kernel reads: the sums' multiplier, the other's, the constant, the shift. They are no part of the
        code, so that layers of one shape share it."""
        own, other = self.add.multipliers[self.own], self.add.multipliers[1 - self.own]
        constant, _ = self.constant(*((-128, 127) if signed else (0, 255)))
        wrapped = np.int64(constant).astype(np.int32)  # sums are modulo 2^32
        return np.array([own, other, wrapped, self.add.shift], np.int32)

    def constant(self, low: int, high: int) -> tuple[int, bool]:
        """The addition's constant, and whether the zero point is part of it: where sums stay within 32 bits with it.

        Args:
            low, high: the range of 8-bit integers.
        """
        add = self.add
        fixed = (1 << (add.shift - 1)) - sum(z * m for z, m in zip(self.zero_points, add.multipliers, strict=True))
        reach = [sorted((low * m, high * m)) for m in add.multipliers]
        with_zero = fixed + (add.zero_point << add.shift)
        # Partial sums wrap around without harm; only the last one has to be right.
        fits = with_zero + sum(r[0] for r in reach) >= -(2**31) and with_zero + sum(r[1] for r in reach) < 2**31
        return (with_zero, True) if fits else (fixed, False)


@dataclass(frozen=True, slots=True)
class Sum:
    """An accumulator that is complete.

    Attributes:
        value: int32, ``lanes`` of them.
        vector: which vector of constants belongs to it.
        offset: where its first lane's result goes, from the block's base; in elements.
        valid: how many of its lanes are stored.
        other: where its first lane's other addend lies, from its base.
    """

    value: Expr
    vector: Expr
    offset: int
    valid: int
    other: int = 0


@dataclass(frozen=True, slots=True)
class Epilogue:
    """From sums to what is stored.

    Attributes:
        dot: the strategy.
        requantize: to 8 bits; None where the output is ``float32(acc) * scale``.
        bias: int32 (O,), zero points of the input folded in.
        scale: float32 (O,) or None.
        unit: the sums stand for ``2^unit`` times theirs, and don't hold the bias yet; 0: they do.
        residual: None or what is added.
        in_order: four packed vectors lie in each other's lanes already (kernels that interleave bytes).
    """

    dot: Dot
    requantize: Requantize | None
    bias: NDArray[np.int32]
    scale: NDArray[np.float32] | None = None
    unit: int = 0
    residual: Residual | None = None
    in_order: bool = False

    @property
    def upper(self) -> bool:
        """All shifts are 32 or more."""
        return self.requantize is not None and int(np.min(self.requantize.shift)) >= 32

    @property
    def folded(self) -> bool:
        """The zero point is part of the rounding constant."""
        return self.requantize is not None and int(np.max(self.requantize.shift)) <= LARGEST_FOLDED_SHIFT

    def pieces(self) -> list[list[int]]:
        """Lanes of each vector of 64-bit products: even and odd ones on x86, neighbours on Arm."""
        lanes = self.dot.lanes
        if not self.dot.signed:
            return [list(range(0, lanes, 2)), list(range(1, lanes, 2))]
        return [[i, i + 1] for i in range(0, lanes, 2)]

    def constants(self, order: NDArray[np.int64]) -> list[NDArray[Any]]:
        """The arrays that the kernel reads.

        Args:
            order: (vectors, lanes) output channels; -1 where there is none.
        """
        there, channel = order >= 0, np.maximum(order, 0)

        def spread(values: NDArray[Any], missing: int) -> NDArray[Any]:
            found = np.broadcast_to(values, self.bias.shape)[channel]
            return np.ascontiguousarray(np.where(there, found, np.asarray(missing, values.dtype)))

        arrays: list[NDArray[Any]] = [spread(self.bias, 0)]
        if self.requantize is None:
            assert self.scale is not None
            return [*arrays, spread(self.scale, 0)]
        lanes = [lane for piece in self.pieces() for lane in piece]
        shift = spread(self.requantize.shift.astype(np.int64), int(np.max(self.requantize.shift)))
        rounding = np.int64(1) << (shift - 1)
        if self.folded:
            rounding = rounding + (np.int64(self.requantize.zero_point) << shift)
        arrays += [spread(self.requantize.multiplier.astype(np.int32), 0), np.ascontiguousarray(rounding[:, lanes])]
        arrays.append((shift - 32).astype(np.int32) if self.upper else np.ascontiguousarray(shift[:, lanes]))
        return arrays if self.residual is None else [*arrays, self.residual.constants(self.dot.signed)]

    def store(self, sums: Sequence[Sum], buffers: Sequence[Any], out: Any, base: Expr, other: Any, at: Expr) -> None:
        """Writes the results of a block.

        Args:
            sums: in the order of their channels, then pixels.
            buffers: of :meth:`constants`, from the bias on.
            out, base: the output's buffer, and where the block's first result goes.
            other, at: the other addend's buffer and where the block begins in it, if there is a residual.
        """
        if self.requantize is None:
            for one in sums:
                self._store_float(one, buffers, out, base)
            return
        loaded: dict[int, tuple[Expr, ...]] = {}
        values = []
        for one in sums:
            key = id(one.vector)
            if key not in loaded:
                loaded[key] = self._load(buffers, one.vector)
            value = self._rescaled(self._whole(one.value, loaded[key][0]), loaded[key])
            if self.residual is not None:
                value = self._added(value, other, at + one.other, buffers[-1])
            values.append(let(value))
        low, high = (
            (self.requantize.low, self.requantize.high)
            if self.residual is None
            else (self.residual.add.low, self.residual.add.high)
        )
        for start in range(0, len(sums), 4):
            self._store_bytes(values[start : start + 4], sums[start : start + 4], out, base, low, high)

    def _whole(self, acc: Expr, bias: Expr) -> Expr:
        """The sum itself, with its bias."""
        return acc if self.unit == 0 else let((acc >> numbers([self.unit] * self.dot.lanes, "int32")) + bias)

    def _load(self, buffers: Sequence[Any], vector: Expr) -> tuple[Expr, ...]:
        """Bias, multiplier, rounding of each piece, shift or shifts."""
        lanes = self.dot.lanes
        at = vector * lanes
        bias, multiplier, rounding, shift = buffers[:4]
        first = let(load(bias, at, lanes)) if self.unit else None
        pieces, step = len(self.pieces()), len(self.pieces()[0])
        roundings = tuple(let(load(rounding, at + i * step, step)) for i in range(pieces))
        shifts = (
            (let(load(shift, at, lanes)),)
            if self.upper
            else tuple(let(load(shift, at + i * step, step)) for i in range(pieces))
        )
        return first, let(load(multiplier, at, lanes)), roundings, shifts

    def _wide(self, value: Expr) -> list[Expr]:
        """The lanes of each piece, in 64 bits."""
        lanes = self.dot.lanes
        if self.dot.signed:
            return [cast(part(value, i, 2), "int64") for i in range(0, lanes, 2)]
        half = lanes // 2
        wide, word = view(value, typed("int64", half)), numbers([32] * half, "int64")
        return [(wide << word) >> word, wide >> word]

    def _rescaled(self, acc: Expr, constants: tuple[Any, ...]) -> Expr:
        """int32 on the output's grid, not clamped."""
        assert self.requantize is not None
        _, multiplier, roundings, shifts = constants
        lanes, to = self.dot.lanes, self.requantize
        acc = let(acc)
        products = [x * m + r for x, m, r in zip(self._wide(acc), self._wide(multiplier), roundings, strict=True)]
        zero = 0 if self.folded else to.zero_point
        if self.upper:
            value = self._words(products, 1) >> shifts[0]
        else:
            low, high = (splat(_int64(bound - zero), len(self.pieces()[0])) for bound in (to.low, to.high))
            products = [clamp(p >> s, low, high) for p, s in zip(products, shifts, strict=True)]
            value = self._words(products, 0)
        return value + numbers([zero] * lanes, "int32") if zero else value

    def _words(self, products: Sequence[Expr], which: int) -> Expr:
        """The lower (0) or upper (1) words of the pieces, lane by lane."""
        pieces = self.pieces()
        size = 2 * len(pieces[0])
        place = {lane: i * size + 2 * j + which for i, piece in enumerate(pieces) for j, lane in enumerate(piece)}
        words = [view(product, typed("int32", size)) for product in products]
        return shuffle(words, [place[lane] for lane in range(self.dot.lanes)])

    def _added(self, value: Expr, other: Any, at: Expr, numbers_of_addition: Any) -> Expr:
        """The residual addition, not clamped."""
        assert self.residual is not None
        assert self.requantize is not None
        lanes, to, add = self.dot.lanes, self.requantize, self.residual.add
        low, high = (-128, 127) if self.dot.signed else (0, 255)
        own, its, constant, shift = (splat(load(numbers_of_addition, i, 1), lanes) for i in range(4))
        value = clamp(value, numbers([to.low] * lanes, "int32"), numbers([to.high] * lanes, "int32"))
        total = (value * own + (cast(load(other, at, lanes), "int32") * its + constant)) >> shift
        return total if self.residual.constant(low, high)[1] else total + numbers([add.zero_point] * lanes, "int32")

    def _store_bytes(self, values: list[Expr], sums: Sequence[Sum], out: Any, base: Expr, low: int, high: int) -> None:
        """Up to four vectors as bytes, saturated, clamped, in runs that are as long as can be."""
        lanes = self.dot.lanes
        full = values + [values[-1]] * (4 - len(values))
        packed = let(self._clamped(self._packed(full), low, high))
        start = 0
        for offset, count in runs(sums, lanes):
            done = 0
            for size in powers(count):
                lane = start + done
                whole = size == 4 * lanes
                put(out, packed if whole else part(packed, lane, size), base + (offset + done), size)
                done += size
            start += -(-count // lanes) * lanes

    def _packed(self, values: list[Expr]) -> Expr:
        """Four vectors as one of bytes, in their order."""
        lanes = self.dot.lanes
        if self.dot.signed:
            return self._packed_arm(values)
        pack, name = {16: ("llvm.x86.avx512.packssdw.512", "llvm.x86.avx512.packuswb.512")}.get(
            lanes, ("llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb")
        )
        if lanes == 4:
            pack, name = "llvm.x86.sse2.packssdw.128", "llvm.x86.sse2.packuswb.128"
        halves = [intrinsic(typed("int16", 2 * lanes), pack, values[i], values[i + 1]) for i in (0, 2)]
        packed = intrinsic(typed("uint8", 4 * lanes), name, *halves)
        if self.in_order or lanes == 4:
            return packed
        blocks = lanes // 4
        order = [block * 4 + vector for vector in range(4) for block in range(blocks)]
        return view(shuffle([let(view(packed, typed("int32", lanes)))], order), typed("uint8", 4 * lanes))

    def _packed_arm(self, values: list[Expr]) -> Expr:
        """``sqxtn`` twice."""
        fours = [
            part(value, i, 4) if self.dot.lanes > 4 else value for value in values for i in range(0, self.dot.lanes, 4)
        ]
        words = [intrinsic("int16x4", "llvm.aarch64.neon.sqxtn.v4i16", value) for value in fours]
        eights = [shuffle(words[i : i + 2], range(8)) for i in range(0, len(words), 2)]
        narrow = [intrinsic("int8x8", "llvm.aarch64.neon.sqxtn.v8i8", value) for value in eights]
        return shuffle(narrow, range(8 * len(narrow)))

    def _clamped(self, packed: Expr, low: int, high: int) -> Expr:
        """Within [low, high], where the type allows more."""
        from tvm.tirx.script import builder as T

        dtype, lowest, highest = ("int8", -128, 127) if self.dot.signed else ("uint8", 0, 255)
        count = 4 * self.dot.lanes
        if low > lowest:
            packed = T.max(packed, numbers([low] * count, dtype))
        if high < highest:
            packed = T.min(packed, numbers([high] * count, dtype))
        return packed

    def _store_float(self, one: Sum, buffers: Sequence[Any], out: Any, base: Expr) -> None:
        """``float32(acc) * scale``."""
        lanes = self.dot.lanes
        bias, scale = (load(buffer, one.vector * lanes, lanes) for buffer in buffers)
        value = let(cast(self._whole(one.value, bias), "float32") * scale)
        done = 0
        for size in powers(one.valid):
            put(out, part(value, done, size) if size < lanes else value, base + (one.offset + done), size)
            done += size


def runs(sums: Sequence[Sum], lanes: int) -> list[tuple[int, int]]:
    """(offset, elements) of stores that cover the sums' lanes, neighbours joined."""
    found: list[tuple[int, int]] = []
    for one in sums:
        if found and found[-1][1] % lanes == 0 and found[-1][0] + found[-1][1] == one.offset:
            found[-1] = (found[-1][0], found[-1][1] + one.valid)
        else:
            found.append((one.offset, one.valid))
    return found


def powers(count: int) -> Iterable[int]:
    """Powers of two that add up to ``count``, largest first."""
    size = 1 << count.bit_length()
    while count:
        size >>= 1
        if size <= count:
            yield size
            count -= size


def _int64(value: int) -> Expr:
    from tvm import tirx

    return tirx.const(value, "int64")


__all__ = ["Epilogue", "Residual", "Sum", "powers", "runs"]
