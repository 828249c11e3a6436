"""Runs a back end's code on a microcontroller that QEMU emulates: many pieces of code in one program."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from compress.export.kernels.code import Code, Constant
from compress.export.kernels.compiling import object_file
from compress.export.kernels.isa import Isa
from compress.export.library import bare_metal, memory_plan
from tests.export.kernels.hosted import GUARD, NOISE, Memory, kernels


@dataclass(frozen=True)
class Outcome:
    """What one piece of code gave, and the instructions that all its calls took, to a timer's tick."""

    outputs: Mapping[str, np.ndarray]
    instructions: float


class PlannedMemory(Memory):
    """The buffers where the memory plan puts them."""

    def __init__(self, code: Code, inputs: Mapping[str, np.ndarray]) -> None:
        super().__init__(code, inputs)
        plan = memory_plan.plan(code)
        start = -(-self.raw.size // 64) * 64
        self.arena = start, start + plan.arena_bytes
        self.raw = np.pad(self.raw, (0, self.arena[1] + GUARD - self.raw.size), constant_values=NOISE)
        self.start |= {name: start + offset for name, offset in plan.offsets.items()}

    def check_guards(self) -> None:
        assert (self.raw[self.arena[1] :] == NOISE).all(), "a kernel wrote behind the arena"


def run_all(
    codes: Sequence[Code], isa: Isa, inputs: Sequence[Mapping[str, np.ndarray]], *, planned: bool = False
) -> list[Outcome]:
    """Each piece of code, with kernels named apart, on its inputs; guards around all buffers are checked.

    With ``planned`` buffers share memory as in a library, and only what lies behind the arena is checked.
    """
    board = bare_metal.BOARDS[isa.cpu]
    memories = [
        (PlannedMemory if planned else Memory)(code, values) for code, values in zip(codes, inputs, strict=True)
    ]
    room = max(memory.raw.size for memory in memories)
    functions, cases, blobs = [], [], {}
    every = [kernel for code in codes for kernel in kernels(code)]
    assert len({kernel.symbol for kernel in every}) == len(every), "kernels need names of their own"
    for number, (code, memory) in enumerate(zip(codes, memories, strict=True)):
        offsets, content = [], b""
        for values in code.constants:
            content += bytes(-len(content) % 8)
            offsets.append(len(content))
            content += np.ascontiguousarray(values).tobytes()
        blobs[f"memory{number}.bin"] = memory.raw.tobytes()
        blobs[f"constants{number}.bin"] = content or bytes(8)
        lines = []
        for call in code.calls:
            pointers = [
                f"constants{number} + {offsets[a.index]}" if isinstance(a, Constant) else f"ram + {memory.offset(a)}"
                for a in call.arguments
            ]
            rows = call.kernel.rows
            types = ", ".join(["const void *"] * len(pointers) + ["int32_t"] * (2 if rows is not None else 0))
            functions.append(f"void {call.kernel.symbol}({types});")
            spans = [[]] if rows is None else [[str(a), str(b)] for a, b in pairwise(sorted({0, 1, rows // 2, rows}))]
            for extra in spans:
                lines.append(f"    {call.kernel.symbol}({', '.join(pointers + extra)});")
        functions.append(f"extern const unsigned char memory{number}[], constants{number}[];")
        functions.append(f"static void case{number}(void) {{\n" + "\n".join(lines) + "\n}")
        cases.append(f'    run(case{number}, memory{number}, {memory.raw.size}, "out{number}.bin");')
    source = _MAIN % (room, "\n".join(dict.fromkeys(functions)), "\n".join(cases))
    incbin = ".section .rodata\n" + "".join(
        f'.balign 64\n.global {name[:-4]}\n{name[:-4]}: .incbin "{name}"\n.byte 0\n' for name in blobs
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for name, content in blobs.items():
            (path / name).write_bytes(content)
        (path / "main.c").write_text(source)
        (path / "blobs.S").write_text(incbin)
        (path / "kernels.o").write_bytes(object_file(every, isa))
        said = bare_metal.emulate(bare_metal.link(path, ["main.c", "blobs.S", "kernels.o"], board), board)
        ticks = [int(line) for line in said.split()]
        outcomes = []
        for number, memory in enumerate(memories):
            memory.raw[:] = np.fromfile(path / f"out{number}.bin", np.uint8)
            memory.check_guards()
            found = {name: memory.value(name) for name in memory.code.outputs}
            outcomes.append(Outcome(found, ticks[number] * board.instructions_per_tick))
    return outcomes


_MAIN = """
#include "semihosting.h"
void *memcpy(void *to, const void *from, size_t bytes);
static unsigned char ram[%d] __attribute__((aligned(64)));
%s
static void run(void (*body)(void), const unsigned char *before, size_t bytes, const char *path) {
    memcpy(ram, before, bytes);
    const uint64_t start = ticks();
    body();
    const uint64_t end = ticks();
    semihosting_print_number(end - start);
    semihosting_print("\\n");
    if (semihosting_write(path, ram, bytes)) semihosting_exit(3);
}
int main(void) {
    ticks_start();
%s
    return 0;
}
"""
