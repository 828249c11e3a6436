"""The register block of a convolution: how many pixels, channel vectors and kernel columns one inner loop takes.

Chosen by a small model of a core that, in a cycle, starts one multiplication and one load of 64 bytes, or two of
fewer, and ``ISSUE`` instructions; only ratios matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

from compress.export.kernels.dot import Dot

ISSUE = 4.0
LATENCY = 4.0
"""Cycles from one multiplication to the next into the same accumulator."""
FINISH = 9.0
"""Instructions of an accumulator's epilogue."""
START = 14.0
"""Cycles lost between two blocks."""


@dataclass(frozen=True, slots=True)
class Block:
    """A register block.

    Attributes:
        pixels: of an output row.
        vectors: of output channels.
        taps: kernel columns within one step: their activations are loaded once.
    """

    pixels: int
    vectors: int
    taps: int


def columns(pixels: int, taps: int, stride: int, dilation: int) -> list[int]:
    """The input columns that a block reads, from its first one on."""
    return sorted({p * stride + k * dilation for p in range(pixels) for k in range(taps)})


def registers(dot: Dot, block: Block) -> int:
    """Vector registers that the inner loop holds at once."""
    wide = max(dot.lanes * 4 // 16, 1) if dot.signed else 1  # an accumulator of 8 lanes takes two on Arm
    accumulators = block.pixels * block.vectors * wide
    if dot.streams_weights:
        # Prepared activations, weights, and products that are under way.
        held = 1 if dot.steps <= 2 else 3
        return accumulators + block.pixels * held + 2 * wide + held
    weights = block.vectors * block.taps * dot.operands
    scratch = 0 if dot.steps == 1 else 2  # a product, and the mask of even bytes
    return accumulators + weights + dot.operands + scratch


def cycles(
    dot: Dot, block: Block, width: int, vectors: int, kernel: int, stride: int, dilation: int, steps: int
) -> float:
    """Cycles of one output row.

    Args:
        width: of the row.
        vectors: all channel vectors.
        kernel: its columns.
        steps: kernel rows times channel groups.
    """

    ports = 1.0 if dot.vector_bytes == 64 else 2.0

    def one(pixels: int, count: int) -> float:
        if not pixels or not count:
            return 0.0
        steps_taken = pixels * count * block.taps
        products = steps_taken * dot.steps
        read = len(columns(pixels, block.taps, stride, dilation))
        prepared = 2.0 * read if dot.operands == 2 else 0.0
        loads = read / dot.chunk + count * block.taps
        issue = (steps_taken * dot.issued + read / dot.chunk + prepared + count * block.taps + 2 / dot.chunk) / ISSUE
        step = max(products / ports, loads / ports, issue, block.taps * dot.steps * LATENCY)
        return steps * (kernel / block.taps) * step + FINISH * pixels * count / 2 + START

    full, rest = divmod(width, block.pixels)
    groups, last = divmod(vectors, block.vectors)
    return sum(
        number * (full * one(block.pixels, count) + one(rest, count))
        for number, count in ((groups, block.vectors), (1, last))
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """What a block is chosen for: a strategy by name, and the arguments of :func:`cycles`."""

    dot: str
    width: int
    vectors: int
    kernel: int
    stride: int
    dilation: int
    steps: int


_FIXED: ContextVar[Mapping[Shape, Block]] = ContextVar("_FIXED", default={})  # noqa: B039  # never written to
_ASKED: ContextVar[dict[Shape, Dot] | None] = ContextVar("_ASKED", default=None)


@contextmanager
def fixed(blocks: Mapping[Shape, Block]) -> Iterator[None]:
    """Within it these blocks are taken for their shapes, as they were measured, in place of the model's."""
    token = _FIXED.set(blocks)
    try:
        yield
    finally:
        _FIXED.reset(token)


@contextmanager
def asked() -> Iterator[dict[Shape, Dot]]:
    """The shapes that blocks are chosen for within it."""
    found: dict[Shape, Dot] = {}
    token = _ASKED.set(found)
    try:
        yield found
    finally:
        _ASKED.reset(token)


def choose(dot: Dot, width: int, vectors: int, kernel: int, stride: int, dilation: int, steps: int) -> Block:
    """The block that was measured to be best, where :func:`fixed` has one, else the model's."""
    shape = Shape(f"{type(dot).__name__}{dot.lanes}", width, vectors, kernel, stride, dilation, steps)
    known = _ASKED.get()
    if known is not None:
        known[shape] = dot
    return _FIXED.get().get(shape) or ranked(dot, width, vectors, kernel, stride, dilation, steps)[0]


@lru_cache(maxsize=4096)
def ranked(
    dot: Dot, width: int, vectors: int, kernel: int, stride: int, dilation: int, steps: int
) -> tuple[Block, ...]:
    """The blocks that leave enough registers, those of fewest cycles first; see :func:`cycles`."""
    found: list[tuple[float, int, Block]] = []
    for taps in sorted({1, kernel}):
        if dot.streams_weights and taps > 1:
            continue
        for count in range(1, min(vectors, 8) + 1):
            for pixels in range(1, min(width, 28) + 1):
                block = Block(pixels, count, taps)
                if registers(dot, block) > dot.registers and pixels * count * taps > 1:
                    continue
                cost = cycles(dot, block, width, vectors, kernel, stride, dilation, steps)
                found.append((cost, len(found), block))
    assert found
    return tuple(block for _, _, block in sorted(found, key=lambda each: each[:2]))


__all__ = ["Block", "Shape", "asked", "choose", "columns", "cycles", "fixed", "ranked", "registers"]
