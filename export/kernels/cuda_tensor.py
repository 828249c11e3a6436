"""Convolutions on a GPU's tensor cores: 16 pixels by 8 channels by 32 products of int8 an instruction, 16 of float16.

A warp computes tiles of ``mma.sync.m16n8k32`` (PTX ISA, compute capability 8.0 and later): D = A B + D with A of 16
pixels by 32 int8, B of 32 int8 by 8 channels, D int32. With ``g = lane // 4`` and ``t = lane % 4`` a lane holds

    A: four words (of four int8), of pixels g and g + 8, words t and t + 4 of the eight that a pixel has;
    B: two words, of channel g, words t and t + 4;
    D: pixels g and g + 8, channels 2 t and 2 t + 1.

``mma.sync.m16n8k16`` of float16 is laid out alike, with two numbers in a word and D in float32. Tensors in float are
float32 in memory: a lane rounds what it reads, and weights lie there rounded.

A sum may be taken in any order, so words are numbered as memory has them: what the instruction calls words t and t + 4
are words 2 t and 2 t + 1 of a step. A lane then reads neighbouring bytes of an image, and its two words of weights,
which are packed in the order in which a warp reads them. Nothing is shared between warps but the caches.

Words of an output run over the taps of the kernel and the channels of each, without gaps: a step may lie across two
taps. Weights of fewer bits stay packed and are taken apart in registers as multiples of 16 (4 bits) or 64 (2 and 1), by
which the sum is divided at the end, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.building import BATCH, constant, function, registers
from compress.export.kernels.code import Placed
from compress.export.kernels.convolutions import UNITS, folded_bias, image, stored_bits
from compress.export.kernels.cuda_ending import Ending, parameters
from compress.export.kernels.emitted import Emitted
from compress.export.kernels.isa import Isa
from compress.export.kernels.vectors import clamp, load, put
from compress.integer.program import LARGEST_HALF, Convolution, FloatConvolution, Op, Program, Tensor
from compress.integer.reference import rounded

WARP, PIXELS, CHANNELS, WORDS = 32, 16, 8, 8
"""Lanes; pixels, channels and words of a step of one instruction."""
TILES = ((2, 4), (2, 2), (1, 4), (1, 2), (1, 1))
"""Instructions of a warp's part of an output: of pixels, of channels. The first that gives enough warps is taken."""
ENOUGH = 192
"""Warps, of a few for each scheduler of a small GPU."""
LEAST_WORDS = 16
"""Of an output: below that, or below :data:`PIXELS` pixels, dp4a has less to fill up."""
LEAST = 80
"""Compute capability, times ten."""
LARGEST = 128
"""Magnitude of an int8."""
MMA, HALF_MMA, TO_HALF = "compress_mma_s8", "compress_mma_f16", "compress_half2"
_INTO, _OF = "{%0, %1, %2, %3}", "{%4, %5, %6, %7}, {%8, %9}"
HELPERS = f"""
static __device__ __forceinline__ void {MMA}(int *d, int a0, int a1, int a2, int a3, int b0, int b1) {{
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {_INTO}, {_OF}, {_INTO};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}}
static __device__ __forceinline__ void {HALF_MMA}(float *d, int a0, int a1, int a2, int a3, int b0, int b1) {{
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {_INTO}, {_OF}, {_INTO};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}}
static __device__ __forceinline__ int {TO_HALF}(float low, float high) {{
  int both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}}
"""
"""What stands in front of the CUDA source of a module with such kernels."""


