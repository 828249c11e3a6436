"""A compiled library in this process: floats in the file's order in, floats out.

Loading a shared library runs its code. Nothing here decides whether that is wise: callers load what they have built
themselves, or what a user named in a command that says it runs it, after they have checked its hash. Everything that
can be known without running it is checked first, from the file's bytes.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.errors import BadInput
from compress.export.library import elf
from compress.export.library.interface import Interface
from compress.export.library.rendering import SECTION
from compress.serial import from_json, mismatch

_REFUSALS = {
    1: "its arena is too small",
    2: "its arena is misaligned",
    3: "this processor lacks instructions that it was compiled for: compile for this machine",
}


def describe(path: Path) -> Interface:
    """What a shared library says of itself, read from its bytes; nothing in it runs.

    Raises:
        BadInput: the file is missing, damaged, for another machine, or no library of ours.
    """
    return _described(path, _read(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"library {path}: {error.strerror}; give the lib{{NAME}}.so of a bundle") from None


def _described(path: Path, content: bytes) -> Interface:
    try:
        file = elf.read(content)
        text = file.bytes_of(SECTION)
        if file.kind != elf.SHARED or text is None:
            raise BadInput(f"library {path}: it is no shared library made by compress; give lib/lib{{NAME}}.so")
        document = json.loads(text.rstrip(b"\0").decode())
        wrong = mismatch(Interface, document)
        if wrong is not None:
            raise ValueError(wrong)
        interface = from_json(Interface, document)
    except (ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:160]
        raise BadInput(f"library {path} is damaged ({said}); build it again, or copy the bundle again") from None
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    here = "riscv" if machine.startswith("riscv") else machine
    if file.machine != here or file.bits != (64 if sys.maxsize > 2**32 else 32):
        raise BadInput(
            f"library {path} is for {interface.triple} and this machine is {platform.machine()}; "
            "run it on the device or under the emulator"
        )
    return interface


_loaded: dict[bytes, ctypes.CDLL] = {}
_loading = threading.Lock()


def _load(name: str, content: bytes) -> ctypes.CDLL:
    """The library of these bytes, loaded once.

    From a copy under a name of its own: the system's loader takes a second file at a path for the first one, even if
    it has been built anew in the meantime. And so what runs is what was looked at.
    """
    digest = hashlib.sha256(content).digest()
    with _loading:
        if digest not in _loaded:
            with tempfile.TemporaryDirectory(prefix="compress-") as folder:
                copy = Path(folder) / name
                copy.write_bytes(content)
                _loaded[digest] = ctypes.CDLL(str(copy))
        return _loaded[digest]


class Library:
    """A compiled network, ready to run. Several threads may use one.

    Args:
        path: the shared library. **Its code is run**, see the module.
        threads: of each run; more than one need a library that has them.

    Raises:
        BadInput: it can't be loaded here.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        content = _read(path)
        self.path, self.interface, self.threads = path, _described(path, content), threads
        name = self.interface.name
        try:
            library = _load(path.name, content)
            self._init, self._run = getattr(library, f"{name}_init"), getattr(library, f"{name}_run")
            pooled = [getattr(library, f"{name}_{call}") for call in _POOLED] if self.interface.threads else None
        except (OSError, AttributeError) as error:
            raise BadInput(f"library {path} can't be loaded: {error}; build it again") from None
        if threads != 1 and pooled is None:
            raise BadInput(f"library {path} runs on one thread only")
        self._library = library
        self._pooled = pooled if threads != 1 else None
        self._init.argtypes, self._init.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_int
        ends = len(self.interface.inputs) + len(self.interface.outputs)
        self._run.argtypes, self._run.restype = (ctypes.c_void_p,) * (1 + ends), None
        if self._pooled is not None:
            size, start, run, stop = self._pooled
            size.restype, size.argtypes = ctypes.c_size_t, ()
            start.restype, start.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_int)
            run.restype, run.argtypes = None, (ctypes.c_void_p,) * (2 + ends)
            stop.restype, stop.argtypes = None, (ctypes.c_void_p,)
        self._free: list[_Place] = []
        self._lock = threading.Lock()
        self._give(self._take())

    def run(self, images: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Outputs, float32 (N, *file_shape), of a batch of inputs, float32 (N, *file_shape): (N, C, H, W) for images.

        The network runs on one input after the other.

        Raises:
            BadInput: the network has several inputs or outputs.
            compress.errors.BadData: the batch doesn't fit.
        """
        inputs, outputs = self.interface.inputs, self.interface.outputs
        if len(inputs) != 1 or len(outputs) != 1:
            raise BadInput(f"the network has {len(inputs)} inputs and {len(outputs)} outputs; use run_named")
        return self.run_named({inputs[0].name: images})[outputs[0].name]

    def run_named(self, values: Mapping[str, npt.ArrayLike]) -> dict[str, npt.NDArray[np.float32]]:
        """As :meth:`run`, with inputs and outputs by name."""
        missing = [end.name for end in self.interface.inputs if end.name not in values]
        if missing:
            raise BadInput(f"the network's input {missing[0]!r} is missing")
        raw = self.run_raw([end.to_library(values[end.name]) for end in self.interface.inputs])
        return {end.name: end.from_library(a) for end, a in zip(self.interface.outputs, raw, strict=True)}

    def run_raw(self, inputs: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Batches in the library's own types and layouts, (N, *shape), one an input; the same of the outputs."""
        count = min(map(len, inputs))
        for end, array in zip(self.interface.inputs, inputs, strict=True):
            if array.dtype != np.dtype(end.dtype) or array.shape != (count, *end.shape):
                raise BadInput(f"input {end.name!r} takes {end.dtype} {(count, *end.shape)}, not {array.shape}")
        batch = [np.ascontiguousarray(array) for array in inputs]
        outputs = [np.empty((count, *end.shape), end.dtype) for end in self.interface.outputs]
        place = self._take()
        try:
            for index in range(count):
                place.run(*(array[index : index + 1].ctypes.data for array in (*batch, *outputs)))
        finally:
            self._give(place)
        return outputs

    def prepared(
        self, inputs: Sequence[npt.NDArray[Any]], outputs: Sequence[npt.NDArray[Any]] | None = None
    ) -> Callable[[], None]:
        """A call that runs the network on one input again and again, for timing: no conversion is in it.

        Args:
            inputs: one array an input, in the library's own type and layout, without a batch.
            outputs: where the outputs go, likewise and in one piece; by default they are lost.
        """
        kept = [np.ascontiguousarray(array) for array in inputs]
        kept += outputs or [np.empty(end.shape, end.dtype) for end in self.interface.outputs]
        for end, array in zip((*self.interface.inputs, *self.interface.outputs), kept, strict=True):
            if array.dtype != np.dtype(end.dtype) or array.shape != end.shape or not array.flags.c_contiguous:
                raise BadInput(f"{end.name!r} is {end.dtype} {end.shape}, not {array.dtype} {array.shape}")
        place = self._take()
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in kept]

        def once(run: Callable[..., None] = place.run, holding: Any = (kept, place)) -> None:
            run(*pointers)

        return once

    def close(self) -> None:
        """End the threads, if there are any; the library isn't used after this."""
        with self._lock:
            places, self._free = self._free, []
        for place in places:
            place.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _take(self) -> _Place:
        with self._lock:
            if self._free:
                return self._free.pop()
        return _Place(self)

    def _give(self, place: _Place) -> None:
        with self._lock:
            self._free.append(place)


