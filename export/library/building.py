"""One entry for all of it: a back end's code to the folder of a library that ships.

::

    library/
    ├── README.md, library.json      what it is; the same for programs
    ├── src/NAME.h, NAME.c, ...      the C, for any toolchain
    ├── lib/NAME_kernels.o           the kernels; NAME_kernels.c too, where they are plain scalar code
    ├── lib/libNAME.a, libNAME.so    linked, where a compiler is there
    ├── golden/main.c                runs the golden inputs and says "ok"
    ├── CMakeLists.txt
    ├── library.properties, examples/, src/CPU/libNAME_kernels.a      Arduino
    └── zephyr/                      a Zephyr module with a sample

The same code gives the same bytes: no dates, no paths.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from compress.errors import BadInput, CheckFailed, MissingCompiler
from compress.export.kernels import compiling
from compress.export.kernels.code import Code
from compress.export.kernels.isa import Isa
from compress.export.library import c_driver, elf, layouts, memory_plan, rendering, sizes, stripping, toolchain
from compress.export.library.golden import Golden
from compress.export.library.interface import Interface, checked_name, ends
from compress.serial import from_json, mismatch, to_json, write_atomic

DESCRIPTION = "library.json"
CALLER_STACK = 256
"""Bytes of stack for the driver itself, the C library's memcpy and memset, and an interrupt's frame: an estimate."""


@dataclass(frozen=True)
class BuiltLibrary:
    """A library on disk.

    Attributes:
        folder: where it is; not part of what is written.
        interface: its name and its ends.
        isa: what its kernels were compiled for.
        files: paths below ``folder``, sorted.
        arena_bytes: working memory of a run; inputs and outputs are the caller's.
        lower_bound_bytes: what the arena would need at least, by liveness.
        stack_bytes: about what a run takes of the stack.
        flash_bytes: code and constants in the device's flash, or on its disk: kernels, driver, weights.
        code_bytes: the instructions among them.
        weight_bytes: the constants of the network among them.
        linked: the shared library or static archive, below ``folder``; None if there is none.
        reason: why there is none.
        compiler: what compiled the C, in words.
    """

    interface: Interface
    isa: Isa
    files: tuple[str, ...]
    arena_bytes: int
    lower_bound_bytes: int
    stack_bytes: int
    flash_bytes: int
    code_bytes: int
    weight_bytes: int
    linked: str | None = None
    reason: str | None = None
    compiler: str | None = None
    folder: Path = field(default=Path(), compare=False)

    @property
    def name(self) -> str:
        """The prefix of its functions and files."""
        return self.interface.name

    @property
    def linked_path(self) -> Path | None:
        """The shared library or archive."""
        return None if self.linked is None else self.folder / self.linked

    @property
    def ram_bytes(self) -> int:
        """Arena, stack, and the inputs and outputs."""
        outer = sum(end.bytes for end in (*self.interface.inputs, *self.interface.outputs))
        return self.arena_bytes + self.stack_bytes + outer

    def sources(self) -> tuple[Path, ...]:
        """The C and assembler files that belong to every program with this network, and the kernels' object."""
        names = (f"src/{self.name}.c", f"src/{self.name}_weights.c", f"src/{self.name}_weights.S")
        return tuple(self.folder / name for name in (*names, f"lib/{self.name}_kernels.o") if name in self.files)


