"""Packing blocks into an arena: greedy orders, an exact search for a few blocks, an improving one for more.

Dynamic storage allocation is NP-hard (Garey and Johnson, SR2). Nearly every network is packed at the lower bound of
its liveness by one of the greedy orders; where none does, what follows looks for better within a fixed number of
steps, so that the same network always gets the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from compress.export.library.liveness import Block

Offsets = list[int]
FEW = 12
"""Blocks up to which the search is exact, if it ends within :data:`NODES`."""
NODES = 20_000
ROUNDS = 400
"""Orders that the improving search tries."""


class Packer:
    """Places blocks one after the other.

    Attributes:
        blocks: as :func:`compress.export.library.liveness.blocks` lists them.
        against: for each block, the others that it can't overlap.
        beside: for each block, the others that it may overlap if both start at the same byte.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = tuple(blocks)
        self.sizes = [block.bytes for block in blocks]
        count = range(len(blocks))
        meeting = [[j for j in count if j != i and blocks[i].meets(blocks[j])] for i in count]
        self.against = [[j for j in meeting[i] if not blocks[i].shares(blocks[j])] for i in count]
        self.beside = [[j for j in meeting[i] if blocks[i].shares(blocks[j])] for i in count]

    def fits(self, i: int, offset: int, offsets: Offsets) -> bool:
        """Whether block ``i`` may start at ``offset`` among those placed; an offset of -1 is not placed."""
        end = offset + self.sizes[i]
        for j in self.against[i]:
            if 0 <= offsets[j] < end and offset < offsets[j] + self.sizes[j]:
                return False
        for j in self.beside[i]:
            if 0 <= offsets[j] < end and offset < offsets[j] + self.sizes[j] and offsets[j] != offset:
                return False
        return True

    def places(self, i: int, offsets: Offsets) -> list[int]:
        """Where block ``i`` fits: at the bottom, on top of others, on the memory that it takes over; lowest first."""
        align = self.blocks[i].alignment
        tops = [offsets[j] + self.sizes[j] for j in (*self.against[i], *self.beside[i]) if offsets[j] >= 0]
        starts = [offsets[j] for j in self.beside[i] if offsets[j] >= 0 and offsets[j] % align == 0]
        tried = sorted({0, *(-(-top // align) * align for top in tops), *starts})
        return [offset for offset in tried if self.fits(i, offset, offsets)]

    def peak(self, offsets: Offsets) -> int:
        """Bytes of the arena."""
        return max((offset + size for offset, size in zip(offsets, self.sizes, strict=True)), default=0)

    def pack(self, order: Sequence[int], choose: Choice) -> Offsets:
        """Place all blocks in ``order``."""
        offsets = [-1] * len(self.blocks)
        for i in order:
            offsets[i] = choose(self, i, self.places(i, offsets), offsets)
        return offsets


Choice = Callable[[Packer, int, list[int], Offsets], int]


def lowest(packer: Packer, i: int, places: list[int], offsets: Offsets) -> int:
    """The lowest place."""
    return places[0]


def tightest(packer: Packer, i: int, places: list[int], offsets: Offsets) -> int:
    """Best fit: the place with the least room above it, those at the arena's end last."""

    def room(place: int) -> float:
        above = [offsets[j] for j in packer.against[i] if offsets[j] > place]
        return min(above) - place if above else float("inf")

    return min(places, key=lambda place: (room(place), place))


def taking_over(packer: Packer, i: int, places: list[int], offsets: Offsets) -> int:
    """On the memory that it takes over if possible, else the lowest place."""
    starts = {offsets[j] for j in packer.beside[i]}
    return next((place for place in places if place in starts), places[0])


def orders(packer: Packer) -> list[list[int]]:
    """Greedy orders: by size, lifetime, both, start, end, and those alive at the fullest call first."""
    blocks, count = packer.blocks, range(len(packer.blocks))
    life = [block.last - block.first + 1 for block in blocks]
    load = {
        index: sum(block.bytes for block in blocks if block.first <= index <= block.last)
        for index in range(max((block.last for block in blocks), default=0) + 1)
    }
    full = [max(load[index] for index in range(block.first, block.last + 1)) for block in blocks]
    keys: list[Callable[[int], tuple[float, ...]]] = [
        lambda i: (-blocks[i].bytes, -life[i], i),
        lambda i: (-life[i], -blocks[i].bytes, i),
        lambda i: (-blocks[i].bytes * life[i], i),
        lambda i: (blocks[i].first, -blocks[i].bytes, i),
        lambda i: (-blocks[i].last, -blocks[i].bytes, i),
        lambda i: (-full[i], -blocks[i].bytes, i),
        lambda i: (-full[i], -life[i], -blocks[i].bytes, i),
    ]
    return [sorted(count, key=key) for key in keys]


def best(packer: Packer, bound: int) -> Offsets:
    """The best packing found: offsets in bytes, one a block. Stops at ``bound``."""
    found: list[tuple[Offsets, list[int]]] = []
    for order in orders(packer):
        for choose in (taking_over, lowest, tightest):
            found.append((packer.pack(order, choose), order))
            if packer.peak(found[-1][0]) <= bound:
                return found[-1][0]
    offsets, order = min(found, key=lambda pair: packer.peak(pair[0]))
    if len(packer.blocks) <= FEW:
        return exact(packer, offsets, bound)[0]
    return improved(packer, offsets, order, bound)


def exact(packer: Packer, known: Offsets, bound: int, nodes: int = NODES) -> tuple[Offsets, bool]:
    """Branch and bound over the orders of rising offsets; whether it ended is the second result.

    In an optimal packing that is pushed down as far as it goes every block lies at the bottom or on another one, so
    placing the blocks in the order of their offsets, each as low as it fits, finds it. A block that may take over
    memory may have to stay higher: for those every place is tried.
    """
    count = len(packer.blocks)
    best, peak, left = list(known), packer.peak(known), nodes
    held = [range(b.first + bool(b.over), b.last + 1) for b in packer.blocks]
    # Bytes that are still to be placed of what is held during each call.
    waiting = [0] * (max((block.last for block in packer.blocks), default=0) + 1)
    for size, calls in zip(packer.sizes, held, strict=True):
        for call in calls:
            waiting[call] += size

    def descend(offsets: Offsets, floor: int, placed: int) -> None:
        nonlocal best, peak, left
        if placed == count:
            best, peak = list(offsets), packer.peak(offsets)
            return
        if floor + max(waiting) >= peak:
            return
        options = []
        for i in range(count):
            if offsets[i] < 0:
                places = packer.places(i, offsets)
                options += [(place, i) for place in (places if packer.beside[i] else places[:1]) if place >= floor]
        for place, i in sorted(options, key=lambda option: (option[0], -packer.sizes[option[1]], option[1])):
            if left <= 0 or peak <= bound:
                return
            if place + packer.sizes[i] < peak:
                left -= 1
                offsets[i] = place
                for call in held[i]:
                    waiting[call] -= packer.sizes[i]
                descend(offsets, place, placed + 1)
                offsets[i] = -1
                for call in held[i]:
                    waiting[call] += packer.sizes[i]

    descend([-1] * count, 0, 0)
    return best, left > 0


def improved(packer: Packer, known: Offsets, order: Sequence[int], bound: int, rounds: int = ROUNDS) -> Offsets:
    """Tries orders in which blocks at the top of the arena come earlier; never worse than ``known``."""
    generator = np.random.default_rng(0)
    best, peak, current = known, packer.peak(known), list(order)
    for _ in range(rounds):
        tops = [i for i in current if best[i] + packer.sizes[i] == peak]
        moved = tops[int(generator.integers(len(tops)))]
        if generator.random() < 0.5:
            moved = current[int(generator.integers(len(current)))]
        tried = [i for i in current if i != moved]
        tried.insert(int(generator.integers(current.index(moved) + 1)), moved)
        choose = (taking_over, lowest, tightest)[int(generator.integers(3))]
        offsets = packer.pack(tried, choose)
        reached = packer.peak(offsets)
        if reached <= peak:
            best, peak, current = offsets, reached, tried
            if peak <= bound:
                break
    return best


__all__ = ["Packer", "best", "exact", "improved"]
