"""What a library takes on the device, from the section headers of its objects, and the stack that a run needs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from compress.export.library import elf


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes in the device's memory.

    Attributes:
        code: instructions.
        read_only: constants.
        data: variables that start with a value; they are in flash and in RAM.
        zero: variables that start at zero; RAM only.
    """

    code: int = 0
    read_only: int = 0
    data: int = 0
    zero: int = 0

    @property
    def flash(self) -> int:
        """Bytes of flash."""
        return self.code + self.read_only + self.data

    def __add__(self, other: Sizes) -> Sizes:
        return Sizes(
            self.code + other.code, self.read_only + other.read_only, self.data + other.data, self.zero + other.zero
        )


def of(objects: Iterable[bytes]) -> Sizes:
    """The sizes of relocatable objects or of a linked program, together.

    Raises:
        compress.export.library.elf.Damaged: one isn't an ELF file.
    """
    total = Sizes()
    for content in objects:
        for section in elf.read(content).sections:
            if section.loaded:
                total += _sizes(section)
    return total


def _sizes(section: elf.Section) -> Sizes:
    if section.empty:
        return Sizes(zero=section.size)
    if section.code:
        return Sizes(code=section.size)
    return Sizes(data=section.size) if section.writable else Sizes(read_only=section.size)


_LABEL = re.compile(r"^([A-Za-z_]\w*):")
_STACK = (
    (re.compile(r"\bsub[qlw.]*\s+\$(\d+),\s*%[re]sp"), 1),  # x86
    (re.compile(r"\bpush[ql]?\s+%"), 8),
    (re.compile(r"\bsub(?:\.w)?\s+sp,\s*(?:sp,\s*)?#(\d+)\b(?!,)"), 1),  # Arm
    (re.compile(r"\bsub\s+sp,\s*sp,\s*#(\d+),\s*lsl #12"), 4096),
    (re.compile(r"\b(?:stp|str)\s+.*\[sp, #-(\d+)\]!"), 1),
    (re.compile(r"\baddi\s+sp,\s*sp,\s*-(\d+)"), 1),  # RISC-V
)
_LIST = re.compile(r"\b(push(?:\.w)?|vpush|stmdb\s+sp!,)\s*\{([^}]*)\}")
_UPPER = re.compile(r"\blui\s+\w+,\s*(\d+)")
_LOWER = re.compile(r"\baddiw?\s+(?!sp)\w+,\s*\w+,\s*(-?\d+)")
_FAR = re.compile(r"\bsub\s+sp,\s*sp,\s*[a-z]\d")
_WORDS = ("sp", "push", "lui", "addi")
"""What all patterns but labels' have one of: most lines of a kernel have none."""


def stack_bytes(assembly: str) -> int:
    """The most stack that one function of an assembly listing takes, by its prologue; an estimate.

    Reads the subtractions from the stack pointer and the registers that are pushed, for x86, Arm and RISC-V. Calls of
    the C library below are not in it.
    """
    most = current = far = 0
    for line in assembly.splitlines():
        if _LABEL.match(line):
            current = 0
        elif not any(word in line for word in _WORDS):
            continue
        for pattern, unit in _STACK:
            match = pattern.search(line)
            if match:
                current += int(match[1]) * unit if match.groups() else unit
        listed = _LIST.search(line)
        if listed:
            current += _registers(listed[2]) * (8 if listed[1] == "vpush" else 4)
        upper, lower = _UPPER.search(line), _LOWER.search(line)
        far = int(upper[1]) * 4096 if upper else far + int(lower[1]) if lower else far
        if _FAR.search(line):  # RISC-V puts a frame of more than 2 KiB together in a register
            current += far
        most = max(most, current)
    return most


def _registers(text: str) -> int:
    """How many registers a list such as ``r4, r5-r7, lr`` names."""
    count = 0
    for part in text.split(","):
        span = re.fullmatch(r"[a-z](\d+)-[a-z](\d+)", part.strip())
        count += int(span[2]) - int(span[1]) + 1 if span else 1
    return count


__all__ = ["Sizes", "of", "stack_bytes"]
