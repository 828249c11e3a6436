"""A compiled library on an emulated microcontroller: outputs, and instructions counted for each run.

Compiling and running a library's sources runs its code in the emulator: the decision is the caller's, as with
:mod:`compress.export.library.loader`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from compress.errors import BadInput, CheckFailed
from compress.export.library import bare_metal
from compress.export.library.bare_metal import Board
from compress.export.library.building import BuiltLibrary


@dataclass(frozen=True, eq=False)
class Counted:
    """What an emulated board gave.

    Attributes:
        board: which.
        outputs: by name, float32 (N, *file_shape).
        instructions: of one run, the median over the inputs, to one tick of the board's timer. A count, not a time.
    """

    board: Board
    outputs: Mapping[str, npt.NDArray[np.float32]]
    instructions: int


def board_of(built: BuiltLibrary) -> Board:
    """The board for a library's core.

    Raises:
        BadInput: QEMU has none.
    """
    board = bare_metal.BOARDS.get(built.isa.cpu)
    if board is None:
        raise BadInput(f"QEMU has no board with a {built.isa.cpu}; run the library on the device")
    return board


def run(built: BuiltLibrary, values: Mapping[str, npt.ArrayLike]) -> Counted:
    """Run a batch of inputs, float32 (N, *file_shape) by name, one after the other.

    Raises:
        BadInput: there is no board, compiler or emulator; the sentence says what to install.
        CheckFailed: the program fails, for instance as the board's memory is too small.
    """
    board = board_of(built)
    interface = built.interface
    given = [end.to_library(values[end.name]) for end in interface.inputs]
    count = min(map(len, given))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for path in (built.folder / "src").iterdir():
            if path.is_file():
                shutil.copyfile(path, work / path.name)
        sources = []
        for path in built.sources():
            if path.suffix == ".o":
                shutil.copyfile(path, work / path.name)
            sources.append(path.name)
        (work / "counted.c").write_text(_main(built, count), encoding="utf-8")
        for letter, array in zip("abcdefghijklmnopqrstuvwxyz", given, strict=False):
            for number in range(count):
                (work / f"{letter}{number:04}.bin").write_bytes(np.ascontiguousarray(array[number]).tobytes())
        stack = max(bare_metal.STACK_BYTES, 2 * built.stack_bytes)
        program = bare_metal.link(work, ["counted.c", *sources], board, stack_bytes=stack)
        said = bare_metal.emulate(program, board)
        ticks = [int(line) for line in said.split()]
        if len(ticks) != count:
            raise CheckFailed(f"the program for {board.name}", [f"it ran {len(ticks)} of {count} inputs"])
        outputs = {}
        for letter, end in zip("abcdefghijklmnopqrstuvwxyz"[len(given) :], interface.outputs, strict=False):
            raw = [np.fromfile(work / f"{letter}{number:04}.bin", end.dtype) for number in range(count)]
            outputs[end.name] = end.from_library(np.stack(raw).reshape(count, *end.shape))
    return Counted(board, outputs, round(median(ticks) * board.instructions_per_tick))


def _main(built: BuiltLibrary, count: int) -> str:
    import jinja2

    interface = built.interface
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )  # C, not HTML
    template = resources.files("compress.export").joinpath("templates", "bare_metal", "counted.c.j2")
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        name=interface.name,
        NAME=interface.name.upper(),
        count=count,
        inputs=list(interface.inputs),
        outputs=list(interface.outputs),
    )


__all__ = ["Counted", "board_of", "run"]
