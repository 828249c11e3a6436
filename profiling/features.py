"""What an operator costs, as terms that a calibration gives each a price in seconds: it computes, it moves, it starts.

A calibrated latency is a sum over the operators of a network, each with the operators that are fused into it:

    t = price[run] + price[input] * n + price[output] * m
        + sum over operators o and terms j of price[kind(o), j] * term_j(o)

with prices of at least 0, so that each term is time spent on something that has a name, and what bounds an operator is
the sort of term that takes most of its time. Terms depend on an operator's sizes alone; what a processor makes of them
(vectors, threads, caches) is in the prices and in the terms' shapes: multiply-accumulates of channels filled up to
whole vectors, work at an image's borders, where float kernels take a pixel at a time, work up to a bound for what is
not yet fast when it is small, weights beyond what a cache holds, images that are reordered
(:mod:`compress.profiling.layouts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from compress.graph.operators import Operator
from compress.profiling import layouts

VERSION = 3
"""Of these terms: prices of another version's mean something else."""

Bound = Literal["compute", "memory", "launch"]
VECTOR, STEP = 16, 4
"""Channels that kernels fill up: outputs to a vector, inputs to what one dot product instruction takes."""
CACHED_WEIGHTS = 256 << 10
"""Weights that stay in a near cache beside activations; more come from a farther one."""
CACHED_IMAGE = 1 << 20
"""Bytes of an image that a core's cache holds; more come from a farther one."""

TERMS: Mapping[str, Bound] = {
    "launch": "launch",
    "macs": "compute",
    "out_macs": "compute",
    "filled_macs": "compute",
    "paired_macs": "compute",
    "small_macs": "compute",
    "tiles": "compute",
    "edges": "compute",
    "edge_macs": "compute",
    "border_macs": "compute",
    "strided_macs": "compute",
    "taps": "memory",
    "patches": "memory",
    "read": "memory",
    "written": "memory",
    "far_read": "memory",
    "far_written": "memory",
    "weights": "memory",
    "far_weights": "memory",
    "added": "memory",
    "curved": "compute",
    "reorders 8": "launch",
    "reordered 8": "memory",
    "reorders 16": "launch",
    "reordered 16": "memory",
    "even_macs": "compute",
    "pairs": "compute",
    "segments": "compute",
    "unpacked": "memory",
    "halos": "memory",
}
"""Term -> what it is time for."""
COUNTED = frozenset({"even_macs", "pairs", "segments", "unpacked", "halos"})
"""Terms of kernels that take two pixels of a row by two channels (depthwise four) at a time, with the weights unpacked
anew for every so many pixels. They are fitted to counts alone: measured times can't tell them from the others."""
STRIDED = 1.5
"""How many times as much as it writes a depthwise convolution reads whose stride is above 1: float kernels that gather
patches take such ones element by element."""
SHARED = frozenset({"curved"} | {f"{what} {block}" for block in layouts.BLOCKS for what in ("reorders", "reordered")})
"""Terms that cost the same whatever kind of kernel they stand with."""
BLOCK_PIXELS = 128
"""Pixels for which weights are unpacked once."""
BYTE = 8
"""Bits of a weight that kernels read without unpacking."""
UNPACKED = frozenset({"launch", "filled_macs", "tiles", "weights"})
"""What unpacking may be proportional to."""
SMALL = 1 << 17
"""Multiply-accumulates up to which small operators don't reach full speed."""
RUN, INPUT, OUTPUT = "run", "input", "output"
"""What a call costs, and each element of the network's input (n) and output (m), float32 in the file's order."""
ELEMENTWISE = frozenset({"add", "sub", "mul", "div", "maximum", "minimum"})
POOLS = frozenset({"max_pool2d", "avg_pool2d", "max_pool1d", "avg_pool1d"})
MEANS = frozenset({"adaptive_avg_pool2d", "mean", "sum", "amax", "adaptive_max_pool2d"})
CURVED = frozenset({"silu", "sigmoid", "hardswish", "hardsigmoid", "gelu", "tanh", "elu", "mish", "softplus"})


@dataclass(frozen=True, slots=True)
class Work:
    """A group of operators that runs as one.

    Attributes:
        operator: the one that gives the group its name.
        read: elements that it reads from outside, each tensor once.
        written: elements that it makes.
        kinds: of the operators that are fused into it.
        weight_bits: as the kernel reads them.
        reordered: elements of each tensor that is reordered before it, for each of :data:`layouts.BLOCKS`.
    """

    operator: Operator
    read: int
    written: int
    kinds: tuple[str, ...] = ()
    weight_bits: int = 32
    reordered: tuple[tuple[int, ...], ...] = ()


def misaligned(operator: Operator, kind: str) -> bool:
    """Whether a convolution's input channels fill no whole steps, so that runtimes leave blocked layouts, or copy."""
    if kind == "depthwise":
        return operator.in_channels % STEP != 0
    inner = operator.in_channels // operator.groups
    return kind in ("dense", "pointwise", "grouped") and inner > VECTOR and inner % STEP != 0


def kernel_kind(operator: Operator) -> str:
    """The kind of kernel that computes an operator."""
    if operator.weights and operator.in_channels:
        if operator.kind == "linear" or operator.macs <= operator.weights:
            return "linear"
        if operator.groups > 1:
            return "depthwise" if operator.groups == operator.in_channels else "grouped"
        return "pointwise" if operator.weights == operator.in_channels * operator.out_channels else "dense"
    if operator.kind in ELEMENTWISE:
        return "elementwise"
    if operator.kind in POOLS:
        return "pool"
    return "mean" if operator.kind in MEANS else "other"


