"""When each buffer of a compiled network is needed: intervals of calls, pairs that may share, and the lower bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.export.kernels.code import Call, Code


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of the arena that buffers share through aliases.

    Attributes:
        name: the buffer that the others lie in.
        bytes, alignment: of the whole.
        first, last: the calls, both included, between which it holds something.
        over: blocks that end where this one begins and whose memory it may take over, if both start at the same byte.
    """

    name: str
    bytes: int
    alignment: int
    first: int
    last: int
    over: tuple[str, ...] = ()

    def meets(self, other: Block) -> bool:
        """Whether both hold something during the same call."""
        return self.first <= other.last and other.first <= self.last

    def shares(self, other: Block) -> bool:
        """Whether one may take over the other's memory."""
        return other.name in self.over or self.name in other.over


@dataclass(frozen=True, slots=True)
class Root:
    """Where a buffer lies: ``offset`` bytes behind the start of the buffer ``name``."""

    name: str
    offset: int


def roots(code: Code) -> dict[str, Root]:
    """Each buffer's root, chains of aliases followed.

    Raises:
        ValueError: an alias goes in circles, leaves its root's memory, or moves an end that the caller gives.
    """
    found = {}
    for name, buffer in code.buffers.items():
        root, offset, seen = name, 0, {name}
        while root in code.aliases:
            root, further = code.aliases[root]
            offset += further
            if root in seen or root not in code.buffers:
                raise ValueError(f"the alias of buffer {name!r} leads to {root!r}")
            seen.add(root)
        if root != name and name in (*code.inputs, *code.outputs):
            raise ValueError(f"{name!r} is the caller's memory and can't lie in {root!r}")
        if offset < 0 or (root != name and offset + buffer.bytes > code.buffers[root].bytes):
            raise ValueError(f"buffer {name!r} leaves the memory of {root!r}")
        found[name] = Root(root, offset)
    return found


def blocks(code: Code) -> tuple[Block, ...]:
    """The blocks of the arena, in the order in which they come to life. What no call touches isn't there.

    Raises:
        ValueError: a call reads what nothing has written, or passes a buffer that it neither reads nor writes.
    """
    where = roots(code)
    outside = {*code.inputs, *code.outputs}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    written = set(code.inputs)
    for index, call in enumerate(code.calls):
        _check(call, code)
        for name in call.reads:
            if where[name].name not in written:
                raise ValueError(f"call {index} ({call.kernel.symbol}) reads {name!r}, which nothing has written")
        for name in (*call.reads, *call.writes):
            root = where[name].name
            if root not in outside:
                first.setdefault(root, index)
                last[root] = index
        written.update(where[name].name for name in call.writes)
    over = _takeovers(code, where, first, last)
    alignment = {root: code.buffers[root].alignment for root in first}
    for name, place in where.items():
        own = code.buffers[name].alignment
        if place.name in alignment and place.offset % own == 0:
            alignment[place.name] = max(alignment[place.name], own)
    return tuple(
        Block(root, max(code.buffers[root].bytes, 1), alignment[root], start, last[root], tuple(over.get(root, ())))
        for root, start in sorted(first.items(), key=lambda item: (item[1], item[0]))
    )


def lower_bound(pieces: Sequence[Block]) -> int:
    """Bytes that no plan can do without: the most that is held during one call, alignment left out.

    Of two blocks one of which takes over the other's memory, only the larger counts during the call at which it does.
    """
    most = 0
    for index in range(max((piece.last for piece in pieces), default=-1) + 1):
        alive = [piece for piece in pieces if piece.first <= index <= piece.last]
        sizes = {piece.name: piece.bytes for piece in alive}
        new = [piece for piece in alive if piece.first == index and piece.over]
        most = max(most, sum(sizes.values()) - _saved(new, sizes))
    return most


def _saved(new: Sequence[Block], sizes: Mapping[str, int]) -> int:
    """The most bytes that takeovers save at one call: each block takes over at most one, each is taken over once."""
    if not new:
        return 0
    head, rest = new[0], new[1:]
    best = _saved(rest, sizes)
    for name in head.over:
        if name in sizes:
            left = {other: size for other, size in sizes.items() if other != name}
            best = max(best, min(sizes[name], head.bytes) + _saved(rest, left))
    return best


def _check(call: Call, code: Code) -> None:
    named = {argument for argument in call.arguments if isinstance(argument, str)}
    touched = {*call.reads, *call.writes}
    if not named <= touched or not touched <= set(code.buffers):
        odd = sorted((named - touched) | (touched - set(code.buffers)))
        raise ValueError(f"the call of {call.kernel.symbol} says nothing of what it does with {odd[0]!r}")
    if any(name in code.inputs for name in call.writes):
        raise ValueError(f"the call of {call.kernel.symbol} writes into the network's input")


def _takeovers(
    code: Code, where: Mapping[str, Root], first: Mapping[str, int], last: Mapping[str, int]
) -> dict[str, list[str]]:
    """Block -> blocks that it may take over: both wholly, where one dies in the call that makes the other."""
    found: dict[str, list[str]] = {}
    for index, call in enumerate(code.calls):
        for target, source in call.in_place:
            new, old = where[target], where[source]
            whole = new.offset == old.offset == 0 and new.name in first and old.name in first
            if not whole or first[new.name] != index or last[old.name] != index or new.name == old.name:
                continue
            alone = [n for n in (*call.reads, *call.writes) if where[n].name in (new.name, old.name)]
            if set(alone) == {target, source}:
                found.setdefault(new.name, []).append(old.name)
    return found


__all__ = ["Block", "Root", "blocks", "lower_bound", "roots"]
