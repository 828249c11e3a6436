"""Weights as kernels read them: by blocks of output channels, a few bits each.

A block is ``vectors * width`` output channels. For one input channel its weights stand in ``width`` lanes of
``vectors`` numbers, so that one load brings the same lane's weights of all its vectors. Weights of fewer than 8 bits
share a word with those of the next input channels: lane l holds, from its lowest bits up, the number
``k = u * vectors + v``, which is the weight of output channel ``v * width + l`` and input channel ``u`` of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.building import constant
from compress.export.kernels.vectors import load, typed


@dataclass(frozen=True, slots=True)
class Packing:
    """How the weights of a block of output channels lie.

    Attributes:
        bits: of a weight: 32 (float), 8, 4, 3, 2 or 1.
        vectors, width: a block is ``vectors * width`` output channels.
        unit: input channels that share a word.
        word: bytes of a lane's word, for fewer than 8 bits.
    """

    bits: int
    vectors: int
    width: int
    unit: int
    word: int

    @classmethod
    def of(cls, bits: int, vectors: int, width: int, inputs: int) -> Packing:
        """The longest words of whole bytes: up to 32 bits, no more input channels than there are.

        Raises:
            ValueError: no word of 32 bits takes the block.
        """
        if bits >= 8:
            return cls(bits, vectors, width, 1, bits // 8)
        units = [
            u for u in range(1, 33) if u * vectors * bits <= 32 and u * vectors * bits % 8 == 0 and u <= max(inputs, 1)
        ]
        if not units:  # too few input channels for a whole byte: the word's last bits stay unused
            units = [u for u in range(1, 33) if u * vectors * bits <= 32 and u <= max(inputs, 1)]
        if not units:
            raise ValueError(f"{vectors} weights of {bits} bits don't fit into a word")
        best = max(units)
        return cls(bits, vectors, width, best, -(-best * vectors * bits // 8))

    @property
    def block(self) -> int:
        """Output channels of a block."""
        return self.vectors * self.width

    @property
    def dtype(self) -> str:
        """The type of the packed array."""
        if self.bits == 32:
            return "float32"
        return "int8" if self.bits == 8 else {1: "uint8", 2: "uint16", 3: "uint8", 4: "int32"}[self.word]

    @property
    def step(self) -> int:
        """Elements of the packed array for ``unit`` input channels."""
        if self.bits >= 8:
            return self.block
        return self.width * (3 if self.word == 3 else 1)

    def steps(self, inputs: int) -> int:
        """How many steps ``inputs`` input channels take; the last one may be partly filled."""
        return -(-inputs // self.unit)

    def pack(self, weight: NDArray[Any]) -> NDArray[Any]:
        """(groups, outputs, taps, inputs) to (groups, blocks, taps, steps, step), zeros where a block isn't full."""
        groups, outputs, taps, inputs = weight.shape
        blocks, steps = -(-outputs // self.block), self.steps(inputs)
        kind = np.float32 if self.bits == 32 else np.int64
        full = np.zeros((groups, blocks * self.block, taps, steps * self.unit), kind)
        full[:, :outputs, :, :inputs] = weight
        # group, block, vector, lane, tap, step, unit -> group, block, tap, step, unit, vector, lane
        split = full.reshape(groups, blocks, self.vectors, self.width, taps, steps, self.unit)
        order = split.transpose(0, 1, 4, 5, 6, 2, 3)
        if self.bits >= 8:
            return np.ascontiguousarray(order.reshape(groups, blocks, taps, steps, self.step), self.dtype)
        codes = (order > 0).astype(np.int64) if self.bits == 1 else order & ((1 << self.bits) - 1)
        numbers = codes.reshape(groups, blocks, taps, steps, self.unit * self.vectors, self.width)
        shifts = self.bits * np.arange(self.unit * self.vectors)
        words = (numbers << shifts[:, None]).sum(axis=4)
        if self.word == 3:
            planes = np.stack([(words >> (8 * k)) & 255 for k in range(3)], axis=4)
            return np.ascontiguousarray(planes.reshape(groups, blocks, taps, steps, self.step), np.uint8)
        return np.ascontiguousarray(words.astype(np.uint32).astype(self.dtype))

    def load(self, packed: Any, offset: Any) -> Any:
        """The words at an offset, int32 of ``width`` lanes; for fewer than 8 bits."""
        from tvm.tirx.script import builder as T

        wide = typed("int32", self.width)
        if self.word == 3:
            parts = [T.cast(load(packed, offset + k * self.width, self.width), wide) for k in range(3)]
            low = parts[0] | (parts[1] << constant(8, "int32", self.width))
            return low | (parts[2] << constant(16, "int32", self.width))
        return T.cast(load(packed, offset, self.width), wide)

    def unpack(self, words: Any, unit: int, index: int) -> Any:
        """The weights of vector ``index`` and input channel ``unit`` of a step: int32 of ``width`` lanes.

        One-bit weights come out as masks: all ones for +1, zero for -1.
        """
        number = unit * self.vectors + index
        up = 32 - self.bits * (number + 1)
        raised = words << constant(up, "int32", self.width) if up else words
        return raised >> constant(32 - self.bits, "int32", self.width)


__all__ = ["Packing"]
