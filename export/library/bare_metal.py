"""Programs for a microcontroller without an operating system, and QEMU's boards to run them on.

What a program needs beside the library is here and in ``templates/bare_metal``: vector table, linker script, and
semihosting for text, files and the end. QEMU can tie its clock to the instructions that it executes
(``-icount shift=0``: a nanosecond each), so the ticks of a timer count instructions, the same at every run.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from compress.errors import BadInput, CheckFailed

TIMEOUT_S = 600.0
STACK_BYTES = 4096
"""What linker scripts keep free for the stack."""
INSTRUCTIONS_PER_S = 10**9
"""Of the emulator with ``-icount shift=0``."""


@dataclass(frozen=True, slots=True)
class Board:
    """A board that QEMU emulates.

    Attributes:
        name, title: of the core, and of the board.
        emulator, machine: QEMU's program and its ``-machine``.
        compiler: prefix of GNU's tools.
        flags: for the compiler: core, floating point.
        flash, ram: (first address, bytes).
        clock_hz: of the timer that counts.
        fpu: the core has a floating-point unit that must be switched on.
        start_up: the template of the start-up code.
        modes: more arguments of the emulator.
        vectors: where the core looks for its vectors, if that isn't the start of flash.
    """

    name: str
    title: str
    emulator: str
    machine: str
    compiler: str
    flags: tuple[str, ...]
    flash: tuple[int, int]
    ram: tuple[int, int]
    clock_hz: float
    fpu: bool = True
    start_up: str = "startup.c"
    modes: tuple[str, ...] = ()
    vectors: int | None = None

    @property
    def instructions_per_tick(self) -> float:
        """Of the counting timer."""
        return INSTRUCTIONS_PER_S / self.clock_hz


def _cortex_m(cpu: str, fpu: str) -> tuple[str, ...]:
    return (f"-mcpu={cpu}", "-mthumb", "-mfloat-abi=hard", f"-mfpu={fpu}")


_M = 1 << 20
BOARDS: Mapping[str, Board] = {
    "cortex-m4": Board(
        "cortex-m4", "Arm MPS2+ AN386", "qemu-system-arm", "mps2-an386", "arm-none-eabi-",
        _cortex_m("cortex-m4", "fpv4-sp-d16"), (0, 4 * _M), (0x20000000, 4 * _M), 25e6,
    ),
    "cortex-m7": Board(
        "cortex-m7", "Arm MPS2+ AN500", "qemu-system-arm", "mps2-an500", "arm-none-eabi-",
        _cortex_m("cortex-m7", "fpv5-sp-d16"), (0, 4 * _M), (0x20000000, 4 * _M), 25e6,
    ),
    "cortex-m33": Board(
        "cortex-m33", "Arm MPS2+ AN505", "qemu-system-arm", "mps2-an505", "arm-none-eabi-",
        _cortex_m("cortex-m33", "fpv5-sp-d16"), (0x10000000, 4 * _M), (0x38000000, 4 * _M), 20e6,
    ),
    "cortex-m55": Board(
        "cortex-m55", "Arm MPS3 AN547", "qemu-system-arm", "mps3-an547", "arm-none-eabi-",
        _cortex_m("cortex-m55", "auto"), (0x01000000, 2 * _M), (0x21000000, 4 * _M), 32e6, vectors=0,
    ),
    # Its counter of retired instructions is the clock.
    "generic-rv32": Board(
        "generic-rv32", "QEMU's virt", "qemu-system-riscv32", "virt", "riscv64-unknown-elf-",
        ("-march=rv32imc", "-mabi=ilp32", "-mcmodel=medany", "-nostdlib", "-ffreestanding"),
        (0x80000000, 16 * _M), (0x81000000, 16 * _M), 1e9, False, "startup_riscv.c", ("-bios", "none"),
    ),
}  # fmt: skip
"""By LLVM's name of the core."""


def files(board: Board, stack_bytes: int = STACK_BYTES) -> dict[str, str]:
    """Start-up code, linker script and semihosting for the board, by file name."""
    return _rendered((board.start_up, "semihosting.h", "semihosting.c", "board.ld"), board, stack_bytes, {})


