"""The back end of NVIDIA GPUs: kernels of TensorIR, one piece of work a thread, int8 products by dp4a.

Tensors lie densely, channels last. A convolution's thread computes a few pixels of a row by a few output channels; each
``dp4a`` adds four products of int8. Padding is the zero point, so ``bias - z * sum(weights)`` is all that zero points
cost. Weights of fewer bits stay packed, ``32 / bits`` a word, shifted to be unsigned by their offset, and are taken
apart in the kernel: with ``u = w + offset``, ``sum w x = sum u x - offset * sum x``.

Other operators are the portable kernels, one row a thread, or one element where all operands have one shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels import emit as emitting
from compress.export.kernels import portable
from compress.export.kernels.building import THREADS, Rescaling, constant, function, pointer, registers, requantized
from compress.export.kernels.code import Code, Placed
from compress.export.kernels.convolutions import folded_bias, image
from compress.export.kernels.emitted import Emitted
from compress.export.kernels.isa import Isa
from compress.export.kernels.vectors import load, put
from compress.integer.program import (
    Add,
    Convolution,
    Dequantize,
    FloatElementwise,
    Lookup,
    Multiply,
    Op,
    Pool,
    Program,
    Quantize,
)

BLOCK = 128
"""Threads of a block."""
PIXELS, CHANNELS = 4, 4
"""Of a thread's part of a convolution."""
SCALAR = Isa("x86", "nvptx64-nvidia-cuda", "cuda", (), "none", signed=True)
"""What the portable kernels are told: no vectors, and a unit for float32."""


def assemble(program: Program) -> Code:
    """The program, all of its 8-bit tensors signed, as kernels for a GPU.

    Raises:
        BadInput: there is no kernel for an operator.
    """
    token = THREADS.set(BLOCK)
    try:
        return emitting.assemble(program, SCALAR, (_convolution, _depthwise, _pool, _elementwise))
    finally:
        THREADS.reset(token)


