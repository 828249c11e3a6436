"""Runs a back end's code on this machine: links its object into a shared library and calls the kernels in order."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from compress.export.kernels.code import Code, Constant
from compress.export.kernels.compiling import c_source, object_file
from compress.export.kernels.isa import Isa

Run = Callable[[Code, Isa, Mapping[str, np.ndarray]], dict[str, np.ndarray]]
"""Runs code on inputs by name: the outputs by name."""

GUARD = 64
"""Bytes around every buffer that must stay as they are."""
NOISE = 0xA5


def kernels(code: Code) -> list:
    """Each kernel once, in the order of its first call."""
    return list({call.kernel.symbol: call.kernel for call in code.calls}.values())


class Memory:
    """The buffers of a piece of code, with guards between them and noise in all that nobody has written."""

    def __init__(self, code: Code, inputs: Mapping[str, np.ndarray]) -> None:
        self.code, self.start, size = code, {}, GUARD
        for name, buffer in code.buffers.items():
            if name not in code.aliases:
                size = -(-size // 64) * 64
                self.start[name] = size
                size += buffer.bytes + GUARD
        self.raw = np.full(size + 64, NOISE, np.uint8)
        self.raw = self.raw[-self.raw.ctypes.data % 64 :]
        for name, value in inputs.items():
            flat = np.ascontiguousarray(value).view(np.uint8).ravel()
            self.raw[self.start[name] : self.start[name] + flat.size] = flat

    def offset(self, name: str) -> int:
        root, offset = self.code.aliases.get(name, (name, 0))
        return self.start[root] + offset

    def value(self, name: str) -> np.ndarray:
        tensor = self.code.tensors[name]
        start = self.offset(name)
        return self.raw[start : start + tensor.bytes].view(tensor.dtype).reshape(tensor.shape).copy()

    def check_guards(self) -> None:
        used = np.zeros(self.raw.size, bool)
        for name, start in self.start.items():
            used[start : start + self.code.buffers[name].bytes] = True
        assert (self.raw[~used] == NOISE).all(), "a kernel wrote outside of its buffers"


def call_all(library: ctypes.CDLL, code: Code, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Calls the kernels of a loaded library; those with rows in uneven parts."""
    memory = Memory(code, inputs)
    constants = []
    for values in code.constants:
        raw = np.zeros(values.nbytes + 64, np.uint8)
        raw = raw[-raw.ctypes.data % 64 :][: values.nbytes]
        raw[:] = np.ascontiguousarray(values).view(np.uint8).ravel()
        constants.append(raw)
    before = [raw.copy() for raw in constants]
    base = memory.raw.ctypes.data
    for call in code.calls:
        function = getattr(library, call.kernel.symbol)
        pointers = [
            ctypes.c_void_p(constants[a.index].ctypes.data if isinstance(a, Constant) else base + memory.offset(a))
            for a in call.arguments
        ]
        rows = call.kernel.rows
        if rows is None:
            function(*pointers)
        else:
            parts = sorted({0, 1, rows // 2, rows})
            for first, last in pairwise(parts):
                function(*pointers, ctypes.c_int32(first), ctypes.c_int32(last))
    assert all((a == b).all() for a, b in zip(before, constants, strict=True)), "a kernel wrote into a constant"
    memory.check_guards()
    return {name: memory.value(name) for name in code.outputs}


def in_process(code: Code, isa: Isa, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The machine code of this machine's own instruction set."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "kernels.o").write_bytes(object_file(kernels(code), isa))
        subprocess.run(["cc", "-shared", "-o", "kernels.so", "kernels.o"], cwd=path, check=True)
        return call_all(ctypes.CDLL(str(path / "kernels.so")), code, inputs)


def as_c(code: Code, isa: Isa, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same kernels as C99, through the system's compiler."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "kernels.c").write_text(c_source(kernels(code)))
        flags = [
            "-std=c99",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-Werror",
            "-pedantic",
            "-O2",
            "-shared",
            "-fPIC",
        ]
        subprocess.run(["cc", *flags, "-o", "kernels.so", "kernels.c"], cwd=path, check=True)
        return call_all(ctypes.CDLL(str(path / "kernels.so")), code, inputs)
