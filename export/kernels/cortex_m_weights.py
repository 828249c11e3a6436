"""Weights of 8, 4, 2 and 1 bits for Cortex-M: packed in flash, unpacked to pairs of int16 in a scratch buffer.

``sxtb16`` sign-extends bytes 0 and 2 of a word to two int16; of a word rotated by eight bits, bytes 1 and 3. Weights of
fewer bits lie so that a shift and a mask bring a field to the top of each byte: what comes out is then the weight times
a power of two (``UNITS``), which the accumulators' last shift takes out again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.vectors import Expr, intrinsic, let, view

UNITS = {8: 0, 4: 4, 2: 6, 1: 6}
"""By stored bits: the logarithm of what an unpacked weight is multiplied with."""
PLAIN = (0, 2, 1, 3)
"""Bytes of a word so that :func:`widened` gives numbers in their order."""


def rotated(word: Expr) -> Expr:
    """A word rotated right by eight bits."""
    from tvm import tirx

    bits = view(word, "uint32")
    return view((bits >> tirx.const(8, "uint32")) | (bits << tirx.const(24, "uint32")), "int32")


def widened(word: Expr) -> tuple[Expr, Expr]:
    """Four bytes as two pairs of int16: (bytes 0 and 2, bytes 1 and 3)."""
    return (
        let(intrinsic("int32", "llvm.arm.sxtb16", word)),
        let(intrinsic("int32", "llvm.arm.sxtb16", rotated(word))),
    )


def unpacked(word: Expr, bits: int) -> list[Expr]:
    """The ``8 / bits`` words of int8 that a word of packed weights holds, each times ``2^UNITS[bits]``."""
    from tvm import tirx

    if bits == 8:
        return [word]
    kept = tirx.const(_repeated((0xFF << (8 - bits)) & 0xFF), "int32")
    found = []
    for i in range(8 // bits):
        field = word if i == 0 else word << tirx.const(i * bits, "int32")
        value = field & kept
        if bits == 1:  # a set bit is -1: 0x40 or 0xc0
            value = value | tirx.const(_repeated(0x40), "int32")
        found.append(let(value))
    return found


def pack(weight: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """Rows of int8 weights as words; :func:`unpacked` is the other way.

    Args:
        weight: int8 (rows, n), n a multiple of 4.
        bits: 8, 4, 2 or 1; the weights fit in them.

    Returns:
        int32 (rows, words), the last word of a row filled up with zeros.
    """
    words = np.ascontiguousarray(weight).view(np.uint32)
    fields = 8 // bits
    missing = -words.shape[1] % fields
    words = np.pad(words, ((0, 0), (0, missing))).reshape(len(words), -1, fields)
    if bits == 1:
        words = words & np.uint32(0x80808080)
        shifted = [words[..., i] >> np.uint32(i) for i in range(fields)]
    else:
        mask = np.uint32(_unsigned((1 << bits) - 1))
        shifted = [(words[..., i] & mask) << np.uint32(8 - bits - i * bits) for i in range(fields)]
    packed: NDArray[np.uint32] = np.bitwise_or.reduce(np.stack(shifted), axis=0)
    return packed.view(np.int32)


def _unsigned(byte: int) -> int:
    return byte * 0x01010101


def _repeated(byte: int) -> int:
    return int(np.uint32(_unsigned(byte)).astype(np.int32))


def register_words(words: int, bits: int) -> int:
    """Words of int16 pairs that unpacking ``words`` packed words writes."""
    return words * 2 * (8 // bits)


__all__ = ["PLAIN", "UNITS", "pack", "register_words", "unpacked", "widened"]
