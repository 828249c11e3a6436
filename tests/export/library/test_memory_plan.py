"""Memory plans: a check by running the calls, an exhaustive search, and the lower bound."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from compress.export.library import liveness, packing
from compress.export.library.memory_plan import plan
from tests.export.library.arenas import code_of, random_code, wrong


@pytest.mark.parametrize("seed", range(60))
def test_no_call_finds_its_memory_overwritten(seed):
    code = random_code(seed, 3 + seed % 30)
    made = plan(code)
    assert wrong(code, made) == []
    assert made.lower_bound_bytes <= made.arena_bytes <= 1.1 * made.lower_bound_bytes + 16


def test_the_check_finds_plans_that_are_wrong():
    found = 0
    for seed in range(20):
        code = random_code(seed, 12)
        made = plan(code)
        for name in made.offsets:
            if name in code.aliases or name in [root for root, _ in code.aliases.values()]:
                continue
            moved = dataclasses.replace(made, offsets={**made.offsets, name: 0})
            if made.offsets[name] != 0 and wrong(code, moved):
                found += 1
    assert found > 50


def test_a_chain_needs_its_two_largest_neighbours():
    sizes = {"in": 8, "a": 100, "b": 300, "c": 60, "d": 200, "out": 8}
    names = ["in", "a", "b", "c", "d", "out"]
    code = code_of([((x,), (y,), ()) for x, y in itertools.pairwise(names)], sizes)
    made = plan(code)
    assert made.arena_bytes == made.lower_bound_bytes == 100 + 300


def test_the_callers_memory_is_not_in_the_arena():
    code = code_of([(("in",), ("out",), ())], {"in": 1000, "out": 1000})
    assert plan(code).arena_bytes == 0
    assert plan(code).offsets == {}


def test_in_place_takes_no_memory():
    sizes = {"in": 8, "a": 100, "b": 100, "out": 8}
    calls = [(("in",), ("a",), ()), (("a",), ("b",), (("b", "a"),)), (("b",), ("out",), ())]
    made = plan(code_of(calls, sizes))
    assert made.arena_bytes == made.lower_bound_bytes == 100
    assert made.offsets["a"] == made.offsets["b"]


def test_nothing_is_taken_over_that_is_still_read():
    sizes = {"in": 8, "a": 100, "b": 100, "out": 8}
    calls = [(("in",), ("a",), ()), (("a",), ("b",), (("b", "a"),)), (("a", "b"), ("out",), ())]
    code = code_of(calls, sizes)
    assert plan(code).arena_bytes == 200
    assert wrong(code, plan(code)) == []


def test_nothing_is_taken_over_whose_view_is_still_read():
    sizes = {"in": 8, "a": 100, "v": 100, "b": 100, "out": 8}
    calls = [(("in",), ("a",), ()), (("a",), ("b",), (("b", "a"),)), (("v", "b"), ("out",), ())]
    assert plan(code_of(calls, sizes, {"v": ("a", 0)})).arena_bytes == 200


def test_a_sum_takes_over_one_of_its_terms():
    sizes = {"in": 8, "a": 100, "b": 100, "s": 100, "out": 8}
    calls = [
        (("in",), ("a",), ()),
        (("in",), ("b",), ()),
        (("a", "b"), ("s",), (("s", "a"), ("s", "b"))),
        (("s",), ("out",), ()),
    ]
    assert plan(code_of(calls, sizes)).arena_bytes == 200


def test_scratch_memory_lies_beside_all_that_its_call_touches():
    sizes = {"in": 8, "a": 100, "b": 100, "t": 40, "out": 8}
    calls = [(("in",), ("a",), ()), (("a",), ("b", "t"), (("b", "a"),)), (("b",), ("out",), ())]
    code = code_of(calls, sizes)
    assert plan(code).arena_bytes == 140
    assert wrong(code, plan(code)) == []


def test_parts_lie_inside_their_whole():
    sizes = {"in": 8, "whole": 96, "left": 32, "right": 64, "out": 8}
    aliases = {"left": ("whole", 0), "right": ("whole", 32)}
    calls = [(("in",), ("left",), ()), (("in",), ("right",), ()), (("whole",), ("out",), ())]
    made = plan(code_of(calls, sizes, aliases))
    assert made.arena_bytes == 96
    assert made.offsets["right"] - made.offsets["whole"] == 32


def test_offsets_are_multiples_of_the_alignment():
    sizes = {"in": 8, "a": 3, "b": 5, "c": 7, "out": 8}
    alignments = {"a": 64, "b": 32, "c": 16}
    calls = [(("in",), ("a",), ()), (("a",), ("b",), ()), (("a", "b"), ("c",), ()), (("a", "b", "c"), ("out",), ())]
    made = plan(code_of(calls, sizes, alignments=alignments))
    assert made.alignment == 64
    assert all(made.offsets[name] % alignment == 0 for name, alignment in alignments.items())


def exhaustive(packer: packing.Packer, most: int) -> int:
    """The least arena, by trying every multiple of the alignment for every block: slow, and certainly right."""
    blocks = packer.blocks
    choices = [range(0, most - block.bytes + 1, block.alignment) for block in blocks]

    def allowed(i, a, j, b):
        if not blocks[i].meets(blocks[j]):
            return True
        apart = a + blocks[i].bytes <= b or b + blocks[j].bytes <= a
        return apart or (blocks[i].shares(blocks[j]) and a == b)

    best = most

    def descend(offsets):
        nonlocal best
        i = len(offsets)
        if i == len(blocks):
            best = min(best, packer.peak(offsets))
            return
        for offset in choices[i]:
            if offset + blocks[i].bytes < best and all(allowed(i, offset, j, o) for j, o in enumerate(offsets)):
                descend([*offsets, offset])

    descend([])
    return best


@pytest.mark.parametrize("seed", range(25))
def test_a_few_blocks_are_packed_as_well_as_they_can_be(seed):
    import numpy as np

    draw = np.random.default_rng(seed)
    blocks = []
    for i in range(6):
        first = int(draw.integers(0, 6))
        last = first + int(draw.integers(0, 3))
        before = [b.name for b in blocks if b.last == first]
        over = (before[0],) if before and draw.random() < 0.5 else ()
        blocks.append(liveness.Block(f"b{i}", int(draw.integers(1, 7)), int(draw.choice([1, 2])), first, last, over))
    packer = packing.Packer(blocks)
    bound = liveness.lower_bound(blocks)
    known = packer.pack(range(6), packing.lowest)
    offsets, ended = packing.exact(packer, known, 0)
    assert ended
    assert packer.peak(offsets) == exhaustive(packer, packer.peak(known)) >= bound


def test_the_same_code_gets_the_same_plan():
    assert plan(random_code(7, 40)) == plan(random_code(7, 40))


@pytest.mark.parametrize(
    ("calls", "aliases", "said"),
    [
        ([(("a",), ("out",), ())], {}, "nothing has written"),
        ([(("in",), ("in",), ())], {}, "writes into the network's input"),
        ([(("in",), ("v",), ()), (("v",), ("out",), ())], {"v": ("a", 90)}, "leaves the memory"),
        ([(("in",), ("out",), ())], {"a": ("v", 0), "v": ("a", 0)}, "leads to"),
        ([(("in",), ("a",), ()), (("a",), ("out",), ())], {"out": ("a", 0)}, "caller's memory"),
    ],
)
def test_contradictions_are_refused(calls, aliases, said):
    sizes = {"in": 8, "a": 100, "v": 20, "out": 8}
    with pytest.raises(ValueError, match=said):
        plan(code_of(calls, sizes, aliases))
