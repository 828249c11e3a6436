"""Instruction sets that kernels are written for, and the TVM target of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Family = Literal["x86", "aarch64", "cortex-m", "riscv"]


@dataclass(frozen=True, slots=True)
class Isa:
    """What the kernels of a device may use.

    Attributes:
        family: which back end.
        triple, cpu: LLVM's names.
        features: LLVM's attributes (``"+dotprod"``).
        dot: the best 8-bit dot product: ``vnni512`` (AVX-512 VNNI), ``vnni256`` (AVX-VNNI or AVX-512VL VNNI), ``avx2``,
            ``sdot`` (Arm dot product), ``neon``, ``dsp`` (Cortex-M SMLAD), ``none``.
        signed: 8-bit activations are int8 in the kernels, else uint8.
        abi: LLVM's name of the float calling convention that programs have, where it isn't the triple's own.
    """

    family: Family
    triple: str
    cpu: str
    features: tuple[str, ...]
    dot: str
    signed: bool
    abi: str | None = None

    def tvm_target(self) -> Any:
        """The ``tvm.target.Target``."""
        import tvm

        keys: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu}
        if self.features:
            keys["mattr"] = list(self.features)
        if self.family == "riscv":
            keys["mabi"] = self.abi
        elif self.abi is not None:
            # No kernel takes or gives a float. Cores with float32 only compute float64 by functions that take their
            # arguments in core registers whatever the ABI; for hard LLVM would pass them otherwise.
            keys["mfloat-abi"] = "soft"
        if self.family in ("cortex-m", "riscv"):
            keys["vector-width"] = 128  # TVM's own default, which it otherwise warns of at each compilation
        return tvm.target.Target(keys)


X86_VNNI = Isa("x86", "x86_64-linux-gnu", "cascadelake", (), "vnni512", signed=False)
X86_AVX_VNNI = Isa("x86", "x86_64-linux-gnu", "alderlake", (), "vnni256", signed=False)
X86_AVX2 = Isa("x86", "x86_64-linux-gnu", "haswell", (), "avx2", signed=False)
CORTEX_A72 = Isa("aarch64", "aarch64-linux-gnu", "cortex-a72", (), "neon", signed=True)
CORTEX_A76 = Isa("aarch64", "aarch64-linux-gnu", "cortex-a76", ("+dotprod",), "sdot", signed=True)
CORTEX_M4 = Isa("cortex-m", "thumbv7em-none-eabi", "cortex-m4", (), "dsp", signed=True, abi="hard")
CORTEX_M7 = Isa("cortex-m", "thumbv7em-none-eabi", "cortex-m7", (), "dsp", signed=True, abi="hard")
CORTEX_M33 = Isa("cortex-m", "thumbv8m.main-none-eabi", "cortex-m33", (), "dsp", signed=True, abi="hard")
CORTEX_M55 = Isa("cortex-m", "thumbv8.1m.main-none-eabi", "cortex-m55", ("-mve",), "dsp", signed=True, abi="hard")
RV64_LINUX = Isa(
    "riscv", "riscv64-unknown-linux-gnu", "generic-rv64", ("+m", "+a", "+f", "+d", "+c"), "none", True, "lp64d"
)
RV32_BARE = Isa("riscv", "riscv32-unknown-elf", "generic-rv32", ("+m", "+c"), "none", signed=True, abi="ilp32")
