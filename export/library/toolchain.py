"""Compilers for a device: what is installed, which flags it takes, and what to install if there is none."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compress.errors import BadInput, MissingCompiler
from compress.export.kernels.isa import Isa

WARNINGS = ("-Wall", "-Wextra", "-pedantic")
COMMON = ("-std=c99", "-O2", "-g0", "-ffp-contract=off")
ZIG = "python -m ziglang cc"
ZIG_LIBC = "gnu.2.28"
"""The oldest C library that a shared library made with zig has to find on the device; Debian 10's."""


@dataclass(frozen=True, slots=True)
class Family:
    """The GNU compiler of a kind of device.

    Attributes:
        prefix: of its commands.
        package: Debian's name.
        libc: Debian's name of the C library that programs need, or ``""``.
        zig: zig's name of the triple.
    """

    prefix: str
    package: str
    libc: str
    zig: str


KINDS: Mapping[tuple[str, bool], Family] = {
    ("x86_64", True): Family("x86_64-linux-gnu-", "gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross", "x86_64-linux"),
    ("aarch64", True): Family("aarch64-linux-gnu-", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "aarch64-linux"),
    ("riscv64", True): Family(
        "riscv64-linux-gnu-", "gcc-riscv64-linux-gnu", "libc6-dev-riscv64-cross", "riscv64-linux"
    ),
    ("riscv32", False): Family("riscv64-unknown-elf-", "gcc-riscv64-unknown-elf", "", "riscv32-freestanding"),
    ("riscv64", False): Family("riscv64-unknown-elf-", "gcc-riscv64-unknown-elf", "", "riscv64-freestanding"),
    ("thumb", False): Family("arm-none-eabi-", "gcc-arm-none-eabi", "libnewlib-arm-none-eabi", "thumb-freestanding"),
}


def architecture(isa: Isa) -> str:
    """The first word of the triple, the versions of Thumb as one."""
    word = isa.triple.split("-")[0]
    return "thumb" if word.startswith("thumb") else word


def hosted(isa: Isa) -> bool:
    """Whether the device has an operating system, so that shared libraries and threads make sense."""
    return "linux" in isa.triple


def native(isa: Isa) -> bool:
    """Whether this machine is of the device's architecture."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    return hosted(isa) and sys.platform == "linux" and machine == architecture(isa)


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A C compiler for one instruction set.

    Attributes:
        command: how it is called.
        flags: that choose the device.
        kind: ``gcc``, ``clang`` or ``zig``.
        isa: what for.
    """

    command: tuple[str, ...]
    flags: tuple[str, ...]
    kind: str
    isa: Isa

    @property
    def words(self) -> str:
        """What it is, without this machine's paths."""
        return ZIG if self.kind == "zig" else Path(self.command[0]).name

    def compile(self, source: Path, out: Path, more: Sequence[str] = ()) -> None:
        """One C or assembler file to a relocatable object, warnings being none of the user's business.

        Runs in the source's folder, so that nothing in the object names a path.
        """
        place = ("-fPIC",) if hosted(self.isa) else ("-ffreestanding",)
        flags = [*self.flags, *COMMON, *place, *self._sections(), *more]
        self._run([*self.command, *flags, "-c", source.name, "-o", str(out)], source.parent)

    def shared(self, objects: Sequence[Path], out: Path) -> None:
        """Objects to a shared library."""
        linker = ["-shared", "-Wl,-z,noexecstack", "-Wl,--build-id=none", f"-Wl,-soname,{out.name}", "-s"]
        self._run([*self.command, *self.flags, *linker, *map(str, objects), "-lm", "-pthread", "-o", str(out)])

    def executable(self, objects: Sequence[Path], out: Path, more: Sequence[str] = ()) -> None:
        """Objects to a program of a hosted device that needs no library there."""
        linker = ["-static", "-Wl,--gc-sections", "-Wl,-z,noexecstack", "-Wl,--build-id=none"]
        self._run([*self.command, *self.flags, *linker, *map(str, objects), "-lm", "-pthread", *more, "-o", str(out)])

    def complete(self) -> bool:
        """Whether the headers of the C library are there, which Debian has in a package of their own."""
        if not hosted(self.isa):
            return True
        probe = "#include <pthread.h>\n#include <stdio.h>\n"
        command = [*self.command, *self.flags, "-E", "-x", "c", "-"]
        return subprocess.run(command, input=probe.encode(), capture_output=True, env=environment()).returncode == 0

    def for_programs(self) -> Toolchain:
        """The same compiler for programs that are linked with all that they need."""
        flags = tuple(flag.replace(ZIG_LIBC, "musl") for flag in self.flags) if self.kind == "zig" else self.flags
        return replace(self, flags=flags)

    def _sections(self) -> tuple[str, ...]:
        return ("-ffunction-sections", "-fdata-sections", *(("-fno-sanitize=all",) if self.kind == "zig" else ()))

    def _run(self, command: Sequence[str], folder: Path | None = None) -> None:
        made = subprocess.run(
            list(command), cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment()
        )
        if made.returncode != 0:
            lines = (made.stderr or made.stdout).strip().splitlines() or ["no output"]
            first = next((line for line in lines if "error" in line or "undefined" in line), lines[-1])
            raise BadInput(f"{self.words} failed for {self.isa.triple}: {first[:300]}; is it complete and recent?")


