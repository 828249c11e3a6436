"""Weights of 8, 4, 2 and 1 bits for Cortex-M: packed in flash, unpacked to pairs of int16 in a scratch buffer.

``sxtb16`` sign-extends bytes 0 and 2 of a word to two int16; of a word rotated by eight bits, bytes 1 and 3. Weights of
fewer bits lie so that a shift and a mask bring a field to the top of each byte: what comes out is then the weight times
a power of two (:data:`compress.export.kernels.convolutions.UNITS`), which the accumulators' last shift takes out again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.cortex_m_assembly import Function
from compress.export.kernels.vectors import Expr, intrinsic, let, repeated, view

PLAIN = (0, 2, 1, 3)
"""Bytes of a word so that :func:`widen` gives numbers in their order."""


def widen(bits: int) -> Function:
    """``f(int16 *target, const void *packed, int words)``: ``words`` words, at least one, to ``64 / bits`` bytes each.

    Words needn't be aligned; the target is, to four bytes.
    """
    word = ["ldr r3, [r1], #4"]
    if bits == 8:
        parts = ["sxtb16 r4, r3", "sxtb16 r5, r3, ror #8", "stmia r0!, {r4, r5}"]
    else:
        parts = []
        for field in range(8 // bits):
            shift = f", lsl #{field * bits}" if field else ""
            parts.append(f"and r12, r6, r3{shift}")
            if bits == 1:  # a set bit is -1: 0xc0, else 0x40
                parts.append("orr r12, r12, #0x40404040")
            parts += ["sxtb16 r4, r12", "sxtb16 r5, r12, ror #8", "stmia r0!, {r4, r5}"]
    lines = ["push {r4, r5, r6}"]
    if bits != 8:
        lines.append(f"mov r6, #0x{repeated((0xFF << (8 - bits)) & 0xFF, 4) & 0xFFFFFFFF:08x}")
    if bits == 8:
        two = ["ldr r3, [r1], #4", "ldr r12, [r1], #4", "sxtb16 r4, r3", "sxtb16 r5, r3, ror #8"]
        two += ["sxtb16 r6, r12", "sxtb16 r7, r12, ror #8", "stmia r0!, {r4, r5, r6, r7}"]
        lines = ["push {r4, r5, r6, r7}", "subs r2, #4", "blt 2f", "1:", *two, *two, "subs r2, #4", "bge 1b", "2:"]
        lines += ["adds r2, #4", "beq 4f", "3:", *word, *parts, "subs r2, #1", "bne 3b", "4:"]
        lines += ["pop {r4, r5, r6, r7}", "bx lr"]
    else:
        lines += ["1:", *word, *parts, "subs r2, #1", "bne 1b", "pop {r4, r5, r6}", "bx lr"]
    return Function(f"compress_widen_{bits}", (("target", "ptr"), ("packed", "ptr"), ("words", "i32")), tuple(lines))


WIDEN_PIXELS = Function(
    "compress_widen_pixels",
    (("target", "ptr"), ("source", "ptr"), ("pixels", "i32"), ("channels", "i32")),
    (
        "push {r4, r5, r6}",
        "0:",
        "mov r4, r3",
        "1:",
        "subs r4, #2",
        "blt 2f",
        "ldrsb r5, [r1], #1",
        "ldrsb r6, [r1], #1",
        "pkhbt r5, r5, r6, lsl #16",
        "str r5, [r0], #4",
        "b 1b",
        "2:",
        "cmn r4, #1",
        "bne 3f",
        "ldrsb r5, [r1], #1",
        "uxth r5, r5",
        "str r5, [r0], #4",
        "3:",
        "subs r2, #1",
        "bne 0b",
        "pop {r4, r5, r6}",
        "bx lr",
    ),
)
"""``f(int16 *target, const int8 *source, int pixels, int channels)``: in their order; of odd channels a zero more."""
FILL = Function(
    "compress_fill",
    (("target", "ptr"), ("value", "i32"), ("words", "i32")),
    ("cbz r2, 2f", "1:", "str r1, [r0], #4", "subs r2, #1", "bne 1b", "2:", "bx lr"),
)
"""``f(int32 *target, int value, int words)``: the value in every word."""


SIGNS = Function(
    "compress_signs",
    (("target", "ptr"), ("packed", "ptr"), ("words", "i32")),
    (
        "push {r4, r5, r6, r7, r8}",
        "mov r8, #0",
        "mvn r12, #0",
        "1:",
        "ldr r3, [r1], #4",
        # Doubling a byte carries its top bit out; ``sel`` takes 255 where it was set.
        *("uadd8 r3, r3, r3", "sel r4, r12, r8", "uadd8 r3, r3, r3", "sel r5, r12, r8"),
        *("uadd8 r3, r3, r3", "sel r6, r12, r8", "uadd8 r3, r3, r3", "sel r7, r12, r8"),
        "stmia r0!, {r4, r5, r6, r7}",
        *("uadd8 r3, r3, r3", "sel r4, r12, r8", "uadd8 r3, r3, r3", "sel r5, r12, r8"),
        *("uadd8 r3, r3, r3", "sel r6, r12, r8", "uadd8 r3, r3, r3", "sel r7, r12, r8"),
        "stmia r0!, {r4, r5, r6, r7}",
        "subs r2, #1",
        "bne 1b",
        "pop {r4, r5, r6, r7, r8}",
        "bx lr",
    ),
)
"""``f(uint8 *target, const void *packed, int words)``: ``words`` words of one-bit weights, at least one, to 32 bytes
each: 0 for 1, 255 for -1."""
OFFSET = Function(
    "compress_offset",
    (("target", "ptr"), ("source", "ptr"), ("words", "i32")),
    (
        "1:",
        "ldr r3, [r1], #4",
        "ldr r12, [r1], #4",
        "eor r3, r3, #0x80808080",
        "eor r12, r12, #0x80808080",
        "strd r3, r12, [r0], #8",
        "subs r2, #2",
        "bne 1b",
        "bx lr",
    ),
)
"""``f(uint8 *target, const int8 *source, int words)``: an even number of words, 128 added to each byte. The source
needs no alignment."""
OFFSET_PIXELS = Function(
    "compress_offset_pixels",
    (("target", "ptr"), ("source", "ptr"), ("pixels", "i32"), ("channels", "i32")),
    (
        "push {r4}",
        "0:",
        "mov r4, r3",
        "1:",
        "ldrb r12, [r1], #1",
        "eor r12, r12, #128",
        "strb r12, [r0], #1",
        "subs r4, #1",
        "bne 1b",
        "add r0, #7",
        "bic r0, r0, #7",
        "subs r2, #1",
        "bne 0b",
        "pop {r4}",
        "bx lr",
    ),
)
"""``f(uint8 *target, const int8 *source, int pixels, int channels)``: 128 added to each byte; pixels are eights of
bytes apart in the target, which begins at one, and what is between them stays as it is."""
LINE_ZEROS = 8
"""Words of zeros behind inputs that meet the last packed words of weights, whose last fields are no weights."""


def unpacked(word: Expr, bits: int) -> list[Expr]:
    """The ``8 / bits`` words of int8 that a word of packed weights holds, each times ``2^UNITS[bits]``."""
    from tvm import tirx

    if bits == 8:
        return [word]
    found = []
    for i in range(8 // bits):
        field = word if i == 0 else word << tirx.const(i * bits, "int32")
        value = field & tirx.const(repeated((0xFF << (8 - bits)) & 0xFF, 4), "int32")
        if bits == 1:  # a set bit is -1: 0xc0, else 0x40
            value = value | tirx.const(repeated(0x40, 4), "int32")
        found.append(let(value))
    return found


def in_registers(word: Expr) -> tuple[Expr, Expr]:
    """What :func:`widen` makes of a word of int8: bytes 0 and 2, bytes 1 and 3."""
    from tvm import tirx

    bits = view(word, "uint32")
    rotated = view((bits >> tirx.const(8, "uint32")) | (bits << tirx.const(24, "uint32")), "int32")
    return let(intrinsic("int32", "llvm.arm.sxtb16", word)), let(intrinsic("int32", "llvm.arm.sxtb16", rotated))


def pack(weight: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """Rows of int8 weights as words; :func:`widen` is the other way.

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
        mask = np.int32(repeated((1 << bits) - 1, 4)).view(np.uint32)
        shifted = [(words[..., i] & mask) << np.uint32(8 - bits - i * bits) for i in range(fields)]
    packed: NDArray[np.uint32] = np.bitwise_or.reduce(np.stack(shifted), axis=0)
    return packed.view(np.int32)


def register_words(words: int, bits: int) -> int:
    """Words of int16 pairs that unpacking ``words`` packed words writes."""
    return words * 2 * (8 // bits)


__all__ = [
    "FILL",
    "LINE_ZEROS",
    "OFFSET",
    "OFFSET_PIXELS",
    "PLAIN",
    "SIGNS",
    "WIDEN_PIXELS",
    "in_registers",
    "pack",
    "register_words",
    "unpacked",
    "widen",
]
