"""Convolutions and linear layers by dot products: one micro-kernel over a block of pixels and channel vectors.

For output row ``y``, pixels ``x0 .. x0+P``, channel vectors ``v``::

    for kernel row, kernel column (or all of them within a step), 4 input channels:
        acc[p][v] += weights[v] . input[y*sh + i*dh][(x0+p)*sw + j*dw][channels]

The input has a halo wide enough that no tap needs a test. An image whose channels aren't a multiple of 4 and lie
densely is read along the row, ``KW * C`` neighbours at once, with zero weights for what is read behind them: a 3x3
kernel on RGB takes 3 steps a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.building import Body, function, pointer
from compress.export.kernels.code import Placed
from compress.export.kernels.convolutions import folded_bias, image, stored_bits
from compress.export.kernels.dot import Dot, pack
from compress.export.kernels.dot_blocks import Block, choose, columns
from compress.export.kernels.dot_requantize import Epilogue, Residual, Sum
from compress.export.kernels.dot_strategies import strategy
from compress.export.kernels.emitted import Emitted
from compress.export.kernels.fusion import ConvolutionAdd
from compress.export.kernels.halos import needed
from compress.export.kernels.isa import Isa
from compress.export.kernels.vectors import Expr, assign, let, load, numbers, variable
from compress.integer.program import Convolution, Op

RESIDENT_BYTES = 16 * 1024
"""Weights up to this size stay in the first-level cache: then rows are the outer loop, else channel blocks."""


def placed_image(place: Placed) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """(H, W, C) and the strides of a tensor, leading axes of 1 put in front of vectors and sequences."""
    rows, columns, channels = (0,) * (3 - len(place.strides)) + place.strides
    return image(place.tensor.shape), (rows, columns, channels)


def covered(op: Convolution, source: Placed, target: Placed) -> bool:
    """Whether the input's halo is wide enough."""
    there = source.layout.halo if source.layout is not None else (0, 0, 0, 0)
    return all(
        a <= b for a, b in zip(needed(op, image(source.tensor.shape), image(target.tensor.shape)), there, strict=True)
    )


@dataclass(frozen=True)
class Geometry:
    """A convolution as the micro-kernel sees it; offsets in elements of the input's buffer.

    Attributes:
        groups, depth: of channels; 4-channel steps (or single channels) of a group.
        taps: kernel columns.
        tap_step, pixel_step, row_step: from one kernel column, output pixel, output row to the next.
        kernel_row_step: from one kernel row to the next.
        stride, dilation: of columns, as far as the block's columns are concerned.
        origin: of the first window.
        weight: int8 (O, KH, taps, channels of a group), padded with zeros to whole steps.
    """

    groups: int
    depth: int
    taps: int
    tap_step: int
    pixel_step: int
    row_step: int
    kernel_row_step: int
    stride: int
    dilation: int
    origin: int
    weight: NDArray[np.int8]


