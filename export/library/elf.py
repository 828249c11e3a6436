"""Reading ELF files that may be damaged: sections and what they take in memory, without running anything."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}
RELOCATABLE, EXECUTABLE, SHARED = 1, 2, 3
_NOBITS = 8
_GLOBAL, _WEAK = 1, 2
_ALLOC, _WRITE, _CODE = 2, 1, 4


class Damaged(ValueError):
    """The bytes aren't a whole ELF file."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section: where it lies in the file, and what it takes in memory.

    Attributes:
        loaded: it is in the device's memory.
        code, writable, empty: holds instructions; may be written; is zero at the start and not in the file.
    """

    name: str
    offset: int
    size: int
    loaded: bool
    code: bool
    writable: bool
    empty: bool


@dataclass(frozen=True)
class Elf:
    """An ELF file.

    Attributes:
        machine: ``x86_64``, ``aarch64``, ``arm``, ``riscv``, or the number.
        bits: 32 or 64.
        kind: :data:`RELOCATABLE`, :data:`EXECUTABLE` or :data:`SHARED`.
    """

    machine: str
    bits: int
    kind: int
    sections: tuple[Section, ...]
    content: bytes

    def symbols(self) -> tuple[str, ...]:
        """The names that the file defines for others, in order.

        Raises:
            Damaged: the table of symbols is broken.
        """
        found = []
        layout, size = ("<IBBHQQ", 24) if self.bits == 64 else ("<IIIBBH", 16)
        table, names = self.bytes_of(".symtab") or b"", self.bytes_of(".strtab") or b""
        if len(table) % size:
            raise Damaged("its table of symbols is broken")
        for fields in struct.iter_unpack(layout, table):
            info, section = (fields[1], fields[3]) if self.bits == 64 else (fields[3], fields[5])
            if info >> 4 in (_GLOBAL, _WEAK) and section != 0:
                found.append(_text(names, fields[0]))
        return tuple(found)

    def bytes_of(self, name: str) -> bytes | None:
        """The content of a section, or None if there is none of that name."""
        for section in self.sections:
            if section.name == name and not section.empty:
                return self.content[section.offset : section.offset + section.size]
        return None


def read(content: bytes) -> Elf:
    """The sections of an ELF file, each of which lies inside the file.

    Raises:
        Damaged: it is cut off, or no little-endian ELF file.
    """
    if content[:4] != b"\x7fELF" or len(content) < 52:
        raise Damaged("it is no ELF file")
    bits = {1: 32, 2: 64}.get(content[4], 0)
    if not bits or content[5] != 1:
        raise Damaged("it is no little-endian ELF file")
    try:
        kind, machine = struct.unpack_from("<HH", content, 16)
        where = "<QQQIHHHHHH" if bits == 64 else "<IIIIHHHHHH"
        fields = struct.unpack_from(where, content, 24)
        table, size, count, names = fields[2], *fields[7:]
        _segments(content, bits, fields)
        raw = [_header(content, bits, table + index * size) for index in range(count)]
        if table + count * size > len(content) or (count and names >= count):
            raise Damaged("it is cut off")
        for _, kind_of, _, offset, length in raw:
            if kind_of != _NOBITS and offset + length > len(content):
                raise Damaged("it is cut off")
    except (struct.error, OverflowError):
        raise Damaged("it is cut off") from None
    text = content[raw[names][3] : raw[names][3] + raw[names][4]] if raw else b""
    sections = tuple(
        Section(
            _text(text, name),
            offset,
            length,
            bool(flags & _ALLOC),
            bool(flags & _CODE),
            bool(flags & _WRITE),
            kind_of == _NOBITS,
        )
        for name, kind_of, flags, offset, length in raw
    )
    return Elf(MACHINES.get(machine, str(machine)), bits, kind, sections, content)


def _segments(content: bytes, bits: int, fields: tuple[int, ...]) -> None:
    """Every segment has to lie inside the file: a loader would fault where one doesn't."""
    table, size, count = fields[1], fields[5], fields[6]
    for index in range(count):
        if bits == 64:
            offset, _, _, length = struct.unpack_from("<QQQQ", content, table + index * size + 8)
        else:
            offset, _, _, length = struct.unpack_from("<IIII", content, table + index * size + 4)
        if offset + length > len(content):
            raise Damaged("it is cut off")


def _header(content: bytes, bits: int, at: int) -> tuple[int, int, int, int, int]:
    """Name, type, flags, offset, size of a section."""
    layout = "<IIQQQQ" if bits == 64 else "<IIIIII"
    name, kind, flags, _, offset, size = struct.unpack_from(layout, content, at)
    return name, kind, flags, offset, size


def _text(table: bytes, at: int) -> str:
    return table[at : table.find(b"\0", at)].decode("ascii", "replace")


def archive(members: Sequence[tuple[str, bytes]]) -> bytes:
    """A static archive of object files with the index of symbols that linkers want; no dates, no owners.

    Args:
        members: (name of at most 15 characters, content).
    """
    listed = [(name, content, read(content).symbols()) for name, content in members]
    count = sum(len(symbols) for _, _, symbols in listed)
    names = b"".join(symbol.encode() + b"\0" for _, _, symbols in listed for symbol in symbols)
    names += b"\0" * (len(names) % 2)
    at = len(_MAGIC) + _HEADER + 4 + 4 * count + len(names)
    offsets, body = [], b""
    for name, content, symbols in listed:
        offsets += [at + len(body)] * len(symbols)
        body += _member(f"{name}/", content)
    return _MAGIC + _member("/", struct.pack(f">{count + 1}I", count, *offsets) + names) + body


_MAGIC, _HEADER = b"!<arch>\n", 60


def _member(name: str, content: bytes) -> bytes:
    if len(name) > 16:
        raise ValueError(f"{name!r} is too long for a member of an archive")
    mode = 0 if name == "/" else 644
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{mode:<8}{len(content):<10}`\n".encode()
    return header + content + b"\n" * (len(content) % 2)


__all__ = ["EXECUTABLE", "RELOCATABLE", "SHARED", "Damaged", "Elf", "Section", "archive", "read"]