def build(
    code: Code,
    isa: Isa,
    folder: Path,
    name: str = "model",
    golden: Golden | None = None,
    file_shapes: Mapping[str, Sequence[int]] | None = None,
) -> BuiltLibrary:
    """Compile ``code`` and write its library into ``folder``.

    Without a C compiler for the device the folder holds the kernels' object and the C to compile with it, ``linked``
    is None and ``reason`` says what to install.

    Args:
        code: what the back end made for ``isa``.
        isa: the instruction set.
        folder: made if need be; files of the same names are replaced.
        name: prefix of the library's functions and files, so that several link into one program.
        golden: inputs and outputs for the programs that check a device.
        file_shapes: shapes of the ends in the file, without the batch, by name.

    Raises:
        BadInput: the name is no C identifier, or a compiler is there and fails.
        ValueError: the code contradicts itself.
    """
    code = c_driver.renamed(code, checked_name(name))
    plan = memory_plan.plan(code)
    threads = toolchain.hosted(isa)
    interface = c_driver.interface_of(name, isa, plan, ends(code, file_shapes), threads)
    kernels = c_driver.kernels(code)
    whole, listing = compiling.object_and_assembly(kernels, isa)
    compiled = stripping.stripped(whole)
    stack = sizes.stack_bytes(listing) + CALLER_STACK
    driver = c_driver.Driver(code, plan, interface, isa, stack)
    files = driver.sources(golden)
    files[f"lib/{name}_kernels.o"] = compiled
    portable = isa.dot == "none" and "+f" not in isa.features
    if portable:
        files[f"lib/{name}_kernels.c"] = compiling.c_source(kernels).encode()
    files |= layouts.files(driver, compiled, golden is not None, portable)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / path, content)
    linked, reason, compiler, driver_object = None, None, None, None
    try:
        tools = toolchain.find(isa)
        linked, driver_object = _link(tools, folder, files, interface)
        compiler = tools.words
    except MissingCompiler as missing:
        reason = missing.sentence
    measured = sizes.of([compiled, *([driver_object] if driver_object else [])])
    weights = len(driver.weights.content)
    built = BuiltLibrary(
        interface,
        isa,
        tuple(sorted([*files, DESCRIPTION, *([linked] if linked else [])])),
        plan.arena_bytes,
        plan.lower_bound_bytes,
        stack,
        measured.flash + weights,
        measured.code,
        weights,
        linked,
        reason,
        compiler,
        folder,
    )
    write_atomic(folder / DESCRIPTION, _json(built))
    return built


def load(folder: Path) -> BuiltLibrary:
    """What :func:`build` wrote into ``folder``; nothing of it runs, and its hashes are the caller's to check.

    Raises:
        CheckFailed: the description is missing or damaged, or names a file that isn't there.
    """
    try:
        document = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if "folder" in document:
            raise ValueError("it names a folder")
        wrong = mismatch(BuiltLibrary, document)
        if wrong is not None:
            raise ValueError(wrong)
        found = dataclasses.replace(from_json(BuiltLibrary, document), folder=folder)
        for path in (*found.files, *((found.linked,) if found.linked else ())):
            if not (folder / path).resolve().is_relative_to(folder.resolve()) or not (folder / path).is_file():
                raise ValueError(f"the file {path!r} isn't there")
        checked_name(found.name)
    except (OSError, ValueError, TypeError, RecursionError, BadInput) as error:
        said = " ".join(str(error).split())[:200]
        raise CheckFailed(str(folder), [f"{DESCRIPTION} can't be used ({said}); copy the bundle again"]) from None
    return found


def _json(built: BuiltLibrary) -> bytes:
    document = to_json(built)
    del document["folder"]
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def _link(
    tools: toolchain.Toolchain, folder: Path, files: Mapping[str, bytes], interface: Interface
) -> tuple[str, bytes]:
    """The shared library or the archive, below ``folder``, and the driver's object."""
    name = interface.name
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for path, content in files.items():
            if path.startswith("src/") and path.count("/") == 1:
                (work / Path(path).name).write_bytes(content)
        kernels = work / f"{name}_kernels.o"
        kernels.write_bytes(files[f"lib/{name}_kernels.o"])
        sources = [work / f"{name}.c", *(p for end in "cS" if (p := work / f"{name}_weights.{end}").exists())]
        if toolchain.hosted(tools.isa):
            (work / f"{name}_describe.c").write_bytes(rendering.description(interface))
            sources += [work / f"{name}_threads.c", work / f"{name}_describe.c"]
        objects = [source.with_suffix(".o") for source in sources]
        with ThreadPoolExecutor(len(sources)) as pool:
            list(pool.map(tools.compile, sources, objects))
        driver = objects[0].read_bytes()
        if toolchain.hosted(tools.isa):
            linked = f"lib/lib{name}.so"
            tools.shared([*objects, kernels], work / f"lib{name}.so")
            write_atomic(folder / linked, (work / f"lib{name}.so").read_bytes())
        else:
            linked = f"lib/lib{name}.a"
            members = [(f"{i}.o", path.read_bytes()) for i, path in enumerate([*objects, kernels])]
            write_atomic(folder / linked, elf.archive(members))
    return linked, driver


__all__ = ["DESCRIPTION", "BuiltLibrary", "build", "load"]