def terms(work: Work) -> dict[str, float]:
    """The terms of one group, by name; those that are 0 are left out."""
    o, kind = work.operator, kernel_kind(work.operator)
    element = 4 if work.weight_bits > BYTE else 1
    found: dict[str, float] = {
        "launch": 1.0,
        "read": float(work.read),
        "written": float(work.written),
        "far_read": max(0.0, float(element * work.read - CACHED_IMAGE)),
        "far_written": max(0.0, float(element * work.written - CACHED_IMAGE)),
    }
    if kind in ("elementwise", "pool", "mean", "other"):
        found["macs"] = float(o.macs)
    else:
        pixels = o.macs / o.weights
        kernel = o.weights * o.groups / (o.in_channels * o.out_channels)
        inner, outer = o.in_channels / o.groups, o.out_channels / o.groups
        vectors = -(-o.out_channels // VECTOR) if kind == "depthwise" else o.groups * -(-outer // VECTOR)
        pairs = vectors / 2 if kind == "depthwise" else o.groups * -(-outer // (2 * VECTOR))
        steps = 1.0 if kind == "depthwise" else -(-inner // STEP) * STEP
        filled = pixels * kernel * steps * vectors * VECTOR
        weight_bytes = o.weights * work.weight_bits / 8
        last = (o.out_channels if kind == "depthwise" else round(outer)) % VECTOR
        found |= {
            "macs": float(o.macs),
            "out_macs": pixels * kernel * (1 if kind == "depthwise" else inner) * vectors * VECTOR,
            "filled_macs": filled,
            "paired_macs": pixels * kernel * steps * pairs * 2 * VECTOR,
            "small_macs": min(filled, float(SMALL)),
            "tiles": pixels * vectors,
            "edges": pixels * (last // STEP + last % STEP) * (1 if kind == "depthwise" else o.groups),
            "weights": weight_bytes,
            "far_weights": max(0.0, weight_bytes - CACHED_WEIGHTS),
        }
        if work.weight_bits > BYTE:
            found["border_macs"] = filled * min(1.0, (kernel**0.5 - 1) / max(1.0, pixels**0.5))
            if kind == "depthwise" and work.read >= STRIDED * work.written:
                found["strided_macs"] = float(o.macs)
        if kind == "depthwise":
            found["edge_macs"] = pixels * kernel * last
        else:
            found |= {"patches": pixels * kernel * inner * o.groups, "taps": pixels * kernel * o.groups}
        found |= _of_pairs(o, kind, pixels, kernel)
    if o.kind not in ELEMENTWISE:
        found["added"] = float(work.written * sum(each in ELEMENTWISE for each in work.kinds))
    found["curved"] = float(work.written * sum(each in CURVED for each in (*work.kinds, o.kind)))
    for block, moved in zip(layouts.BLOCKS, work.reordered, strict=False):
        found |= {f"reorders {block}": float(len(moved)), f"reordered {block}": float(sum(moved))}
    return {name: value for name, value in found.items() if value}


def _of_pairs(o: Operator, kind: str, pixels: float, kernel: float) -> dict[str, float]:
    """The terms of :data:`COUNTED`; images and kernels are taken to be square."""
    side, taps = pixels**0.5, kernel**0.5
    width = max(1, round(side))
    columns = pixels * -(-width // 2) / width
    blocks = -(-pixels // BLOCK_PIXELS)
    if kind == "depthwise":
        channels, inputs = -(-o.out_channels // STEP), taps
        even = columns * 2 * kernel * channels * STEP
    else:
        own = -(-o.in_channels // o.groups // 2) * 2
        channels, inputs = o.groups * -(-o.out_channels // o.groups // 2), -(-round(taps * own) // STEP) * STEP
        even = columns * 2 * taps * inputs * channels * 2
    return {
        "even_macs": even,
        "pairs": columns * channels,
        "segments": columns * channels * taps,
        "unpacked": o.weights * blocks,
        "halos": side * o.in_channels * max(0.0, taps - 1) * blocks,
    }


def named(work: Work) -> dict[str, float]:
    """The terms of one group by the names that prices have: ``kind.term``, and some of them a second time.

    ``kind misaligned.term`` is what misaligned channels cost, on top in float and altogether in integers, and ``kind
    narrow.term`` what weights of fewer than 8 bits cost on top where kernels unpack them. Curves cost the same behind
    every kind of kernel, reordering before it.
    """
    kind = kernel_kind(work.operator)
    odd, found = misaligned(work.operator, kind), {}
    for name, value in terms(work).items():
        if name in SHARED:
            found[name] = value
            continue
        if odd:
            found[f"{kind} misaligned.{name}"] = value
        if not odd or work.weight_bits > BYTE:
            found[f"{kind}.{name}"] = value
        if work.weight_bits < BYTE and name in UNPACKED and work.operator.weights:
            found[f"{kind} narrow.{name}"] = value
    return found


def counted(price: str) -> bool:
    """Whether a price's name is that of a term of :data:`COUNTED`."""
    return price.rpartition(".")[2] in COUNTED


def bound_of(price: str) -> Bound:
    """What the time behind a price's name is spent on."""
    return "launch" if price == RUN else "memory" if price in (INPUT, OUTPUT) else TERMS[price.rpartition(".")[2]]


__all__ = [
    "INPUT",
    "OUTPUT",
    "RUN",
    "VERSION",
    "Work",
    "bound_of",
    "counted",
    "kernel_kind",
    "misaligned",
    "named",
    "terms",
]
