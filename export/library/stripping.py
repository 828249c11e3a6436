"""Object files without what no program needs: the code generator's line tables, and functions that nothing refers to.

TVM's code generator writes debug information of its own intermediate code into every object, more of it than there
are instructions, and two conversions of half floats. Linkers drop both if one asks; what ships shouldn't rely on it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compress.export.library.elf import Damaged, read

UNUSED = ".text.tvm.fp16.conv"
"""The section of the conversions of half floats."""
_SYMTAB, _RELA, _NOBITS, _REL = 2, 4, 8, 9
_LINK_ORDER = 0x80
"""Flag of a section that belongs to another one: Arm's tables for unwinding."""


@dataclass(frozen=True, slots=True)
class _Words:
    """How a class of ELF files writes its structures: formats, and where fields stand in them."""

    header: str
    section: str
    symbol: str
    shndx: int
    symbol_shift: int

    @property
    def word(self) -> str:
        return "<Q" if self.symbol_shift == 32 else "<I"


_FORMATS = {
    64: _Words("<16sHHIQQQIHHHHHH", "<IIQQQQIIQQ", "<IBBHQQ", 3, 32),
    32: _Words("<16sHHIIIIIHHHHHH", "<IIIIIIIIII", "<IIIBBH", 5, 8),
}


def stripped(content: bytes) -> bytes:
    """A relocatable object without debug information and unused conversions.

    Raises:
        Damaged: it is no relocatable object file.
    """
    file = read(content)
    words = _FORMATS[file.bits]
    header = list(struct.unpack_from(words.header, content))
    count, size = header[12], struct.calcsize(words.section)
    sections = [list(struct.unpack_from(words.section, content, header[6] + i * size)) for i in range(count)]
    data = [b"" if s[1] == _NOBITS else content[s[4] : s[4] + s[5]] for s in sections]
    names = [section.name for section in file.sections]
    tables = [i for i, s in enumerate(sections) if s[1] == _SYMTAB]
    if len(tables) != 1:
        raise Damaged("it has no table of symbols")
    table = tables[0]
    symbols = [list(fields) for fields in struct.iter_unpack(words.symbol, data[table])]
    gone = {i for i, name in enumerate(names) if name.startswith(".debug")}
    unused = {i for i, name in enumerate(names) if name == UNUSED}
    unused |= {i for i, s in enumerate(sections) if s[2] & _LINK_ORDER and s[6] in unused}
    moving = {i: s[7] for i, s in enumerate(sections) if s[1] in (_RELA, _REL)}
    others = [(data[i], sections[i][9]) for i, about in moving.items() if about not in gone | unused]
    if not any(symbols[k][words.shndx] in unused for table_of, each in others for k in _named(table_of, each, words)):
        gone |= unused
    gone |= {i for i, about in moving.items() if about in gone}
    kept = [i for i in range(count) if i not in gone]
    place = {old: new for new, old in enumerate(kept)}
    symbol_place: dict[int, int] = {}
    left: list[list[int]] = []
    for index, fields in enumerate(symbols):
        if fields[words.shndx] in gone:
            continue
        symbol_place[index] = len(left)
        left.append(
            [*fields[: words.shndx], place.get(fields[words.shndx], fields[words.shndx]), *fields[words.shndx + 1 :]]
        )
    data[table] = b"".join(struct.pack(words.symbol, *fields) for fields in left)
    sections[table][7] = sum(1 for index in symbol_place if index < sections[table][7])
    for i in kept:
        kind = sections[i][1]
        if kind in (_RELA, _REL):
            data[i] = _renumbered(data[i], sections[i][9], symbol_place, words)
            sections[i][7] = place[sections[i][7]]
        sections[i][6] = place.get(sections[i][6], 0)
    return _written(header, [sections[i] for i in kept], [data[i] for i in kept], place[header[13]], words)


def _named(table: bytes, size: int, words: _Words) -> Iterator[int]:
    """The symbols' numbers in a table of relocations."""
    for at in range(struct.calcsize(words.word), len(table), size):
        yield struct.unpack_from(words.word, table, at)[0] >> words.symbol_shift


def _renumbered(table: bytes, size: int, places: dict[int, int], words: _Words) -> bytes:
    """A table of relocations with the symbols' new numbers."""
    made = bytearray(table)
    shift = words.symbol_shift
    for at in range(0, len(table), size):
        where = at + struct.calcsize(words.word)
        info = struct.unpack_from(words.word, table, where)[0]
        struct.pack_into(words.word, made, where, places[info >> shift] << shift | info & ((1 << shift) - 1))
    return bytes(made)


def _written(
    header: list[int], sections: Sequence[list[int]], data: Sequence[bytes], names: int, words: _Words
) -> bytes:
    """The file of these sections."""
    out = bytearray(struct.calcsize(words.header))
    for section, content in zip(sections, data, strict=True):
        if section[1] != 0:
            out += bytes(-len(out) % max(section[8], 1))
            section[4] = len(out)
            if section[1] != _NOBITS:
                section[5] = len(content)
                out += content
    out += bytes(-len(out) % 8)
    header[6], header[12], header[13] = len(out), len(sections), names
    out[: struct.calcsize(words.header)] = struct.pack(words.header, *header)
    return bytes(out) + b"".join(struct.pack(words.section, *section) for section in sections)


__all__ = ["stripped"]
