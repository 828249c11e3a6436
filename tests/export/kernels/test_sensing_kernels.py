"""A binary sensing layer in a compiled library: one-bit weights, and loops of additions without a multiplication."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from compress.export.kernels import isa
from compress.export.kernels.backends import assemble
from compress.export.kernels.compiling import assembly
from compress.export.lowering.tidy import tidied
from compress.integer import program as p
from compress.integer import reference
from tests.export.kernels.roster import convolution

BLOCK = {"image": (16, 24, 1), "outputs": 6, "kernel": (8, 8), "strides": (8, 8), "padding": (0, 0, 0, 0), "bits": 1}


def sensing(seed: int = 0, **changes: object) -> tuple[p.Program, dict[str, np.ndarray]]:
    """A layer that measures blocks of 8x8, and an image."""
    return convolution(np.random.default_rng(seed), **{**BLOCK, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "strips"),
    [
        ({}, True),
        ({"image": (16, 24, 3)}, True),
        ({"kernel": (8, 4), "strides": (8, 4)}, True),
        ({"strides": (3, 8)}, True),
        ({"kernel": (1, 8), "strides": (1, 8)}, True),
        ({"kernel": (3, 8), "strides": (1, 8), "dilations": (2, 1)}, True),
        ({"bits": 2}, False),
        ({"strides": (8, 4)}, False),
        ({"padding": (0, 4, 0, 4)}, False),
        ({"image": (16, 28, 1)}, False),
        ({"image": (16, 24, 2), "groups": 2}, False),
        ({"kernel": (8, 1), "strides": (8, 1)}, False),
    ],
)
def test_strips_of_pixels_become_channels_and_nothing_else_changes(changes: dict[str, object], strips: bool) -> None:
    program, inputs = sensing(**changes)
    found = tidied(program)
    assert isinstance(found.ops[0], p.View) == strips
    last = found.ops[-1]
    assert isinstance(last, p.Convolution)
    assert (last.weight.shape[2] == 1) == (strips or changes.get("kernel") == (8, 1))
    assert found.macs == program.macs
    wanted, made = (reference.run(each, inputs) for each in (program, found))
    (name,) = program.outputs
    np.testing.assert_array_equal(made[name], wanted[name])


def innermost_loops(text: str) -> list[list[str]]:
    """The instructions of each loop that holds no other: from a label to the branch back to it."""
    lines = [line.split("#")[0].split("@")[0].strip() for line in text.splitlines()]
    at = {match[1]: i for i, line in enumerate(lines) if (match := re.fullmatch(r"(\.?L[\w.$]+):", line))}
    spans = set()
    for i, line in enumerate(lines):
        words = re.findall(r"\.?L[\w.$]+", line) if not line.endswith(":") else []
        spans |= {(at[word], i) for word in words if at.get(word, i) < i}
    inner = [s for s in spans if not any(s != o and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [[line for line in lines[a : b + 1] if line and not line.endswith(":")] for a, b in sorted(inner)]


MULTIPLIES = re.compile(r"\bv?p?s?(?:mul|mla|mls|mlal|smla|madd|fma|maddwd|maddubsw|dpbusd|umull|smull|sdot)\w*\b")


def loops_of(program: p.Program, chosen: isa.Isa) -> list[list[str]]:
    """The innermost loops of the kernels of a program's convolution."""
    code = assemble(program, chosen, "k_")
    kernels = [call.kernel for call in code.calls if "convolution" in call.kernel.symbol]
    assert kernels
    return innermost_loops(assembly(kernels, chosen))


@pytest.mark.parametrize(
    ("chosen", "adds"),
    [
        (isa.RV32_BARE, r"\band\b"),
        (isa.CORTEX_M4, "usada8"),
        (isa.CORTEX_M7, "usada8"),
        (isa.X86_AVX2, "vpsadbw"),
        (isa.CORTEX_A72, "uabd"),
    ],
    ids=["portable", "cortex-m4", "cortex-m7", "avx2", "neon"],
)
def test_the_inner_loop_adds_and_multiplies_nothing(chosen: isa.Isa, adds: str) -> None:
    form = {"image": (32, 64, 1), "kernel": (32, 32), "strides": (32, 32)}
    found = [loop for loop in loops_of(tidied(sensing(**form)[0]), chosen) if re.search(adds, " ".join(loop))]
    assert found
    assert not [line for loop in found for line in loop if MULTIPLIES.search(line)]
    # In eight bits the same layer multiplies: what is looked for would be found.
    wide = loops_of(sensing(bits=8, **form)[0], chosen)
    assert [line for loop in wide for line in loop if MULTIPLIES.search(line)]


def test_zeros_and_ones_take_two_bits_and_products() -> None:
    program, _ = sensing(bits=2)
    op = program.ops[0]
    assert isinstance(op, p.Convolution)
    ones = replace(program, ops=(replace(op, weight=np.abs(op.weight).clip(0, 1).astype(np.int8)),))
    assert [line for loop in loops_of(ones, isa.RV32_BARE) for line in loop if MULTIPLIES.search(line)]
