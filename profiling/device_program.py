"""The compiled library of a bundle as a program for its device: golden inputs in, outputs and times out."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from compress.errors import BadInput
from compress.export.compiled import FLOAT_TOLERANCE, Compiled, outputs_of
from compress.export.library import rendering, toolchain
from compress.export.library.building import BuiltLibrary
from compress.profiling.rebuilt import rebuild


@dataclass(frozen=True, eq=False)
class DeviceProgram:
    """A program and what goes in and has to come out.

    Attributes:
        path: of the program.
        inputs: raw, as the library takes them.
        wanted: float32 (N, ...), the integer reference's.
        how: whether the code is the bundle's byte for byte.
    """

    path: Path
    compiled: Compiled
    inputs: bytes
    wanted: npt.NDArray[np.float32]
    how: str

    def agrees(self, raw: bytes) -> bool:
        """Whether raw outputs are the reference's: bit for bit, or to rounding where some of it is in float."""
        (end,) = self.compiled.library.interface.outputs
        if len(raw) != end.bytes * len(self.wanted):
            return False
        found = end.from_library(np.frombuffer(raw, end.dtype).reshape(len(self.wanted), *end.shape))
        allowed = FLOAT_TOLERANCE * float(np.abs(self.wanted).max()) if self.compiled.in_float else 0.0
        return bool(np.abs(found - self.wanted).max() <= allowed)


def make(bundle: Path, inputs: npt.NDArray[np.float32], folder: Path) -> DeviceProgram:
    """Compile a bundle's library again, with a program around it, into ``folder``.

    Args:
        bundle: a bundle with a library for a device with an operating system.
        inputs: float32 (N, *shape) as the file takes them.
        folder: exists.

    Raises:
        BadInput: there is no library, or no compiler for the device.
    """
    compiled, how = rebuild(bundle, folder / "library")
    built = compiled.library
    if not toolchain.hosted(built.isa):
        raise BadInput(
            f"the bundle's library is for {built.isa.triple}, which has no operating system to reach; try --device qemu"
        )
    (name,), (result,) = compiled.program.inputs, compiled.program.outputs
    path = folder / "program"
    _link(built, path)
    (end,) = built.interface.inputs
    wanted = np.stack([outputs_of(compiled.program, {name: x})[result] for x in inputs])
    return DeviceProgram(path, compiled, end.to_library(inputs).tobytes(), wanted, how)


def _link(built: BuiltLibrary, out: Path) -> None:
    """A statically linked program, which needs nothing on the device."""
    tools = toolchain.find(built.isa).for_programs()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for path in (built.folder / "src").iterdir():
            if path.is_file():
                shutil.copyfile(path, work / path.name)
        (work / "timed.c").write_bytes(rendering.timed(built.interface))
        sources = ["timed.c", *(p.name for p in built.sources() if p.suffix != ".o")]
        sources += [f"{built.name}_threads.c"] if built.interface.threads else []
        objects = []
        for name in sources:
            objects.append(work / f"{Path(name).stem}.o")
            tools.compile(work / name, objects[-1])
        tools.executable([*objects, *(p for p in built.sources() if p.suffix == ".o")], out)


__all__ = ["DeviceProgram", "make"]