def geometry(op: Convolution, source: Placed, dot: Dot) -> Geometry:
    """How the input is walked."""
    (_, _, channels), (pitch, pixel, _) = placed_image(source)
    weight = op.weight
    outputs, rows, taps, inner = weight.shape
    dilation, step = op.dilations[1], op.dilations[1] * pixel
    if inner % dot.group and op.groups == 1 and pixel == channels and dilation == 1 and taps > 1:
        weight, taps, inner, step = weight.reshape(outputs, rows, 1, taps * inner), 1, taps * inner, 0
    depth = -(-inner // dot.group)
    padded = np.zeros((outputs, rows, taps, depth * dot.group), np.int8)
    padded[..., :inner] = weight
    origin = source.origin - op.padding[0] * pitch - op.padding[1] * pixel
    return Geometry(
        op.groups,
        depth,
        taps,
        step,
        op.strides[1] * pixel,
        op.strides[0] * pitch,
        op.dilations[0] * pitch,
        op.strides[1],
        dilation if taps > 1 else 1,
        origin,
        padded,
    )


def packed_weights(g: Geometry, dot: Dot, block: Block, bits: int) -> NDArray[np.int8]:
    """Bytes: group, channel block, kernel row, kernel column, step, kernel column within it, vector."""
    outputs, rows, taps, _ = g.weight.shape
    each = outputs // g.groups
    count = -(-each // dot.lanes)
    full = np.zeros((g.groups, count * dot.lanes, *g.weight.shape[1:]), np.int8)
    if bits == 1:
        full[:] = 1
    full[:, :each] = g.weight.reshape(g.groups, each, *g.weight.shape[1:])
    split = full.reshape(
        g.groups, count, dot.lanes, rows, taps // block.taps, block.taps, g.depth, dot.group
    )  # group, vector, lane, row, outer tap, inner tap, step, channel
    ordered = split.transpose(0, 3, 4, 6, 5, 1, 2, 7)  # group, row, outer tap, step, inner tap, vector, lane, channel
    vectors = pack(dot.arrange(np.ascontiguousarray(ordered)), bits)
    parts = []
    for group in range(g.groups):
        for start in range(0, count, block.vectors):
            parts.append(vectors[group, ..., start : start + block.vectors, :].reshape(-1))
    return np.concatenate(parts)


def emit(op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
    """A convolution, with the addition behind it if it has been joined; None where the halo is too narrow."""
    residual: Residual | None = None
    convolution = op
    if isinstance(op, ConvolutionAdd):
        convolution, residual = op.convolution, Residual(op.add, op.own, op.zero_points)
    if not isinstance(convolution, Convolution) or convolution.depthwise:
        return None
    source, target = placed[op.inputs[0]], placed[op.output]
    if source.tensor.dtype != ("int8" if isa.signed else "uint8") or not covered(convolution, source, target):
        return None
    dot = strategy(isa, convolution)
    if dot is None:
        return None
    other = placed[op.inputs[1]] if residual is not None else None
    return _Kernel(convolution, dot, source, target, residual, other).emitted(symbol)


class _Kernel:
    def __init__(
        self,
        op: Convolution,
        dot: Dot,
        source: Placed,
        target: Placed,
        residual: Residual | None,
        other: Placed | None,
    ) -> None:
        self.op, self.dot, self.source, self.target, self.other = op, dot, source, target, other
        self.g = geometry(op, source, dot)
        self.bits = stored_bits(op.weight_bits, self.g.weight, dot.largest)
        (self.height, self.width, _), (self.out_pitch, self.out_pixel, _) = placed_image(target)
        self.each = op.weight.shape[0] // op.groups
        self.vectors = -(-self.each // dot.lanes)
        rows = op.weight.shape[1]
        g = self.g
        self.block = choose(dot, self.width, self.vectors, g.taps, g.stride, g.dilation, rows * g.depth)
        unit = dot.unit(self.bits)
        bias = folded_bias(op, source.tensor.zero_point) - dot.constant(op)
        self.epilogue = Epilogue(dot, op.requantize, bias, op.scale, unit, residual)
        self.weights = packed_weights(g, dot, self.block, self.bits)
        self.vector_size = dot.vector_bytes * self.bits // 8
        self.kernel_vectors = rows * g.depth * g.taps
        blocks = -(-self.vectors // self.block.vectors)
        whole = self.each % (self.block.vectors * dot.lanes) == 0 and op.groups == 1
        self.by_blocks = self.height < 4 and whole and blocks > 1
        self.rows = blocks if self.by_blocks else (self.height if self.height > 1 else None)
        self.weights_first = len(self.weights) > RESIDENT_BYTES

    def order(self) -> NDArray[np.int64]:
        """(vectors, lanes) output channels of the constants."""
        lanes = np.arange(self.vectors * self.dot.lanes)
        one = np.where(lanes < self.each, lanes, -1)
        every = [np.where(one >= 0, one + group * self.each, -1) for group in range(self.op.groups)]
        return np.concatenate(every).reshape(-1, self.dot.lanes)

    def emitted(self, symbol: str) -> Emitted:
        constants = [self.weights, *self.epilogue.constants(self.order())]
        pointers = [pointer("x", self.source)]
        if self.other is not None:
            pointers.append(pointer("other", self.other))
        pointers.append(pointer("y", self.target))
        names = ("weights", "bias", "multiplier" if self.op.scale is None else "scale", "rounding", "shift", "addition")
        pointers += [(name, str(c.dtype), c.size) for name, c in zip(names, constants, strict=False)]
        with function(symbol, pointers, self.rows) as body:
            self._nest(body)
        extra = self.dot.chunk * self.dot.group if self.dot.chunk > 1 else self.dot.group - 1
        if self.g.depth * self.dot.group == self.g.weight.shape[3] == self.op.weight.shape[3] and self.dot.chunk == 1:
            extra = 0
        if self.other is not None and self.each % self.dot.lanes:
            extra = max(extra, self.dot.lanes)
        # The last row's results may not be written before another row has read its addend: each row reads its own.
        in_place = (1,) if self.other is not None else ()
        return Emitted(body.done, tuple(constants), in_place=in_place, extra_read=extra)

    def _nest(self, body: Body) -> None:
        height = (0, self.height) if body.first is None or self.by_blocks else (body.first, body.last)
        spans: list[tuple[Expr, Expr, int]] = [(body.first, body.last, self.block.vectors)]
        if not self.by_blocks:
            full, last = divmod(self.vectors, self.block.vectors)
            if self.each % self.dot.lanes and not last:
                full, last = full - 1, self.block.vectors  # the block with lanes that aren't stored has its own code
            spans = [span for span in ((0, full, self.block.vectors), (full, full + 1, last)) if span[1] and span[2]]
        with span(0, self.op.groups) as group:
            if self.weights_first:
                for start, end, count in spans:
                    with span(start, end) as index, span(*height) as y:
                        self._row(body, group, index, count, y)
            else:
                with span(*height) as y:
                    for start, end, count in spans:
                        with span(start, end) as index:
                            self._row(body, group, index, count, y)

    def _row(self, body: Body, group: Expr, index: Expr, count: int, y: Expr) -> None:
        """One output row of one channel block."""
        full, rest = divmod(self.width, self.block.pixels)
        if full:
            with span(0, full) as x:
                self._block(body, group, index, count, y, x * self.block.pixels, self.block.pixels)
        if rest:
            self._block(body, group, index, count, y, full * self.block.pixels, rest)

    def _block(self, body: Body, group: Expr, index: Expr, count: int, y: Expr, x0: Expr, pixels: int) -> None:
        g, dot = self.g, self.dot
        buffers = body.buffers[2:] if self.other is None else body.buffers[3:]
        source, weights, constants = body.buffers[0], buffers[0], buffers[1:]
        target = body.buffers[1] if self.other is None else body.buffers[2]
        first = let_int(group * self.vectors + index * self.block.vectors)
        vectors = [first + v for v in range(count)]
        accumulators = [[variable(dot.element, dot.lanes) for _ in range(count)] for _ in range(pixels)]
        for v in range(count):
            start = load(constants[0], vectors[v] * dot.lanes, dot.lanes) if not self.epilogue.unit else None
            initial = numbers([0] * dot.lanes, "int32") if start is None else let(dot.start(start))
            for p in range(pixels):
                assign(accumulators[p][v], initial)
        corner = y * g.row_step + x0 * g.pixel_step + g.origin + group * self.op.weight.shape[3]
        taps = self.block.taps
        base = first * (self.kernel_vectors * self.vector_size)
        chunk_of = dot.chunk if dot.streams_weights else max(1, dot.together // taps)
        chunks, rest = divmod(g.depth, chunk_of)
        with span(0, self.op.weight.shape[1]) as row, span(0, g.taps // taps) as tap:
            at = corner + row * g.kernel_row_step + tap * (g.tap_step * taps)
            steps = (row * (g.taps // taps) + tap) * g.depth
            if chunks:
                with span(0, chunks) as chunk:
                    where = base + (steps + chunk * chunk_of) * (taps * count * self.vector_size)
                    self._step(accumulators, source, at + chunk * (chunk_of * dot.group), weights, where, chunk_of)
            if rest:
                where = base + (steps + chunks * chunk_of) * (taps * count * self.vector_size)
                self._step(accumulators, source, at + chunks * chunk_of * dot.group, weights, where, rest)
        sums = [
            Sum(
                dot.total(accumulators[p][v][0]),
                vectors[v],
                p * self.out_pixel + v * dot.lanes,
                dot.lanes,
                p * self._other_pixel() + v * dot.lanes,
            )
            for p in range(pixels)
            for v in range(count)
        ]
        channel = group * self.each + index * (self.block.vectors * dot.lanes)
        out = y * self.out_pitch + x0 * self.out_pixel + channel + self.target.origin
        other, beside = None, 0
        if self.other is not None:
            _, (pitch, pixel, _) = placed_image(self.other)
            other = body.buffers[1]
            beside = y * pitch + x0 * pixel + channel + self.other.origin
        last = self.each % dot.lanes
        if last and isinstance(index, int) and index * self.block.vectors + count == self.vectors:
            sums = [replace(one, valid=last) if (i + 1) % count == 0 else one for i, one in enumerate(sums)]
        self.epilogue.store(sums, constants, target, out, other, beside)

    def _other_pixel(self) -> int:
        return placed_image(self.other)[1][1] if self.other is not None else 0

    def _step(self, acc: list[list[Any]], source: Any, at: Expr, weights: Any, where: Expr, count: int) -> None:
        """``count`` times ``group`` channels of all pixels and vectors."""
        g, dot, taps = self.g, self.dot, self.block.taps
        pixels, vectors = len(acc), len(acc[0])
        if dot.streams_weights:
            rows = [dot.activations(source, at + p * g.pixel_step) for p in range(pixels)]
            for i in range(count):
                for v in range(vectors):
                    w = dot.weights(weights, where + (i * vectors + v) * self.vector_size, self.bits)
                    for p in range(pixels):
                        assign(acc[p][v], dot.accumulate(acc[p][v][0], rows[p][i], w))
            return
        sums = _Sums(dot, acc)
        for i in range(count):
            each = where + i * taps * vectors * self.vector_size
            held = [
                [dot.weights(weights, each + (k * vectors + v) * self.vector_size, self.bits) for v in range(vectors)]
                for k in range(taps)
            ]
            pixel = g.pixel_step // g.stride
            for column in columns(pixels, taps, g.stride, g.dilation):
                (x,) = dot.activations(source, at + i * dot.group + column * pixel)
                for k in range(taps):
                    p, beside = divmod(column - k * g.dilation, g.stride)
                    if beside or not 0 <= p < pixels:
                        continue
                    for v in range(vectors):
                        sums.add(p, v, x, held[k][v])
        sums.end()


class _Sums:
    """Products on their way to the accumulators: as many of them together as the strategy allows."""

    def __init__(self, dot: Dot, accumulators: list[list[Any]]) -> None:
        self.dot, self.accumulators = dot, accumulators
        self.pending: dict[tuple[int, int], tuple[Expr, int]] = {}

    def add(self, pixel: int, vector: int, activation: Expr, weight: Expr) -> None:
        """One step's products."""
        dot, acc = self.dot, self.accumulators[pixel][vector]
        if dot.together == 1:
            assign(acc, dot.accumulate(acc[0], activation, weight))
            return
        product = dot.product(activation, weight)
        before, number = self.pending.pop((pixel, vector), (None, 0))
        total = product if before is None else let(before + product)
        self.pending[pixel, vector] = total, number + 1
        if number + 1 == dot.together:
            self._gather(pixel, vector)

    def end(self) -> None:
        """What is left comes to the accumulators."""
        for pixel, vector in list(self.pending):
            self._gather(pixel, vector)

    def _gather(self, pixel: int, vector: int) -> None:
        total, _ = self.pending.pop((pixel, vector))
        acc = self.accumulators[pixel][vector]
        assign(acc, self.dot.gather(acc[0], total))


def let_int(value: Expr) -> Expr:
    """``value`` under a name, unless it is a number."""
    return value if isinstance(value, int) else let(value)


@contextmanager
def span(first: Expr, last: Expr) -> Iterator[Expr]:
    """A loop, or its only index."""
    from tvm.tirx.script import builder as T

    if isinstance(first, int) and isinstance(last, int) and last - first == 1:
        yield first
        return
    with T.serial(first, last) as index:
        yield index


__all__ = ["Geometry", "covered", "emit", "geometry", "placed_image", "span"]
