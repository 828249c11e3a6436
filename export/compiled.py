"""An ONNX file as a compiled library: lowering, kernels, and the folder that ships."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.export.kernels import backends
from compress.export.kernels.isa import Isa
from compress.export.library import building, toolchain
from compress.export.library.building import BuiltLibrary
from compress.export.library.golden import Golden
from compress.export.library.interface import End
from compress.export.lowering import lower
from compress.export.lowering.ends import with_float_ends
from compress.integer import program as p
from compress.integer.reference import run
from compress.integer.signedness import with_signedness

FLOAT_TOLERANCE = 1e-4
"""How far float32 results may lie from the reference's, relative to the largest: sums in another order."""


@dataclass(frozen=True, eq=False)
class Compiled:
    """A library and the program that it was compiled from, in the signedness of its kernels."""

    program: p.Program
    library: BuiltLibrary

    @property
    def in_float(self) -> bool:
        """Whether some of its arithmetic is in float32, so that other compilers' results differ in the last bits."""
        return in_float(self.program)


def in_float(program: p.Program) -> bool:
    """Whether some of a program's arithmetic is in float32."""
    return any(type(op).__name__.startswith("Float") for op in program.ops)


def compile_file(
    path: Path, isa: Isa, folder: Path, golden_inputs: npt.NDArray[np.float32] | None = None, name: str = "model"
) -> Compiled:
    """Compile an ONNX file with explicit Q/DQ pairs, or in float, into ``folder``.

    For a device with an operating system the library takes and gives float32 in the file's order; for one without,
    integers on the grids that its header names, channels last.

    Args:
        path: the file.
        isa: what to compile for.
        folder: of the library, see :mod:`compress.export.library.building`.
        golden_inputs: float32 (N, *shape) as the file takes them; the library then checks itself against the
            integer reference's outputs.
        name: prefix of the library's functions.

    Raises:
        CannotLower: an operator has no integer form; named.
        BadInput: there is no kernel for it, or a compiler is there and fails.
    """
    program = with_signedness(lower(path), isa.signed)
    if toolchain.hosted(isa):
        program = with_float_ends(program)
    code = backends.assemble(program, isa)
    golden = None if golden_inputs is None else reference_golden(program, golden_inputs)
    built = building.build(code, isa, folder, name=name, golden=golden, file_shapes=program.file_shapes)
    return Compiled(program, built)


def reference_golden(program: p.Program, inputs: npt.NDArray[np.float32]) -> Golden | None:
    """The reference's outputs for inputs as the file takes them; None for networks of several inputs."""
    if len(program.inputs) != 1:
        return None
    (name,) = program.inputs
    rows = [outputs_of(program, {name: x}) for x in inputs]
    outputs = {each: np.stack([row[each] for row in rows]) for each in program.outputs}
    return Golden({name: inputs}, outputs, FLOAT_TOLERANCE if in_float(program) else 0.0)


def outputs_of(program: p.Program, inputs: dict[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
    """One input (no batch) in the file's order through the reference; the outputs in the file's order."""
    given: dict[str, Any] = {}
    for name, values in inputs.items():
        given[name] = _end(program, name).to_library(values[None])[0]
    found = run(program, given)
    return {name: _end(program, name).from_library(found[name][None])[0] for name in program.outputs}


def _end(program: p.Program, name: str) -> End:
    tensor = program.tensors[name]
    shape = program.file_shapes[name]
    return End(name, name, tensor.shape, shape, tensor.dtype, float(np.float32(tensor.scale)), tensor.zero_point)


__all__ = ["Compiled", "compile_file", "in_float", "outputs_of", "reference_golden"]
