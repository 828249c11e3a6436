"""A compiled library on another architecture: a small program around it, run by QEMU's user-mode emulator.

Compiling and running a library's sources runs its code, with the rights of the user: the decision is the caller's, as
it is with :mod:`compress.export.library.loader`.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.errors import BadInput
from compress.export.library import rendering, toolchain
from compress.export.library.building import BuiltLibrary

TIMEOUT_S = 600


def emulator(built: BuiltLibrary) -> tuple[str, ...]:
    """The command in front of a program: QEMU for the library's architecture, nothing on this machine's own.

    Raises:
        BadInput: QEMU isn't installed, or the device has no operating system.
    """
    if not toolchain.hosted(built.isa):
        raise BadInput(f"{built.isa.triple} has no operating system to emulate; use the bare-metal emulator")
    if toolchain.native(built.isa):
        return ()
    word = toolchain.architecture(built.isa)
    for name in (f"qemu-{word}-static", f"qemu-{word}"):
        path = shutil.which(name)
        if path:
            cpu = ("-cpu", built.isa.cpu) if built.isa.family == "aarch64" else ()
            return (path, *cpu)
    raise BadInput(f"running {built.isa.triple} here needs qemu-{word}-static: apt install qemu-user-static")


def program(built: BuiltLibrary, out: Path, tools: toolchain.Toolchain | None = None) -> None:
    """Compile the library with a program that runs raw inputs from stdin, statically linked, to ``out``.

    Args:
        built: the library.
        out: the program.
        tools: the compiler; by default the preferred one.

    Raises:
        BadInput: there is no compiler for the device, or it fails.
    """
    tools = (tools or toolchain.find(built.isa)).for_programs()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "runner.c").write_bytes(rendering.runner(built.interface))
        for path in (built.folder / "src").iterdir():
            if path.is_file():
                shutil.copyfile(path, work / path.name)
        objects = []
        for path in (work / "runner.c", *(p for p in built.sources() if p.suffix != ".o")):
            objects.append(work / f"{path.stem}.o")
            tools.compile(work / path.name, objects[-1])
        tools.executable([*objects, *(p for p in built.sources() if p.suffix == ".o")], out)


def run_raw(
    built: BuiltLibrary, inputs: Sequence[npt.NDArray[Any]], tools: toolchain.Toolchain | None = None
) -> list[npt.NDArray[Any]]:
    """Batches in the library's own types and layouts, (N, *shape), one an input, under the emulator; the outputs.

    Args:
        built: the library.
        inputs: as the library takes them.
        tools: as :func:`program` takes it.

    Raises:
        BadInput: there is no emulator or compiler, or the program fails.
    """
    interface = built.interface
    count = min(map(len, inputs))
    for end, array in zip(interface.inputs, inputs, strict=True):
        if array.dtype != np.dtype(end.dtype) or array.shape != (count, *end.shape):
            raise BadInput(f"input {end.name!r} takes {end.dtype} {(count, *end.shape)}, not {array.shape}")
    command = emulator(built)
    rows = [np.ascontiguousarray(array).reshape(count, -1).view(np.uint8) for array in inputs]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "runner"
        program(built, path, tools)
        try:
            ran = subprocess.run(
                [*command, str(path)],
                input=np.concatenate(rows, axis=1).tobytes(),
                capture_output=True,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise BadInput(f"{count} inputs took more than {TIMEOUT_S} s under the emulator; give fewer") from None
    size = sum(end.bytes for end in interface.outputs)
    if ran.returncode != 0 or len(ran.stdout) != count * size:
        said = " ".join(ran.stderr.decode(errors="replace").split())[:200] or f"exit status {ran.returncode}"
        raise BadInput(f"the emulated program failed ({said}); build the library again, or try another emulator")
    table = np.frombuffer(ran.stdout, np.uint8).reshape(count, size)
    outputs, at = [], 0
    for end in interface.outputs:
        part = np.ascontiguousarray(table[:, at : at + end.bytes])
        outputs.append(part.view(end.dtype).reshape(count, *end.shape))
        at += end.bytes
    return outputs


def run_named(built: BuiltLibrary, values: Mapping[str, npt.ArrayLike]) -> dict[str, npt.NDArray[np.float32]]:
    """Floats in the file's order in and out, as :meth:`compress.export.library.loader.Library.run_named`."""
    raw = run_raw(built, [end.to_library(values[end.name]) for end in built.interface.inputs])
    return {end.name: end.from_library(a) for end, a in zip(built.interface.outputs, raw, strict=True)}


__all__ = ["emulator", "program", "run_named", "run_raw"]
