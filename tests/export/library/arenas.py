"""Random codes whose kernels do nothing, and a check of memory plans that knows nothing of how they are made."""

from __future__ import annotations

import numpy as np

from compress.export.kernels.code import Buffer, Call, Code, Kernel
from compress.export.library.memory_plan import MemoryPlan
from compress.integer.program import Tensor

NOTHING = Kernel("nothing", None)


def code_of(calls, sizes, aliases=None, alignments=None, inputs=("in",), outputs=("out",)) -> Code:
    """A code from (reads, writes, in-place pairs) triples and bytes by buffer."""
    buffers = {name: Buffer(name, size, (alignments or {}).get(name, 4)) for name, size in sizes.items()}
    made = tuple(Call(NOTHING, (*reads, *writes), reads, writes, pairs) for reads, writes, pairs in calls)
    ends = {name: Tensor(name, (sizes[name],), "int8") for name in (*inputs, *outputs)}
    return Code(buffers, made, (), inputs, outputs, ends, aliases or {})


def random_code(seed: int, count: int) -> Code:
    """A network of ``count`` operators: chains, branches that meet again, scratch memory, views and joined parts."""
    draw = np.random.default_rng(seed)
    sizes: dict[str, int] = {"in": int(draw.integers(1, 300))}
    aliases: dict[str, tuple[str, int]] = {}
    alignments: dict[str, int] = {}
    calls = []
    alive = ["in"]
    for index in range(count):
        kind = draw.random()
        reads = tuple(dict.fromkeys(alive[-1 - int(draw.integers(min(4, len(alive))))] for _ in range(2)))
        name = f"t{index}"
        if kind < 0.12 and reads[0] != "in":  # a view
            root, offset = aliases.get(reads[0], (reads[0], 0))
            aliases[name], sizes[name] = (root, offset), sizes[reads[0]]
        elif kind < 0.25:  # two parts of one buffer, written one after the other
            halves = [int(draw.integers(1, 40)) * 4 for _ in range(2)]
            sizes[name] = sum(halves)
            for part, (offset, size) in enumerate(zip((0, halves[0]), halves, strict=True)):
                sizes[f"{name}.{part}"], aliases[f"{name}.{part}"] = size, (name, offset)
                calls.append((reads, (f"{name}.{part}",), ()))
        else:
            same = kind < 0.6 and reads[0] != "in"
            sizes[name] = sizes[reads[0]] if same else int(draw.integers(1, 400))
            writes: tuple[str, ...] = (name,)
            if draw.random() < 0.3:
                sizes[f"{name}.scratch"] = int(draw.integers(1, 200))
                writes = (name, f"{name}.scratch")
            pairs = tuple((name, read) for read in reads if read != "in" and sizes[read] == sizes[name])
            calls.append((reads, writes, pairs if same else ()))
        alignments[name] = int(draw.choice([1, 4, 8, 16]))
        alive.append(name)
    sizes["out"] = 10
    calls.append((tuple(dict.fromkeys(alive[-2:])), ("out",), ()))
    return code_of(calls, sizes, aliases, alignments)


def wrong(code: Code, plan: MemoryPlan) -> list[str]:
    """What is wrong with a plan, found by running the calls: each byte remembers whose it is.

    A call must find in every byte that it reads what was written there for that buffer (a byte nobody wrote may be
    read and ignored), and must not write where it reads or writes another buffer, unless it says it can.
    """
    found = []
    owner = np.full(plan.arena_bytes, -1)
    names = {name: index for index, name in enumerate(code.buffers)}
    filled: dict[str, np.ndarray] = {}

    def base(name: str) -> str:
        while name in code.aliases:
            name = code.aliases[name][0]
        return name

    def span(name: str) -> slice:
        start = plan.offsets[name]
        assert start in range(plan.arena_bytes - code.buffers[name].bytes + 1), f"{name} leaves the arena"
        return slice(start, start + code.buffers[name].bytes)

    for name, offset in plan.offsets.items():
        if name not in code.aliases:
            assert offset % code.buffers[name].alignment == 0, f"{name} isn't aligned"
        else:
            other, distance = code.aliases[name]
            if other in plan.offsets:
                assert offset == plan.offsets[other] + distance
    for index, call in enumerate(code.calls):
        inside = [n for n in (*call.reads, *call.writes) if base(n) not in (*code.inputs, *code.outputs)]
        for name in call.reads:
            if name in inside:
                mine = filled.get(base(name), np.zeros(plan.arena_bytes, bool))[span(name)]
                if (owner[span(name)][mine] != names[base(name)]).any():
                    found.append(f"call {index}: {name} has been overwritten")
        for name in call.writes:
            for other in inside:
                if name in inside and base(other) != base(name):
                    a, b = span(name), span(other)
                    may = (name, other) in call.in_place and a.start == b.start
                    may = may or ((other, name) in call.in_place and a.start == b.start)
                    if a.start < b.stop and b.start < a.stop and not may:
                        found.append(f"call {index}: {name} and {other} overlap")
        for name in call.writes:
            if name in inside:
                owner[span(name)] = names[base(name)]
                filled.setdefault(base(name), np.zeros(plan.arena_bytes, bool))[span(name)] = True
    return found