def example(board: Board, words: Mapping[str, Any], stack_bytes: int = STACK_BYTES) -> dict[str, str]:
    """A program that runs the golden inputs on the board, or in the emulator with ``make run``, by file name.

    Args:
        board: which.
        words: the library's, as its own templates get them.
        stack_bytes: what the linker script keeps free.
    """
    names = (board.start_up, "semihosting.h", "semihosting.c", "board.ld", "golden_main.c", "Makefile")
    made = _rendered(names, board, stack_bytes, words)
    made["main.c"] = made.pop("golden_main.c")
    return made


def _rendered(names: Sequence[str], board: Board, stack_bytes: int, words: Mapping[str, Any]) -> dict[str, str]:
    import jinja2

    folder = resources.files("compress.export") / "templates" / "bare_metal"
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                                     keep_trailing_newline=True, autoescape=False)  # fmt: skip
    values = {
        **words, "title": board.title, "fpu": board.fpu, "riscv": "riscv" in board.compiler,
        "instructions_per_tick": f"{board.instructions_per_tick:g}", "flash_origin": board.flash[0],
        "flash_bytes": board.flash[1], "ram_origin": board.ram[0], "ram_bytes": board.ram[1],
        "stack_bytes": stack_bytes, "vectors": board.vectors, "start_up": board.start_up, "compiler": board.compiler,
        "flags": " ".join(board.flags), "command": " ".join(_command(board.emulator, board)),
    }  # fmt: skip
    return {
        name: environment.from_string((folder / f"{name}.j2").read_text(encoding="utf-8")).render(values)
        for name in names
    }


def _command(emulator: str, board: Board) -> list[str]:
    return [
        emulator, "-machine", board.machine, *board.modes, "-nographic", "-monitor", "none", "-serial", "none",
        "-icount", "shift=0", "-semihosting-config", "enable=on,target=native",
    ]  # fmt: skip


def link(folder: Path, sources: Sequence[str], board: Board, *, stack_bytes: int = STACK_BYTES) -> Path:
    """``folder/program.elf`` from C files and objects in ``folder``, and the board's start-up code.

    Raises:
        BadInput: no compiler for the board.
        CheckFailed: it doesn't link, with what the compiler says.
    """
    compiler = shutil.which(f"{board.compiler}gcc")
    if compiler is None:
        raise BadInput(
            f"no compiler for {board.name}: install {board.compiler}gcc (Debian: gcc-{board.compiler.rstrip('-')})."
        )
    start_up = files(board, stack_bytes)
    for name, text in start_up.items():
        (folder / name).write_text(text, encoding="utf-8")
    own = [name for name in start_up if name.endswith((".c", ".S"))]
    command = [
        compiler, *board.flags, "-std=gnu99", "-O2", "-Wall", "-ffunction-sections", "-fdata-sections",
        "-nostartfiles", "-Wl,--gc-sections", "-Wl,--no-warn-rwx-segments", "-T", "board.ld", *own, *sources,
        "-lgcc", "-o", "program.elf",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CheckFailed(f"the program for {board.name} doesn't link", [done.stderr.strip()[-2000:]])
    return folder / "program.elf"


def emulate(program: Path, board: Board, timeout_s: float = TIMEOUT_S) -> str:
    """Runs a program in its own folder, where its files are; what it printed.

    Raises:
        BadInput: QEMU is missing.
        CheckFailed: the program ended with another status than 0, or not in time.
    """
    emulator = shutil.which(board.emulator)
    if emulator is None:
        raise BadInput(f"{board.emulator} is missing; install QEMU (Debian: qemu-system-arm, qemu-system-misc).")
    command = [*_command(emulator, board), "-kernel", str(program.resolve())]
    try:
        done = subprocess.run(
            command, cwd=program.parent, capture_output=True, text=True, check=False, timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"the program for {board.name}", [f"it didn't end within {timeout_s:g} s"]) from None
    said = done.stdout + done.stderr
    if done.returncode != 0:
        raise CheckFailed(
            f"the program for {board.name}", [f"it ended with status {done.returncode}: {said.strip()[-2000:]}"]
        )
    return said


__all__ = ["BOARDS", "Board", "emulate", "example", "files", "link"]
