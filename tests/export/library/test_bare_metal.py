"""Programs without an operating system in the emulator: counts, failures, and the golden test that libraries bring."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from compress.errors import BadInput, CheckFailed
from compress.export.kernels import backends, isa
from compress.export.library import bare_metal, building, counting
from compress.export.library.golden import Golden
from compress.export.library.interface import ends
from compress.integer import reference
from tests.export.kernels.roster import case

TOOLS = ("qemu-system-arm", "qemu-system-riscv32", "arm-none-eabi-gcc", "riscv64-unknown-elf-gcc", "make")
needs_tools = pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason="needs emulators")

COUNT = """
#include "semihosting.h"
static uint64_t loop(uint32_t n) {
    const uint64_t start = ticks();
#ifdef __riscv
    __asm__ volatile("1: addi %%0, %%0, -1\\n bnez %%0, 1b" : "+r"(n));
#else
    __asm__ volatile("1: subs %%0, #1\\n bne 1b" : "+r"(n) : : "cc");
#endif
    return ticks() - start;
}
int main(void) {
    ticks_start();
    const uint64_t few = loop(100000), many = loop(%d);
    semihosting_print_number(many - few);
    return 0;
}
"""


@needs_tools
@pytest.mark.parametrize("board", bare_metal.BOARDS.values(), ids=lambda board: board.name)
def test_a_loop_of_two_instructions_counts_as_such(board: bare_metal.Board, tmp_path: Path) -> None:
    turns = 12_000_000  # beyond 24 bits of ticks only where a tick is an instruction
    (tmp_path / "main.c").write_text(COUNT % (100_000 + turns))
    said = bare_metal.emulate(bare_metal.link(tmp_path, ["main.c"], board), board)
    assert int(said) * board.instructions_per_tick == pytest.approx(2 * turns, abs=3 * board.instructions_per_tick)


@needs_tools
def test_a_program_that_fails_says_with_which_status(tmp_path: Path) -> None:
    board = bare_metal.BOARDS["cortex-m7"]
    (tmp_path / "main.c").write_text("int main(void) { return 3; }")
    with pytest.raises(CheckFailed, match="status 3"):
        bare_metal.emulate(bare_metal.link(tmp_path, ["main.c"], board), board)


@needs_tools
def test_a_fault_ends_the_program(tmp_path: Path) -> None:
    board = bare_metal.BOARDS["cortex-m4"]
    (tmp_path / "main.c").write_text("int main(void) { return *(volatile int *)0xF0000000; }")
    with pytest.raises(CheckFailed, match="status 70"):
        bare_metal.emulate(bare_metal.link(tmp_path, ["main.c"], board), board)


@needs_tools
def test_a_program_larger_than_the_memory_does_not_link(tmp_path: Path) -> None:
    board = bare_metal.BOARDS["cortex-m4"]
    (tmp_path / "main.c").write_text("static char a[5000000]; int main(int n, char **v) { a[n] = 1; return a[3]; }")
    with pytest.raises(CheckFailed, match="RAM"):
        bare_metal.link(tmp_path, ["main.c"], board)


def test_without_compiler_or_emulator_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bare_metal.shutil, "which", lambda name: None)
    board = bare_metal.BOARDS["cortex-m7"]
    with pytest.raises(BadInput, match="gcc-arm-none-eabi"):
        bare_metal.link(tmp_path, [], board)
    with pytest.raises(BadInput, match="qemu-system-arm"):
        bare_metal.emulate(tmp_path / "program.elf", board)


def library(core: isa.Isa, folder: Path, off: float = 0.0) -> tuple[building.BuiltLibrary, Golden]:
    """A small network's library, with golden outputs that are off by so much."""
    program, inputs = case("chain", signed=core.signed)
    code = backends.assemble(program, core)
    shapes = {name: program.tensors[name].shape for name in (*program.inputs, *program.outputs)}
    given, wanted = ends(code, shapes)
    results = reference.run(program, inputs)
    golden = Golden(
        {end.name: end.from_library(inputs[end.name][None]) for end in given},
        {end.name: end.from_library(results[end.name][None]) + np.float32(off) for end in wanted},
    )
    return building.build(code, core, folder, golden=golden, file_shapes=shapes), golden


@needs_tools
@pytest.mark.parametrize("core", [isa.CORTEX_M7, isa.RV32_BARE], ids=lambda core: core.cpu)
def test_a_library_brings_a_program_that_runs_its_golden_input(core: isa.Isa, tmp_path: Path) -> None:
    built, golden = library(core, tmp_path)
    made = subprocess.run(["make", "run"], cwd=tmp_path / "emulator", capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "ok: 0 numbers differ" in made.stdout + made.stderr
    counted = counting.run(built, golden.inputs)
    for name, value in golden.outputs.items():
        np.testing.assert_array_equal(counted.outputs[name], value)
    assert counted.instructions > 0


@needs_tools
def test_that_program_fails_where_an_output_is_wrong(tmp_path: Path) -> None:
    library(isa.CORTEX_M7, tmp_path, off=0.5)
    made = subprocess.run(["make", "run"], cwd=tmp_path / "emulator", capture_output=True, text=True, check=False)
    assert made.returncode != 0
    assert "error: " in made.stdout + made.stderr
