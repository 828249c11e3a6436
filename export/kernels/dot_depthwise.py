"""Depthwise convolutions: vectors over channels.

With a dot product of 4 bytes, 4 kernel rows of one column are interleaved byte by byte, so that each lane has the 4
rows of its own channel; a column is interleaved once for all pixels of the block that read it. Interleaving stays
within 16-byte parts, so the four result vectors hold channels ``16 i + 4 q + e`` in part i, lane e of vector q, and
saturating packs, which work by part too, bring them back in order. Without such a product: 16-bit multiplications
of 8 channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.building import Body, function, pointer
from compress.export.kernels.code import Placed
from compress.export.kernels.convolutions import folded_bias, image, stored_bits
from compress.export.kernels.dot import Interleaved, pack
from compress.export.kernels.dot_arm import ByLane
from compress.export.kernels.dot_blocks import columns
from compress.export.kernels.dot_convolution import covered, placed_image, span
from compress.export.kernels.dot_requantize import Epilogue, Sum
from compress.export.kernels.dot_strategies import strategies
from compress.export.kernels.emitted import Emitted
from compress.export.kernels.isa import Isa
from compress.export.kernels.vectors import Expr, assign, cast, let, load, numbers, shuffle, typed, variable, view
from compress.integer.program import Convolution, Op

ROWS = 4
"""Kernel rows in one product."""
Strategy = Interleaved | ByLane
"""What there are kernels for: products of four rows, or of one."""


@dataclass(frozen=True, slots=True)
class Part:
    """Channels that are done with vectors of one width.

    Attributes:
        dot: of this width.
        first, count: the first channel, and how many blocks of ``size`` follow it.
        size: channels of a block.
        before: channels of earlier parts, counted as often as they are done.
    """

    dot: Strategy
    first: int
    count: int
    size: int
    before: int


def parts(channels: int, dot: Strategy) -> list[Part]:
    """Blocks that cover the channels, widest first; the last one goes back over channels that are done already where
    none is narrow enough. Empty if there are fewer channels than the narrowest has."""
    vectors, widths = 1, [dot.lanes]
    if isinstance(dot, Interleaved):
        vectors, widths = ROWS, [w for w in (16, 8, 4) if w <= dot.lanes]
    if channels < widths[-1] * vectors:
        return []
    found: list[Part] = []
    done = before = 0
    for width in widths:
        size = width * vectors
        count = (channels - done) // size
        if count:
            found.append(Part(replace(dot, lanes=width), done, count, size, before))
            done, before = done + count * size, before + count * size
    if done < channels:
        size = widths[-1] * vectors
        found.append(Part(replace(dot, lanes=widths[-1]), channels - size, 1, size, before))
    return found


def emit(op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
    """A depthwise convolution with one output channel for each input channel."""
    if not isinstance(op, Convolution) or not op.depthwise or op.weight.shape[0] != op.groups:
        return None
    source, target = placed[op.inputs[0]], placed[op.output]
    if source.tensor.dtype != ("int8" if isa.signed else "uint8") or not covered(op, source, target):
        return None
    dot = next((d for d in strategies(isa) if isinstance(d, Strategy)), None)
    if dot is None or not parts(op.groups, dot) or op.requantize is None:
        return None
    return _Kernel(op, dot, source, target).emitted(symbol)


class _Kernel:
    def __init__(self, op: Convolution, dot: Strategy, source: Placed, target: Placed) -> None:
        self.op, self.dot, self.source, self.target = op, dot, source, target
        self.parts = parts(op.groups, dot)
        self.vectors = self.parts[0].size // self.parts[0].dot.lanes
        self.kernel = op.weight.shape[1:3]
        self.groups = -(-self.kernel[0] // ROWS) if self.vectors > 1 else self.kernel[0]
        # Rows of zeros fill up groups of rows.
        missing = self.groups * ROWS - self.kernel[0] if self.vectors > 1 else 0
        weight = np.pad(op.weight, ((0, 0), (0, missing), (0, 0), (0, 0)))
        self.bits = stored_bits(op.weight_bits, weight, dot.largest)
        self.bias = folded_bias(op, source.tensor.zero_point)
        # Beside the weights of a group of rows and a column's vectors, as many pixels' sums as stay in registers.
        room = dot.registers - self.vectors * (self.kernel[1] * dot.operands + 2)
        wide = min(max(room // self.vectors, 2), 4)
        self.pixels = min(4 if self.vectors == 1 else wide, image(target.tensor.shape)[1])

    def epilogue(self, part: Part) -> Epilogue:
        unit = part.dot.unit(self.bits)
        return Epilogue(part.dot, self.op.requantize, self.bias, None, unit, None, in_order=True)

    def order(self, part: Part) -> NDArray[np.int64]:
        """(vectors, lanes) channels, one block behind another."""
        lanes = part.dot.lanes
        if self.vectors == 1:
            one = np.arange(lanes)[None]
        else:
            lane, q = np.arange(lanes)[None], np.arange(ROWS)[:, None]
            one = lane // 4 * 16 + q * 4 + lane % 4
        return np.concatenate([part.first + block * part.size + one for block in range(part.count)])

    def packed(self, part: Part) -> NDArray[np.int8]:
        """Bytes: block, row group, kernel column, vector."""
        rows, taps = self.kernel
        weight = self.op.weight[..., 0]  # (C, KH, KW)
        order = self.order(part).reshape(part.count, self.vectors, part.dot.lanes)
        if self.vectors == 1:
            vectors = weight[order].transpose(0, 3, 4, 1, 2)  # block, row, column, vector, lane
        else:
            padded = np.zeros((len(weight), self.groups * ROWS, taps), np.int8)
            padded[:, :rows] = weight
            split = padded[order].reshape(*order.shape, self.groups, ROWS, taps)
            vectors = part.dot.arrange(np.ascontiguousarray(split.transpose(0, 3, 5, 1, 2, 4)))
        return pack(np.ascontiguousarray(vectors), self.bits).reshape(-1)

    def emitted(self, symbol: str) -> Emitted:
        weights = np.concatenate([self.packed(part) for part in self.parts])
        each = [[a.reshape(-1) for a in self.epilogue(part).constants(self.order(part))] for part in self.parts]
        constants = [weights, *(np.concatenate(arrays) for arrays in zip(*each, strict=True))]
        names = ("weights", "bias", "multiplier", "rounding", "shift")
        pointers = [pointer("x", self.source), pointer("y", self.target)]
        pointers += [(name, str(c.dtype), c.size) for name, c in zip(names, constants, strict=True)]
        height = image(self.target.tensor.shape)[0]
        with function(symbol, pointers, height if height > 1 else None) as body:
            rows = (0, height) if body.first is None else (body.first, body.last)
            for part in self.parts:
                with span(0, part.count) as block, span(*rows) as y:
                    self._row(body, part, block, y)
        return Emitted(body.done, tuple(constants))

    def _row(self, body: Body, part: Part, block: Expr, y: Expr) -> None:
        width = image(self.target.tensor.shape)[1]
        full, rest = divmod(width, self.pixels)
        with span(0, full) as x:
            self._block(body, part, block, y, x * self.pixels, self.pixels)
        if rest:
            self._block(body, part, block, y, full * self.pixels, rest)

    def _block(self, body: Body, part: Part, block: Expr, y: Expr, x0: Expr, pixels: int) -> None:
        op, dot = self.op, part.dot
        source, target, weights, *constants = body.buffers
        _, (pitch, pixel, _) = placed_image(self.source)
        _, (out_pitch, out_pixel, _) = placed_image(self.target)
        # Earlier parts are whole vectors of this width too.
        first = block * self.vectors + part.before // dot.lanes
        vectors = [first + q for q in range(self.vectors)]
        channel = block * part.size + part.first
        acc = [[variable("int32", dot.lanes) for _ in range(self.vectors)] for _ in range(pixels)]
        for q in range(self.vectors):
            start = load(constants[0], vectors[q] * dot.lanes, dot.lanes)
            initial = numbers([0] * dot.lanes, "int32") if dot.unit(self.bits) else let(start)
            for p in range(pixels):
                assign(acc[p][q], initial)
        taps = self.kernel[1]
        corner = self.source.origin - op.padding[0] * pitch - op.padding[1] * pixel
        at = y * (op.strides[0] * pitch) + x0 * (op.strides[1] * pixel) + (channel + corner)
        size = dot.vector_bytes if self.vectors > 1 else dot.lanes
        stored = size * self.bits // 8
        base = first * (self.groups * taps * stored)
        for group in range(self.groups):
            held = [
                [
                    dot.weights(weights, base + ((group * taps + k) * self.vectors + q) * stored, self.bits)
                    for q in range(self.vectors)
                ]
                for k in range(taps)
            ]
            for column in columns(pixels, taps, op.strides[1], op.dilations[1]):
                where = at + column * pixel
                xs = self._column(dot, source, where, group, pitch)
                for k in range(taps):
                    p, beside = divmod(column - k * op.dilations[1], op.strides[1])
                    if beside or not 0 <= p < pixels:
                        continue
                    for q in range(self.vectors):
                        assign(acc[p][q], dot.accumulate(acc[p][q][0], xs[q], held[k][q]))
        sums = [
            Sum(acc[p][q][0], vectors[q], p * out_pixel + q * dot.lanes, dot.lanes)
            for p in range(pixels)
            for q in range(self.vectors)
        ]
        out = y * out_pitch + x0 * out_pixel + (channel + self.target.origin)
        self.epilogue(part).store(sums, constants, target, out, None, 0)

    def _column(self, dot: Strategy, source: Any, at: Expr, group: int, pitch: int) -> list[Expr]:
        """The operands of one input column, a vector each."""
        step = self.op.dilations[0] * pitch
        if not isinstance(dot, Interleaved):
            return [let(cast(load(source, at + group * step, dot.lanes), "int16"))]
        rows = range(group * ROWS, min((group + 1) * ROWS, self.kernel[0]))
        loaded = [let(load(source, at + row * step, dot.vector_bytes)) for row in rows]
        loaded += [loaded[-1]] * (ROWS - len(loaded))
        return [dot.operand(value) for value in interleaved(loaded, dot)]


def interleaved(rows: list[Expr], dot: Interleaved) -> list[Expr]:
    """Four vectors of bytes as four of ``rows[0][c], rows[1][c], rows[2][c], rows[3][c]`` for each channel c."""
    count = dot.vector_bytes
    byte = "int8" if dot.signed else "uint8"
    low, high = halves(count, 16), halves(count, 16, upper=True)
    pairs = [
        let(view(shuffle([a, b], order), typed("int16", count // 2)))
        for order in (low, high)
        for a, b in (rows[:2], rows[2:])
    ]
    low, high = halves(count // 2, 8), halves(count // 2, 8, upper=True)
    return [
        view(shuffle(pairs[first : first + 2], order), typed(byte, count)) for first in (0, 2) for order in (low, high)
    ]


def halves(count: int, part: int, upper: bool = False) -> list[int]:
    """Indices that interleave the lower or upper halves of the parts of two vectors of ``count`` elements."""
    order = []
    for start in range(0, count, part):
        first = start + (part // 2 if upper else 0)
        for i in range(first, first + part // 2):
            order += [i, count + i]
    return order


__all__ = ["emit", "interleaved", "parts"]
