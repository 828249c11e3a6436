"""Cortex-M: the roster's cases in one emulated program a core, against the reference; and what sums and memory cost."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import numpy as np
import pytest

from compress.export.kernels import backends, isa
from compress.export.kernels.isa import Isa
from compress.integer import reference
from tests.export.kernels.emulated import run_all
from tests.export.kernels.roster import CASES, SHAPES, case

TOOLS = ("qemu-system-arm", "qemu-system-riscv32", "arm-none-eabi-gcc", "riscv64-unknown-elf-gcc")
pytestmark = pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason="needs emulators")
CORES = (isa.CORTEX_M4, isa.CORTEX_M7, isa.CORTEX_M33, isa.CORTEX_M55, isa.RV32_BARE)
FEW = (
    *(f"conv_{shape}_w{bits}" for shape, bits in zip(SHAPES, (8, 4, 2, 1) * len(SHAPES), strict=False)),
    "conv_shifts_mixed", "conv_to_float", "conv_wraps", "conv_clamped", "chain", "lookup", "softmax", "float_pow",
)  # fmt: skip
"""Every form of convolution in one width or another, and some of the rest."""


def wrong(names: Sequence[str], core: Isa) -> list[str]:
    """The cases that don't come out as the reference has them. One program for all: each emulator takes its time."""
    found = [case(name, signed=True) for name in names]
    codes = [backends.assemble(program, core, f"case{i}_") for i, (program, _) in enumerate(found)]
    outcomes = run_all(codes, core, [inputs for _, inputs in found])
    bad = []
    for name, (program, inputs), outcome in zip(names, found, outcomes, strict=True):
        for output, value in reference.run(program, inputs).items():
            given = outcome.outputs[output]
            exact = value.dtype != np.float32
            if not (np.array_equal(given, value) if exact else np.allclose(given, value, rtol=1e-5, atol=1e-5)):
                bad.append(name)
    return bad


def test_a_cortex_m_computes_what_the_reference_does() -> None:
    assert wrong(FEW, isa.CORTEX_M4) == []


@pytest.mark.slow
@pytest.mark.parametrize("core", CORES, ids=lambda core: core.cpu)
def test_every_case_on_every_core(core: Isa) -> None:
    assert wrong(tuple(CASES), core) == []
