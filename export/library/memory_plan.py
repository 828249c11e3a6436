"""The static memory plan: where in the arena each buffer of a compiled network lies.

A buffer is needed from the call that writes it first to the call that reads it last; buffers that are never needed
during the same call share memory. Nothing is allocated when the network runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from compress.export.kernels.code import Code
from compress.export.library import liveness, packing


@dataclass(frozen=True)
class MemoryPlan:
    """Where the buffers lie.

    Attributes:
        offsets: buffer -> bytes from the start of the arena; buffers inside the caller's memory aren't there.
        arena_bytes: its size.
        lower_bound_bytes: the most that is held during one call; no plan needs less.
        alignment: in bytes, of the arena's start.
    """

    offsets: Mapping[str, int]
    arena_bytes: int
    lower_bound_bytes: int
    alignment: int


def plan(code: Code) -> MemoryPlan:
    """The smallest arena found for the code's buffers; the same code always gets the same plan.

    Raises:
        ValueError: the code contradicts itself: see :func:`compress.export.library.liveness.blocks`.
    """
    pieces = liveness.blocks(code)
    found, peak, bound = _packed(pieces)
    starts = {piece.name: offset for piece, offset in zip(pieces, found, strict=True)}
    offsets = {
        name: starts[root.name] + root.offset for name, root in liveness.roots(code).items() if root.name in starts
    }
    alignment = max((piece.alignment for piece in pieces), default=1)
    return MemoryPlan(offsets, peak, bound, alignment)


@lru_cache(maxsize=64)  # candidates that differ in bits or values alone have the same blocks
def _packed(pieces: tuple[liveness.Block, ...]) -> tuple[tuple[int, ...], int, int]:
    """Offsets of the blocks, the arena that they take, and its lower bound."""
    bound = liveness.lower_bound(pieces)
    packer = packing.Packer(pieces)
    found = packing.best(packer, bound)
    return tuple(found), packer.peak(found), bound


__all__ = ["MemoryPlan", "plan"]
