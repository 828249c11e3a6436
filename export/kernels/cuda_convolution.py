"""Convolutions and linear layers on a GPU, in integers and in float32.

A thread computes a few pixels of a row by a few output channels, which lie as far apart as there are threads for a
pixel: neighbours then read neighbouring weights. In int8 each ``dp4a`` adds four products. Padding is the zero point,
so ``bias - z * sum(weights)`` is all that zero points cost. Weights of fewer bits stay packed, ``32 / bits`` a word,
shifted to be unsigned by their offset, and are taken apart in the kernel: with ``u = w + offset``,
``sum w x = sum u x - offset * sum x``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.building import constant, function, registers, unravelled
from compress.export.kernels.code import Placed
from compress.export.kernels.convolutions import folded_bias, image
from compress.export.kernels.cuda_ending import Ending, parameters
from compress.export.kernels.emitted import Emitted
from compress.export.kernels.isa import Isa
from compress.export.kernels.vectors import load, put
from compress.integer.program import Convolution, FloatConvolution, Op

PIXELS, CHANNELS = 4, 4
"""Of a thread's part of a convolution."""


@dataclass(frozen=True, eq=False, slots=True)
class Words:
    """Weights of a convolution as 32-bit words, (O, taps, words).

    Attributes:
        words: int32, ``8 / width`` groups of four input channels each.
        width: bits of a weight in them: 8, 4, 2 or 1.
        offset: what was added to each weight, so that it is unsigned; 0 for 8 bits. 1-bit weights are ``(w + 1) / 2``.
    """

    words: NDArray[np.int32]
    width: int
    offset: int

    @property
    def groups(self) -> int:
        """Groups of four channels in a word."""
        return 8 // self.width

    @classmethod
    def of(cls, weight: NDArray[np.int8], bits: int) -> Words:
        """Pack weights (O, taps, C), C a multiple of 4."""
        width = {8: 8, 4: 4, 3: 4, 2: 2, 1: 1}[bits]
        offset = 0 if width == 8 else (1 if width == 1 else 1 << (width - 1))
        outputs, taps, channels = weight.shape
        values = weight.astype(np.int64) + offset
        if width == 1:
            values //= 2
        groups = 8 // width
        count = -(-channels // (4 * groups))
        padded = np.zeros((outputs, taps, count * groups * 4), np.int64)
        padded[..., :channels] = values
        lanes = (padded & ((1 << width) - 1)).reshape(outputs, taps, count, groups, 4)
        shift = (np.arange(groups) * width)[:, None] + np.arange(4) * 8
        words = (lanes << shift).sum(axis=(-1, -2)).astype(np.uint32).view(np.int32)
        return cls(np.ascontiguousarray(words), width, offset)


def emit(op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
    """The kernel, if the operator is a convolution."""
    if not isinstance(op, Convolution | FloatConvolution) or (isinstance(op, FloatConvolution) and op.half):
        return None
    x, y = placed[op.inputs[0]], placed[op.output]
    if op.groups > 1 and op.weight.shape[3] == 1:
        return _depthwise(op, x, y, symbol)
    return _Products(op, x, y).emitted(symbol)


class _Products:
    """Writes the kernel of a convolution whose outputs are sums over several channels."""

    def __init__(self, op: Convolution | FloatConvolution, x: Placed, y: Placed) -> None:
        self.op, self.x, self.y = op, x, y
        self.size, self.out = image(x.tensor.shape), image(y.tensor.shape)
        self.outputs, self.kernel, self.inputs = op.weight.shape[0], op.weight.shape[1:3], op.weight.shape[3]
        self.per_group = self.outputs // op.groups
        self.channels = next(n for n in (CHANNELS, 2, 1) if self.per_group % n == 0)
        self.apart = self.per_group // self.channels
        self.pixels = min(PIXELS, self.out[1])
        self.across = -(-self.out[1] // self.pixels)
        self.ending = Ending(op, y.tensor.dtype)
        self.zero = x.tensor.zero_point
        self.words: Words | None = None
        self.bias: NDArray[Any] = op.bias
        weight: NDArray[Any] = op.weight.reshape(self.outputs, -1, self.inputs)
        self.kind = "float32"
        if isinstance(op, Convolution):
            self.kind = "int32"
            self.bias = folded_bias(op, self.zero)
            if self.inputs % 4 == 0 and x.tensor.dtype == "int8":
                self.words = Words.of(weight, op.weight_bits)
                weight = self.words.words
        self.depth = weight.shape[2]
        self.weight = np.ascontiguousarray(weight.transpose(1, 2, 0))

    def emitted(self, symbol: str) -> Emitted:
        constants = [self.weight.ravel(), self.bias, *self.ending.constants]
        threads = self.out[0] * self.across * (self.outputs // self.channels)
        with function(symbol, parameters(self.x, self.y, constants), threads) as body:
            self._write(body.buffers, body.first)
        return Emitted(body.done, tuple(np.ascontiguousarray(each) for each in constants))

    def _write(self, buffers: list[Any], index: Any) -> None:
        from tvm.tirx.script import builder as T

        source, target, weight, bias, *tables = buffers
        row, across, group, own = unravelled(index, (self.out[0], self.across, self.op.groups, self.apart))
        column = across * self.pixels
        channels = [group * self.per_group + own + q * self.apart for q in range(self.channels)]
        acc = registers(self.pixels * self.channels, self.kind)
        sums = registers(self.pixels, "int32") if self.words is not None and self.words.offset else None
        for p in range(self.pixels):
            for q, channel in enumerate(channels):
                start = bias[channel] if sums is None else constant(0, "int32")
                put(acc, start, p * self.channels + q, 1)
            if sums is not None:
                put(sums, constant(0, "int32"), p, 1)
        with T.serial(self.kernel[0]) as i, T.serial(self.kernel[1]) as j:
            corners, inside = [], []
            r = row * self.op.strides[0] + i * self.op.dilations[0] - self.op.padding[0]
            for p in range(self.pixels):
                c = (column + p) * self.op.strides[1] + j * self.op.dilations[1] - self.op.padding[1]
                corners.append((r * self.size[1] + c) * self.size[2] + group * self.inputs)
                inside.append((r >= 0) & (r < self.size[0]) & (c >= 0) & (c < self.size[1]))
            tap = i * self.kernel[1] + j
            if self.words is not None:
                self._words(source, weight, acc, sums, channels, tap, corners, inside)
            else:
                self._numbers(source, weight, acc, channels, tap, corners, inside)
        for p in range(self.pixels):
            with T.If(column + p < self.out[1]), T.Then():
                for q, channel in enumerate(channels):
                    total = acc[p * self.channels + q]
                    if sums is not None and self.words is not None:
                        scaled = total * 2 if self.words.width == 1 else total
                        total = bias[channel] + scaled - sums[p] * self.words.offset
                    value = self.ending.result(total, channel, tables)
                    put(target, value, (row * self.out[1] + column + p) * self.outputs + channel, 1)

    def _words(
        self,
        source: Any,
        weight: Any,
        acc: Any,
        sums: Any,
        channels: list[Any],
        tap: Any,
        corners: list[Any],
        inside: list[Any],
    ) -> None:
        """Four channels at a time."""
        from tvm.tirx.script import builder as T

        assert self.words is not None
        groups, fours = self.words.groups, self.inputs // 4
        whole = fours // groups

        def word(w: Any, present: int) -> None:
            held = registers(self.channels, "int32")
            for q, channel in enumerate(channels):
                put(held, weight[(tap * self.depth + w) * self.outputs + channel], q, 1)
            for g in range(present):
                for p in range(self.pixels):
                    loaded = load(source, corners[p] + (w * groups + g) * 4, 4)
                    value = registers(1, "int8x4")
                    put(value, T.if_then_else(inside[p], loaded, constant(self.zero, "int8", 4)), 0, 1)
                    for q in range(self.channels):
                        place = p * self.channels + q
                        put(acc, _dp4a(value[0], self._taken(held[q], g), acc[place]), place, 1)
                    if sums is not None:
                        put(sums, _dp4a(value[0], constant(0x01010101, "int32"), sums[p]), p, 1)

        if whole:
            with T.serial(whole) as w:
                word(w, groups)
        if fours % groups:
            word(whole, fours % groups)

    def _taken(self, word: Any, group: int) -> Any:
        """Four weights of a word as four bytes."""
        assert self.words is not None
        if self.words.width == 8:
            return word
        mask = ((1 << self.words.width) - 1) * 0x01010101
        return (word >> (group * self.words.width)) & constant(mask, "int32")

    def _numbers(
        self,
        source: Any,
        weight: Any,
        acc: Any,
        channels: list[Any],
        tap: Any,
        corners: list[Any],
        inside: list[Any],
    ) -> None:
        """One channel at a time: float32, and channel counts that fill no words."""
        from tvm.tirx.script import builder as T

        with T.serial(self.inputs) as c:
            held = registers(self.channels, self.kind)
            for q, channel in enumerate(channels):
                put(held, T.cast(weight[(tap * self.depth + c) * self.outputs + channel], self.kind), q, 1)
            for p in range(self.pixels):
                value = registers(1, self.kind)
                x = T.cast(source[corners[p] + c], self.kind)
                put(value, T.if_then_else(inside[p], x, constant(self.zero, self.kind)), 0, 1)
                for q in range(self.channels):
                    place = p * self.channels + q
                    put(acc, acc[place] + value[0] * held[q], place, 1)


def _dp4a(a: Any, b: Any, c: Any) -> Any:
    """``c`` plus the four products of signed bytes; one instruction from compute capability 6.1 on."""
    from tvm.tirx.script import builder as T

    return T.call_pure_extern("int32", "__dp4a", a, b, c)


def _depthwise(op: Convolution | FloatConvolution, x: Placed, y: Placed, symbol: str) -> Emitted:
    """One output a thread; neighbouring threads read neighbouring channels."""
    from tvm.tirx.script import builder as T

    (height, width, channels), out = image(x.tensor.shape), image(y.tensor.shape)
    outputs, rows, columns, _ = op.weight.shape
    ending, kind = Ending(op, y.tensor.dtype), "float32" if isinstance(op, FloatConvolution) else "int32"
    weight = np.ascontiguousarray(op.weight[..., 0].transpose(1, 2, 0))
    constants: list[NDArray[Any]] = [weight.ravel(), op.bias, *ending.constants]
    with function(symbol, parameters(x, y, constants), out[0] * out[1] * outputs) as body:
        source, target, weights, bias, *tables = body.buffers
        row, column, channel = unravelled(body.first, (out[0], out[1], outputs))
        acc = registers(1, kind)
        put(acc, bias[channel], 0, 1)
        with T.serial(rows) as i, T.serial(columns) as j:
            r = row * op.strides[0] + i * op.dilations[0] - op.padding[0]
            c = column * op.strides[1] + j * op.dilations[1] - op.padding[1]
            with T.If((r >= 0) & (r < height) & (c >= 0) & (c < width)), T.Then():
                inner = channel if outputs == channels else channel // (outputs // channels)
                value = T.cast(source[(r * width + c) * channels + inner], kind)
                if x.tensor.zero_point:
                    value = value - x.tensor.zero_point
                w = T.cast(weights[(i * columns + j) * outputs + channel], kind)
                put(acc, acc[0] + value * w, 0, 1)
        put(target, ending.result(acc[0], channel, tables), body.first, 1)
    return Emitted(body.done, tuple(np.ascontiguousarray(each) for each in constants))


__all__ = ["Words", "emit"]
