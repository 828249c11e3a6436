"""The instruction set of a target, and the back end that makes its code."""

from __future__ import annotations

import platform
from pathlib import Path

from compress.export.kernels import isa as sets
from compress.export.kernels.code import Code
from compress.export.kernels.isa import Isa
from compress.integer.program import Program
from compress.integer.signedness import with_signedness
from compress.types import Target

KNOWN = (
    sets.X86_VNNI,
    sets.X86_AVX_VNNI,
    sets.X86_AVX2,
    sets.CORTEX_A72,
    sets.CORTEX_A76,
    sets.CORTEX_M4,
    sets.CORTEX_M7,
    sets.CORTEX_M33,
    sets.CORTEX_M55,
    sets.RV64_LINUX,
    sets.RV32_BARE,
)
"""Every instruction set that there are kernels for."""


def isa_of(target: Target) -> Isa | None:
    """The instruction set of a target's processor; None where there are no kernels for it."""
    if target.host:
        return host()
    return next((each for each in KNOWN if (each.triple, each.cpu) == (target.triple, target.cpu)), None)


def host() -> Isa | None:
    """The best instruction set of the machine that this runs on; None where there are no kernels for it."""
    if platform.system() != "Linux":
        return None
    machine = platform.machine().lower()
    features = _features()
    if machine in ("x86_64", "amd64"):
        if {"avx512_vnni", "avx512vl", "avx512bw"} <= features:
            return sets.X86_VNNI
        if "avx_vnni" in features:
            return sets.X86_AVX_VNNI
        return sets.X86_AVX2 if {"avx2", "fma"} <= features else None
    if machine in ("aarch64", "arm64"):
        return sets.CORTEX_A76 if "asimddp" in features else sets.CORTEX_A72
    return None


def _features() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    found = (line.split(":", 1)[1] for line in lines if line.lower().startswith(("flags", "features")))
    return set(next(found, "").split())


def assemble(program: Program, isa: Isa, prefix: str = "kernel") -> Code:
    """The kernels of a program, whatever its signedness, for an instruction set.

    Raises:
        BadInput: an operator has no kernel.
    """
    from compress.export.kernels import aarch64, cortex_m, emit, halos, x86

    program = with_signedness(program, isa.signed)
    if isa.family == "x86":
        return x86.assemble(program, isa, prefix)
    if isa.family == "aarch64":
        return aarch64.assemble(program, isa, prefix)
    if isa.family == "cortex-m":
        return cortex_m.code(program, isa, prefix)
    return emit.assemble(program, isa, layouts=halos.halos, prefix=prefix)


__all__ = ["KNOWN", "assemble", "host", "isa_of"]