def _elementwise(op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
    """One element a thread, where nothing is broadcast."""
    if not isinstance(op, Add | Multiply | Quantize | Dequantize | Lookup | FloatElementwise):
        return None
    shapes = {placed[name].tensor.shape for name in (*op.inputs, op.output)}
    if len(shapes) > 1:
        return None
    if isinstance(op, FloatElementwise) and op.constant is not None and np.size(op.constant) > 2:
        return None
    flat = {
        name: Placed(replace(placed[name].tensor, shape=(placed[name].tensor.elements, 1)))
        for name in (*op.inputs, op.output)
    }
    return portable.emit(op, flat, isa, symbol)


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


def _convolution(op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
    """A convolution with 4 n input channels a group, or any other one without dp4a."""
    if not isinstance(op, Convolution) or op.depthwise:
        return None
    x, y = placed[op.inputs[0]], placed[op.output]
    fast = op.weight.shape[3] % 4 == 0 and x.tensor.dtype == "int8"
    return _Products(op, x, y, fast).emitted(symbol)


class _Products:
    """Writes the kernel of a convolution whose outputs are sums over several channels."""

    def __init__(self, op: Convolution, x: Placed, y: Placed, fast: bool) -> None:
        self.op, self.x, self.y, self.fast = op, x, y, fast
        self.size, self.out = image(x.tensor.shape), image(y.tensor.shape)
        self.outputs, self.kernel, self.inputs = op.weight.shape[0], op.weight.shape[1:3], op.weight.shape[3]
        self.per_group = self.outputs // op.groups
        self.channels = next(n for n in (CHANNELS, 2, 1) if self.per_group % n == 0)
        self.pixels = min(PIXELS, self.out[1])
        self.across = -(-self.out[1] // self.pixels)
        self.blocks = self.outputs // self.channels
        self.zero = x.tensor.zero_point
        taps = op.weight.reshape(self.outputs, -1, self.inputs)
        self.words = Words.of(taps, op.weight_bits) if fast else None
        self.bias = folded_bias(op, self.zero)

    def emitted(self, symbol: str) -> Emitted:
        op = self.op
        weights = self.words.words.ravel() if self.words is not None else op.weight.ravel()
        constants: list[NDArray[Any]] = [weights, self.bias]
        names = ["weight", "bias"]
        factors = None
        if op.requantize is not None:
            factors = Rescaling.of(op.requantize, self.outputs)
            constants += factors.tables
            names += ["multiplier", "half", "shift"]
        elif op.scale is not None:
            constants.append(np.broadcast_to(op.scale, (self.outputs,)).astype(np.float32))
            names.append("scale")
        parameters = [(name, str(a.dtype), a.size) for name, a in zip(names, constants, strict=True)]
        rows = self.out[0] * self.across * self.blocks
        with function(symbol, [pointer("x", self.x), pointer("y", self.y), *parameters], rows) as body:
            self._write(body.buffers, body.first, factors)
        return Emitted(body.done, tuple(np.ascontiguousarray(each) for each in constants))

    def _write(self, buffers: list[Any], index: Any, factors: Rescaling | None) -> None:
        from tvm.tirx.script import builder as T

        source, target, weight, bias, *tables = buffers
        first = index % self.blocks * self.channels  # neighbours share pixels
        place = index // self.blocks
        row, column = place // self.across, place % self.across * self.pixels
        group = first // self.per_group if self.op.groups > 1 else 0
        acc = registers(self.pixels * self.channels, "int32")
        sums = registers(self.pixels, "int32") if self.words is not None and self.words.offset else None
        for p in range(self.pixels):
            for q in range(self.channels):
                put(acc, bias[first + q] if sums is None else constant(0, "int32"), p * self.channels + q, 1)
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
                self._words(source, weight, acc, sums, first, tap, corners, inside)
            else:
                self._bytes(source, weight, acc, first, tap, corners, inside)
        for p in range(self.pixels):
            with T.If(column + p < self.out[1]), T.Then():
                for q in range(self.channels):
                    total = acc[p * self.channels + q]
                    if sums is not None and self.words is not None:
                        scaled = total * 2 if self.words.width == 1 else total
                        total = bias[first + q] + scaled - sums[p] * self.words.offset
                    value = self._result(total, first + q, tables, factors)
                    put(target, value, ((row * self.out[1]) + column + p) * self.outputs + first + q, 1)

    def _words(
        self, source: Any, weight: Any, acc: Any, sums: Any, first: Any, tap: Any, corners: list[Any], inside: list[Any]
    ) -> None:
        """Four channels at a time."""
        from tvm.tirx.script import builder as T

        assert self.words is not None
        _, taps, count = self.words.words.shape
        groups, fours = self.words.groups, self.inputs // 4
        whole = fours // groups

        def word(w: Any, present: int) -> None:
            held = registers(self.channels, "int32")
            for q in range(self.channels):
                put(held, weight[((first + q) * taps + tap) * count + w], q, 1)
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

    def _bytes(
        self, source: Any, weight: Any, acc: Any, first: Any, tap: Any, corners: list[Any], inside: list[Any]
    ) -> None:
        """One channel at a time, for channel counts that fill no words."""
        from tvm.tirx.script import builder as T

        taps = self.kernel[0] * self.kernel[1]
        with T.serial(self.inputs) as c:
            for p in range(self.pixels):
                value = registers(1, "int32")
                x = T.cast(source[corners[p] + c], "int32")
                put(value, T.if_then_else(inside[p], x, constant(self.zero, "int32")), 0, 1)
                for q in range(self.channels):
                    place = p * self.channels + q
                    w = T.cast(weight[((first + q) * taps + tap) * self.inputs + c], "int32")
                    put(acc, acc[place] + value[0] * w, place, 1)

    def _result(self, total: Any, channel: Any, tables: list[Any], factors: Rescaling | None) -> Any:
        from tvm.tirx.script import builder as T

        if self.op.requantize is not None and factors is not None:
            numbers = tuple(table[channel] for table in tables)
            return requantized(total, numbers, self.op.requantize, factors.high, self.y.tensor.dtype)
        return T.cast(total, "float32") * tables[0][channel]


def _dp4a(a: Any, b: Any, c: Any) -> Any:
    """``c`` plus the four products of signed bytes; one instruction from compute capability 6.1 on."""
    from tvm.tirx.script import builder as T

    return T.call_pure_extern("int32", "__dp4a", a, b, c)


def _depthwise(op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
    """One output a thread; neighbouring threads read neighbouring channels."""
    from tvm.tirx.script import builder as T

    if not isinstance(op, Convolution) or not op.depthwise:
        return None
    x, y = placed[op.inputs[0]], placed[op.output]
    (height, width, channels), out = image(x.tensor.shape), image(y.tensor.shape)
    outputs, rows, columns, _ = op.weight.shape
    weight = np.ascontiguousarray(op.weight[..., 0].transpose(1, 2, 0))
    constants: list[NDArray[Any]] = [weight.ravel(), op.bias]
    names = ["weight", "bias"]
    factors = Rescaling.of(op.requantize, outputs) if op.requantize is not None else None
    if factors is not None:
        constants += factors.tables
        names += ["multiplier", "half", "shift"]
    elif op.scale is not None:
        constants.append(np.broadcast_to(op.scale, (outputs,)).astype(np.float32))
        names.append("scale")
    parameters = [(name, str(a.dtype), a.size) for name, a in zip(names, constants, strict=True)]
    with function(symbol, [pointer("x", x), pointer("y", y), *parameters], out[0] * out[1] * outputs) as body:
        source, target, weights, bias, *tables = body.buffers
        channel, pixel = body.first % outputs, body.first // outputs
        acc = registers(1, "int32")
        put(acc, bias[channel], 0, 1)
        with T.serial(rows) as i, T.serial(columns) as j:
            r = pixel // out[1] * op.strides[0] + i * op.dilations[0] - op.padding[0]
            c = pixel % out[1] * op.strides[1] + j * op.dilations[1] - op.padding[1]
            with T.If((r >= 0) & (r < height) & (c >= 0) & (c < width)), T.Then():
                inner = channel if outputs == channels else channel // (outputs // channels)
                value = T.cast(source[(r * width + c) * channels + inner], "int32") - x.tensor.zero_point
                w = T.cast(weights[(i * columns + j) * outputs + channel], "int32")
                put(acc, acc[0] + value * w, 0, 1)
        numbers = tuple(table[channel] for table in tables)
        if op.requantize is not None and factors is not None:
            value = requantized(acc[0], numbers, op.requantize, factors.high, y.tensor.dtype)
        else:
            value = T.cast(acc[0], "float32") * numbers[0]
        put(target, value, body.first, 1)
    return Emitted(body.done, tuple(np.ascontiguousarray(each) for each in constants))


def _pool(op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
    """One output a thread."""
    from tvm.tirx.script import builder as T

    if not isinstance(op, Pool) or (
        op.kind == "average" and (op.requantize is None or op.requantize.multiplier.size > 1)
    ):
        return None
    x, y = placed[op.inputs[0]], placed[op.output]
    (height, width, channels), out = image(x.tensor.shape), image(y.tensor.shape)
    largest = op.kind == "max"
    with function(symbol, [pointer("x", x), pointer("y", y)], out[0] * out[1] * channels) as body:
        source, target = body.buffers
        channel, pixel = body.first % channels, body.first // channels
        acc = registers(1, "int32")
        put(acc, constant(-(2**31) if largest else 0, "int32"), 0, 1)
        with T.serial(op.kernel[0]) as i, T.serial(op.kernel[1]) as j:
            r = pixel // out[1] * op.strides[0] + i - op.padding[0]
            c = pixel % out[1] * op.strides[1] + j - op.padding[1]
            with T.If((r >= 0) & (r < height) & (c >= 0) & (c < width)), T.Then():
                value = T.cast(source[(r * width + c) * channels + channel], "int32")
                put(acc, T.max(acc[0], value) if largest else acc[0] + value - x.tensor.zero_point, 0, 1)
        if largest:
            value = T.cast(acc[0], y.tensor.dtype)
        else:
            assert op.requantize is not None
            factors = Rescaling.of(op.requantize)
            value = requantized(acc[0], factors.numbers(), op.requantize, factors.high, y.tensor.dtype)
        put(target, value, body.first, 1)
    return Emitted(body.done)


__all__ = ["BLOCK", "SCALAR", "Words", "assemble"]