_POOLED = ("pool_bytes", "pool_start", "run_threads", "pool_stop")


class _Place:
    """An arena, and the pool of threads if there is one: what one run at a time needs."""

    def __init__(self, library: Library) -> None:
        interface = library.interface
        size, align = interface.arena_bytes, max(interface.arena_alignment, 1)
        self._memory = ctypes.create_string_buffer(size + align)
        arena = -(-ctypes.addressof(self._memory) // align) * align
        status = library._init(arena, size)
        if status != 0:
            raise BadInput(f"library {library.path}: {_REFUSALS.get(status, f'it refused with {status}')}")
        self._stop: Callable[[], None] = lambda: None
        run = library._run
        if library._pooled is None:
            self.run: Callable[..., None] = lambda *ends: run(arena, *ends)
            return
        pool_bytes, start, run_threads, stop = library._pooled
        self._pool = ctypes.create_string_buffer(pool_bytes() + 64)
        pool = -(-ctypes.addressof(self._pool) // 64) * 64
        failed = start(pool, library.threads)
        if failed:
            raise BadInput(f"the system gave no {library.threads} threads (error {failed}); use fewer")
        self.run = lambda *ends: run_threads(pool, arena, *ends)
        self._stop = lambda: stop(pool)

    def close(self) -> None:
        """End the threads."""
        self._stop()
        self._stop = lambda: None

    def __del__(self) -> None:
        stop = getattr(self, "_stop", None)
        if stop is not None:
            self.close()


__all__ = ["Library", "describe"]
