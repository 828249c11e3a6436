"""Portable kernels obey the law on every instruction set that runs here, in machine code and as C99."""

from __future__ import annotations

import re
import subprocess

import pytest

from compress.export.kernels import isa as isas
from compress.export.kernels.compiling import c_source, object_file
from compress.export.kernels.emit import assemble
from compress.export.kernels.halos import halos
from tests.export.kernels import crossed, hosted, laws, roster
from tests.rosters import some

NAMES = tuple(roster.CASES)
FORMS = {
    form.name: form
    for form in (
        laws.BackEnd("vnni", isas.X86_VNNI, needs="avx512_vnni"),
        laws.BackEnd("avx2", isas.X86_AVX2, needs="avx2"),
        laws.BackEnd("halos", isas.X86_AVX2, layouts=halos, needs="avx2"),
        laws.BackEnd("awkward", isas.X86_AVX2, layouts=laws.awkward, needs="avx2"),
        laws.BackEnd("c99", isas.RV32_BARE, run=hosted.as_c),
    )
}
EMULATED = ("CORTEX_A72", "RV64_LINUX", "RV32_BARE")
MOST = tuple(
    n for k, n in enumerate(NAMES) if k % 5 == 0 or (not n.startswith("float_conv") and n[-3:-1] != "_w") or "w8" in n
)
"""All but most of the repeats in narrow weights and float32; every other one in the default run, all in the slow."""
FEW = NAMES[::12]


@some(
    ("form", "name"),
    [(form, name) for form in FORMS for name in NAMES],
    quick=[
        *(("avx2", name) for name in MOST[::2]),
        *((form, name) for form in ("vnni", "awkward", "c99") for name in FEW),
    ],
)
def test_every_form_of_every_case_equals_the_reference(form, name):
    back_end = FORMS[form]
    if back_end.missing:
        pytest.skip(f"this processor has no {back_end.needs}")
    laws.check(name, back_end)


@pytest.mark.slow
@pytest.mark.parametrize("isa", EMULATED)
def test_emulated_code_equals_the_reference(isa):
    chosen = getattr(isas, isa)
    tool = crossed.missing(chosen)
    if tool is not None:
        pytest.skip(f"{tool} isn't installed")
    laws.check_emulated(NAMES, chosen)


LIBRARY = re.compile(
    r"mem(cpy|set|move)|__(aeabi_\w+|\w+[sd]f\d?|u?divdi3|u?moddi3|muldi3|(ash|lsh)[lr]di3|\w+[sd]f[sd]i)"
)
"""What a compiler's own support library has: no mathematics, no allocation."""


@some(
    "isa",
    ["X86_VNNI", "X86_AVX2", "CORTEX_A72", "CORTEX_M4", "CORTEX_M7", "CORTEX_M55", "RV64_LINUX", "RV32_BARE"],
    quick=["X86_AVX2", "CORTEX_A72", "CORTEX_M4", "RV32_BARE"],
)
def test_nothing_from_outside_is_needed(isa, tmp_path):
    chosen = getattr(isas, isa)
    names = ["chain", "quantize", "softmax_wide_products", "resize", "conv_plain_w3", "conv_shift_31", "matmul"]
    names += [f"float_{kind}" for kind in ("exp", "log", "tanh", "erf", "sigmoid", "sqrt", "pow", "softmax", "matmul")]
    names += ["float_conv_plain", "float_reduce_mean_2"]
    kernels = []
    for k, name in enumerate(names):
        program, _ = roster.case(name, chosen.signed)
        kernels += hosted.kernels(assemble(program, chosen, prefix=f"k{k}_"))
    (tmp_path / "kernels.o").write_bytes(object_file(kernels, chosen))
    said = subprocess.run(["nm", "-u", "kernels.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    undefined = {line.split()[-1] for line in said.splitlines() if " U " in line}
    assert {name for name in undefined if not LIBRARY.fullmatch(name)} == set()


def test_c99_needs_one_header():
    program, _ = roster.case("chain", True)
    text = c_source(hosted.kernels(assemble(program, isas.RV32_BARE)))
    assert re.findall(r"#.*", text) == ["#include <stdint.h>"]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", ["plain", "linear_long", "depthwise_wide"])
def test_narrow_weights_stay_packed(shape, bits):
    program, _ = roster.case(f"conv_{shape}_w{bits}")
    code = assemble(program, isas.RV64_LINUX)
    assert code.constants[0].nbytes == program.ops[0].weight.size * bits // 8