@dataclass(frozen=True, eq=False, slots=True)
class Fragments:
    """Weights of a convolution in the order in which lanes read them.

    Attributes:
        words: int32 (tiles of 8 channels, parts, 32 lanes, words a part).
        bits: of a stored weight: 8, 4, 2 or 1.
        steps: of eight words.
    """

    words: NDArray[np.int32]
    bits: int
    steps: int

    @property
    def steps_a_part(self) -> int:
        """How many steps what a lane reads at once is for."""
        return max(1, 4 // self.bits)

    @property
    def words_a_part(self) -> int:
        """32-bit words that a lane reads at once."""
        return int(self.words.shape[3])

    @classmethod
    def of(cls, weight: NDArray[np.int8], bits: int) -> Fragments:
        """Pack weights (O, K), K a multiple of 4, stored in ``bits`` (1, 2, 4 or 8)."""
        outputs, depth = weight.shape
        steps, tiles = -(-depth // (4 * WORDS)), -(-outputs // CHANNELS)
        together = max(1, 4 // bits)
        parts = -(-steps // together)
        padded = np.zeros((tiles * CHANNELS, parts * together * WORDS * 4), np.int64)
        padded[:outputs, :depth] = weight
        # (tile, g, part, step, t, word of the lane, byte) to (tile, part, lane, step and word, byte)
        fields = padded.reshape(tiles, CHANNELS, parts, together, 4, 2, 4).transpose(0, 2, 1, 4, 3, 5, 6)
        fields = fields.reshape(tiles, parts, WARP, together * 2, 4)
        if bits == 8:
            packed = fields & 0xFF
        else:
            # A word of 4 bytes has one field of ``bits`` a byte for each of ``8 / bits`` words, the lowest first.
            held = (fields < 0) if bits == 1 else fields & ((1 << bits) - 1)
            count = 8 // bits
            split = held.astype(np.int64).reshape(tiles, parts, WARP, together * 2 // count, count, 4)
            packed = (split << (np.arange(count) * bits)[:, None]).sum(axis=4)
        words = (packed << (np.arange(4) * 8)).sum(axis=-1).astype(np.uint32).view(np.int32)
        return cls(np.ascontiguousarray(words), bits, steps)


def fills(op: Convolution | FloatConvolution, program: Program) -> bool:
    """Whether a convolution fills the instruction."""
    return _fills(op, program.tensors[op.inputs[0]], program.tensors[op.output])


def _fills(op: Convolution | FloatConvolution, x: Tensor, y: Tensor) -> bool:
    a_word = 2 if isinstance(op, FloatConvolution) else 4
    height, width, outputs = image(y.shape)
    return (
        op.groups == 1
        and op.weight.shape[3] % a_word == 0
        and x.dtype in ("int8", "float32")
        and height * width >= PIXELS
        and outputs >= CHANNELS
        and op.weight[0].size // a_word >= LEAST_WORDS
    )


def emit(op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
    """The kernel, if the operator is a convolution in int8 or of float16 operands that fills the instruction."""
    if not isinstance(op, Convolution) and not (isinstance(op, FloatConvolution) and op.half):
        return None
    x, y = placed[op.inputs[0]], placed[op.output]
    return _Tiles(op, x, y).emitted(symbol) if _fills(op, x.tensor, y.tensor) else None


class _Tiles:
    """Writes the kernel of one convolution."""

    def __init__(self, op: Convolution | FloatConvolution, x: Placed, y: Placed) -> None:
        self.op, self.x, self.y = op, x, y
        self.size, self.out = image(x.tensor.shape), image(y.tensor.shape)
        self.outputs = op.weight.shape[0]
        self.pixels = self.out[0] * self.out[1]
        self.zero = x.tensor.zero_point
        self.ending = Ending(op, y.tensor.dtype)
        self.bias: NDArray[Any] = op.bias
        if isinstance(op, FloatConvolution):
            self.kind, self.instruction, self.unit = "float32", HALF_MMA, 0
            halves = rounded(op.weight).astype(np.float16).reshape(self.outputs, -1)
            self.weights = Fragments.of(halves.view(np.int8), 8)
            self.a_word = 2
        else:
            self.kind, self.instruction = "int32", MMA
            flat = op.weight.reshape(self.outputs, -1)
            self.weights = Fragments.of(flat, stored_bits(op.weight_bits, flat, LARGEST))
            self.unit = UNITS[self.weights.bits]
            self.bias = folded_bias(op, self.zero)
            self.a_word = 4
        self.words = op.weight[0].size // self.a_word
        whole = [tile for tile in TILES if self.weights.words.shape[0] % tile[1] == 0]
        self.m, self.n = next((tile for tile in whole if BATCH.get() * self._warps(*tile) >= ENOUGH), TILES[-1])

    def _warps(self, m: int, n: int) -> int:
        return -(-self.pixels // (m * PIXELS)) * -(-int(self.outputs) // (n * CHANNELS))

    def emitted(self, symbol: str) -> Emitted:
        constants = [self.weights.words.ravel(), self.bias, *self.ending.constants]
        with function(symbol, parameters(self.x, self.y, constants), self._warps(self.m, self.n) * WARP) as body:
            self._write(body.buffers, body.first)
        return Emitted(body.done, tuple(np.ascontiguousarray(each) for each in constants))

    def _write(self, buffers: list[Any], index: Any) -> None:
        from tvm.tirx.script import builder as T

        source, target, weight, bias, *tables = buffers
        warp, lane = index // WARP, index % WARP
        across = self.weights.words.shape[0] // self.n
        first, tile = warp // across * (self.m * PIXELS), warp % across * self.n
        g, t = lane // 4, lane % 4
        acc = registers(self.m * self.n * 4, self.kind)
        for j in range(self.n):
            for e in range(2):
                # The instruction wraps around, as accumulators do; C's addition of signed integers need not.
                start = registers(1, self.kind)
                put(start, constant(0, self.kind) if self.unit else self._bias(bias, tile + j, t, e), 0, 1)
                for i in range(self.m):
                    for half in range(2):
                        put(acc, start[0], (i * self.n + j) * 4 + half * 2 + e, 1)
        rows = [first + k * 8 + g for k in range(2 * self.m)]
        places = [(p // self.out[1], p % self.out[1], p < self.pixels) for p in rows]
        together, parts = self.weights.steps_a_part, self.weights.words.shape[1]
        count = self.weights.words_a_part
        with T.serial(parts) as part:
            held = registers(self.n * count, "int32")
            for j in range(self.n):
                for w in range(count):
                    at = (((tile + j) * parts + part) * WARP + lane) * count + w
                    put(held, weight[at], j * count + w, 1)
            for step in range(together):
                a = registers(4 * self.m, "int32")
                for e in range(2):
                    word = (part * together + step) * WORDS + t * 2 + e
                    for k, value in enumerate(self._read(source, word, places)):
                        # Of the instruction's words: pixel g, pixel g + 8, and both again for t + 4.
                        put(a, value, k // 2 * 4 + e * 2 + k % 2, 1)
                for j in range(self.n):
                    b = [self._taken(held, j * count, step * 2 + e) for e in range(2)]
                    for i in range(self.m):
                        place = T.address_of(acc[(i * self.n + j) * 4])
                        T.evaluate(
                            T.call_extern("void", self.instruction, place, *(a[i * 4 + k] for k in range(4)), *b)
                        )
        self._store(target, bias, tables, acc, rows, tile, t)

    def _read(self, source: Any, word: Any, places: list[tuple[Any, Any, Any]]) -> list[Any]:
        """One word of each of a lane's pixels: zero points outside of the image, zeros behind the last word."""
        from tvm.tirx.script import builder as T

        op, (height, width, channels) = self.op, self.size
        of_tap, columns = channels // self.a_word, op.weight.shape[2]
        tap, inner = word // of_tap, word % of_tap * self.a_word
        i, j = tap // columns, tap % columns
        found = []
        for row, column, inside in places:
            r = row * op.strides[0] + i * op.dilations[0] - op.padding[0]
            c = column * op.strides[1] + j * op.dilations[1] - op.padding[1]
            there = inside & (r >= 0) & (r < height) & (c >= 0) & (c < width)
            value = registers(1, "int32")
            at = (r * width + c) * channels + inner
            put(value, T.if_then_else(there, self._word(source, at), constant(self._filling, "int32")), 0, 1)
            if self.words % WORDS or self.weights.steps % self.weights.steps_a_part:
                put(value, T.if_then_else(word < self.words, value[0], constant(0, "int32")), 0, 1)
            found.append(value[0])
        return found

    def _word(self, source: Any, at: Any) -> Any:
        """A word of the input: four int8 as they lie, or two float32 rounded."""
        from tvm.tirx.script import builder as T

        if self.kind == "int32":
            return T.reinterpret("int32", load(source, at, 4))
        ends = [constant(end, "float32") for end in (-LARGEST_HALF, LARGEST_HALF)]
        return T.call_pure_extern("int32", TO_HALF, *(clamp(source[at + k], *ends) for k in range(2)))

    @property
    def _filling(self) -> int:
        """A word of zero points."""
        word = (self.zero & 0xFF) * 0x01010101
        return word - ((word >> 31) << 32)

    def _taken(self, held: Any, first: int, word: int) -> Any:
        """Four weights of a lane, as int8 times the unit of their width."""
        bits = self.weights.bits
        if bits == 8:
            return held[first + word]
        count = 8 // bits
        raw, shift = held[first + word // count], 8 - bits - word % count * bits
        mask = (((1 << bits) - 1) << (8 - bits)) * 0x01010101
        value = (raw << shift if shift else raw) & constant(mask - (1 << 32), "int32")
        return value | constant(0x40404040, "int32") if bits == 1 else value

    def _store(self, target: Any, bias: Any, tables: list[Any], acc: Any, rows: list[Any], tile: Any, t: Any) -> None:
        from tvm.tirx.script import builder as T

        for k, row in enumerate(rows):
            with T.If(row < self.pixels), T.Then():
                for j in range(self.n):
                    for e in range(2):
                        channel = (tile + j) * CHANNELS + t * 2 + e
                        total = acc[(k // 2 * self.n + j) * 4 + k % 2 * 2 + e]
                        if self.outputs % CHANNELS:
                            with T.If(channel < self.outputs), T.Then():
                                self._put(target, bias, tables, total, row, channel)
                        else:
                            self._put(target, bias, tables, total, row, channel)

    def _put(self, target: Any, bias: Any, tables: list[Any], total: Any, row: Any, channel: Any) -> None:
        value = (total >> self.unit) + bias[channel] if self.unit else total
        put(target, self.ending.result(value, channel, tables), row * self.outputs + channel, 1)

    def _bias(self, bias: Any, tile: Any, t: Any, e: int) -> Any:
        from tvm.tirx.script import builder as T

        channel = tile * CHANNELS + t * 2 + e
        if self.outputs % CHANNELS == 0:
            return bias[channel]
        return T.if_then_else(channel < self.outputs, bias[channel], constant(0, self.kind))


__all__ = ["HALF_MMA", "HELPERS", "LEAST", "MMA", "Fragments", "emit", "fills"]
