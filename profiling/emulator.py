"""Compiled code on the processor that it is for: here, or in QEMU. What is counted there is called a count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from compress.errors import CheckFailed

if TYPE_CHECKING:
    from compress.export.compiled import Compiled

FLOAT_TOLERANCE = 1e-4
"""Relative to the largest output, where some of the arithmetic is in float."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found of compiled code: in words; instructions for one input; or what is wrong."""

    said: str | None = None
    instructions: int | None = None
    wrong: str | None = None


def check(compiled: Compiled, inputs: npt.NDArray[np.float32]) -> Checked:
    """Run inputs (N, *shape) through compiled code and compare with the integer reference.

    Raises:
        BadInput: there is no emulator or compiler for it here; the sentence says what to install.
        CheckFailed: the outputs differ.
    """
    from compress.export.compiled import outputs_of
    from compress.export.library import counting, emulate, toolchain
    from compress.export.library.loader import Library

    program, built = compiled.program, compiled.library
    (name,), (result,) = program.inputs, program.outputs
    wanted = np.stack([outputs_of(program, {name: x})[result] for x in inputs])
    instructions = None
    if toolchain.hosted(built.isa) and toolchain.native(built.isa) and built.linked_path is not None:
        with Library(built.linked_path) as library:
            found = library.run(inputs)
        where = "on this machine"
    elif toolchain.hosted(built.isa):
        found = emulate.run_named(built, {name: inputs})[result]
        where = f"in {emulate.emulator(built)[0].rpartition('/')[2]}"
    else:
        ran = counting.run(built, {name: inputs})
        found, instructions = ran.outputs[result], ran.instructions
        where = f"in {ran.board.emulator} ({ran.board.title})"
    difference = float(np.abs(found - wanted).max())
    allowed = FLOAT_TOLERANCE * float(np.abs(wanted).max()) if compiled.in_float else 0.0
    if not difference <= allowed:
        raise CheckFailed(
            f"the library for {built.isa.triple}",
            [f"it differs from the reference by {difference:.3g} on its golden inputs, {where}"],
        )
    equal = "equal the reference" + (" bit for bit" if not compiled.in_float else " to rounding")
    return Checked(f"{len(inputs)} golden inputs {equal} {where}", instructions)


__all__ = ["Checked", "check"]