def find(isa: Isa) -> Toolchain:
    """The compiler for ``isa``: the system's own or GNU's cross compiler, else zig's.

    Raises:
        MissingCompiler: there is none; the error says what brings one.
    """
    for candidate in candidates(isa):
        if candidate.complete():
            return candidate
    raise MissingCompiler(isa.triple, advice(isa), "ziglang", "embedded")


def advice(isa: Isa) -> str:
    """Debian's packages with a compiler for ``isa``, separated by spaces."""
    family = _family(isa)
    return "gcc libc6-dev" if native(isa) else " ".join(filter(None, (family.package, family.libc)))


def candidates(isa: Isa) -> list[Toolchain]:
    """Every compiler for ``isa`` that is installed, the preferred one first."""
    family, found = _family(isa), []
    names = [f"{family.prefix}gcc"]
    if native(isa):
        names = ["gcc", "cc", "clang", *names]
    for name in names:
        path = shutil.which(name)
        if path:
            found.append(Toolchain((path,), gcc_flags(isa), "clang" if name == "clang" else "gcc", isa))
            break
    if importlib.util.find_spec("ziglang") is not None:
        found.append(Toolchain((sys.executable, "-m", "ziglang", "cc"), _zig_flags(isa, family), "zig", isa))
    return found


def _family(isa: Isa) -> Family:
    key = architecture(isa), hosted(isa)
    if key not in KINDS:
        known = ", ".join(f"{name}{'' if linux else ' without a system'}" for name, linux in KINDS)
        raise BadInput(f"no compiler is known for {isa.triple}; known: {known}; link the objects yourself")
    return KINDS[key]


def gcc_flags(isa: Isa) -> tuple[str, ...]:
    """What GNU's compiler has to be told of the device."""
    if isa.family == "cortex-m":
        return ("-mthumb", f"-mcpu={isa.cpu}", f"-mfloat-abi={isa.abi or 'soft'}")
    if isa.family == "riscv":
        return (f"-march={riscv_extensions(isa)}", f"-mabi={isa.abi}", "-mcmodel=medany")
    return ()  # the driver itself runs on every processor of the family, to say that it is the wrong one


def _zig_flags(isa: Isa, family: Family) -> tuple[str, ...]:
    if isa.family == "cortex-m":
        return (
            "-target",
            f"{family.zig}-{'eabihf' if isa.abi == 'hard' else 'eabi'}",
            f"-mcpu={_underscored(isa.cpu)}",
        )
    if isa.family == "riscv" and not hosted(isa):
        letters = [feature for feature in isa.features if feature.startswith("+")]
        return ("-target", family.zig, f"-mcpu={_underscored(isa.cpu)}{''.join(letters)}", f"-mabi={isa.abi}")
    return ("-target", f"{family.zig}-{ZIG_LIBC if hosted(isa) else 'none'}")


def _underscored(cpu: str) -> str:
    return cpu.replace("-", "_")


def riscv_extensions(isa: Isa) -> str:
    """GNU's name of the instruction set: ``rv64imafdc``."""
    given = [feature[1:] for feature in isa.features if feature.startswith("+")]
    letters = "".join(letter for letter in "mafdcv" if letter in given)
    longer = "".join(f"_{name}" for name in given if len(name) > 1)
    return f"rv{'64' if architecture(isa) == 'riscv64' else '32'}i{letters}{longer}"


def environment() -> dict[str, str]:
    """Messages in English; zig's cache out of the way of the user's files."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(cache) / "compress" / "zig"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir())
    defaults = {"ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
    return {**defaults, **os.environ, "LC_ALL": "C"}


__all__ = [
    "Toolchain",
    "advice",
    "architecture",
    "candidates",
    "environment",
    "find",
    "gcc_flags",
    "hosted",
    "native",
    "riscv_extensions",
]
