"""Cortex-M: the roster's cases in one emulated program a core, against the reference; and what sums and memory cost."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import numpy as np
import pytest

from compress.export.kernels import backends, cortex_m, isa
from compress.export.kernels.cortex_m_convolution import by_differences
from compress.export.kernels.isa import Isa
from compress.integer import program as p
from compress.integer import reference
from compress.integer.signedness import with_signedness
from tests.export.kernels.emulated import run_all
from tests.export.kernels.roster import CASES, SHAPES, case, convolution, numbers, requantize

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
            close = np.allclose(given, value, rtol=1e-5, atol=1e-5, equal_nan=True)  # NaN where the reference has it
            if not (np.array_equal(given, value) if exact else close):
                bad.append(name)
    return bad


def test_a_cortex_m_computes_what_the_reference_does() -> None:
    assert wrong(FEW, isa.CORTEX_M4) == []


@pytest.mark.slow
@pytest.mark.parametrize("core", CORES, ids=lambda core: core.cpu)
def test_every_case_on_every_core(core: Isa) -> None:
    assert wrong(tuple(CASES), core) == []


def residual(channels: int, width: int, other: str) -> tuple[p.Program, dict[str, np.ndarray]]:
    """``y = a + convolution(a)`` (``other`` "a"), or ``c + convolution(b)`` of ``b = c = a`` requantized otherwise."""
    g = np.random.default_rng(channels * 100 + width)
    shape = (9, width, channels)
    tensors = {name: p.Tensor(name, shape, "int8", 0.1, zero) for name, zero in
               (("x", 5), ("a", -3), ("b", 11), ("m", -20), ("y", 9))}  # fmt: skip
    how = requantize(g, channels, (38, 40), -20, (-128, 127))
    weight = g.integers(-127, 128, (channels, 3, 3, channels)).astype(np.int8)
    bias = g.integers(-2000, 2000, channels).astype(np.int32)
    ops = [p.Add("to_a", ("x",), "a", (900_000,), 20, -3, -128, 127)]
    source = "a"
    if other != "a":
        ops.append(p.Add("to_b", ("x",), "b", (700_000,), 20, 11, -128, 127))
        source = "b"
    ops.append(p.Convolution("conv", (source,), "m", weight, 8, bias, padding=(1, 1, 1, 1), requantize=how))
    ops.append(p.Add("sum", ("a", "m"), "y", (800_000, -500_000), 20, 9, -128, 100))
    ops.append(p.Add("out", ("y",), "z", (1 << 20,), 20, 9, -128, 127))
    tensors["z"] = p.Tensor("z", shape, "int8", 0.1, 9)
    used = {name for op in ops for name in (*op.inputs, op.output)}
    program = p.Program({name: tensors[name] for name in used}, tuple(ops), ("x",), ("z",))
    return program, {"x": numbers(g, tensors["x"])}


def test_residual_additions_are_done_in_place_where_nothing_else_reads_that_memory() -> None:
    found = [residual(*sizes, other) for sizes in ((8, 6), (7, 6), (8, 5)) for other in ("a", "b")]
    codes = [cortex_m.code(program, isa.CORTEX_M4, f"case{i}_") for i, (program, _) in enumerate(found)]
    pairs = [[pair for call in code.calls for pair in call.in_place if pair[0] == "y"] for code in codes]
    # Odd channels and odd rows compute some outputs twice.
    assert pairs == [[], [("y", "a")], [], [], [], []]
    for (program, inputs), outcome in zip(
        found, run_all(codes, isa.CORTEX_M4, [x for _, x in found], planned=True), strict=True
    ):
        np.testing.assert_array_equal(outcome.outputs["z"], reference.run(program, inputs)["z"])


def test_images_whose_sizes_take_more_than_sixteen_bits() -> None:
    g = np.random.default_rng(0)
    found = [
        convolution(g, (2, 520, 4), 64, kernel=(2, 3), padding=(0, 1, 1, 1)),
        convolution(g, (1, 3, 12000), 4, kernel=(1, 1), padding=(0, 0, 0, 0)),
        convolution(g, (3, 8500, 4), 4, groups=4),
    ]
    signed = [(with_signedness(program, True), {"x": (inputs["x"] ^ 0x80).view(np.int8)}) for program, inputs in found]
    codes = [cortex_m.code(program, isa.CORTEX_M4, f"case{i}_") for i, (program, _) in enumerate(signed)]
    for (program, inputs), outcome in zip(signed, run_all(codes, isa.CORTEX_M4, [x for _, x in signed]), strict=True):
        np.testing.assert_array_equal(outcome.outputs["y"], reference.run(program, inputs)["y"])


def test_one_bit_weights_are_added_and_subtracted() -> None:
    g = np.random.default_rng(1)
    forms = (
        {"image": (6, 7, 16), "outputs": 8, "zero": 0},
        {"image": (5, 8, 8), "outputs": 5, "zero": 255, "strides": (2, 2)},
        {"image": (7, 6, 3), "outputs": 6, "zero": 131, "strides": (1, 2)},
        {"image": (4, 6, 13), "outputs": 4, "kernel": (2, 2), "padding": (1, 2, 0, 1)},
        {"image": (9, 5, 24), "outputs": 3, "padding": (2, 1, 2, 1), "dilations": (2, 1)},
        {"image": (3, 5, 40), "outputs": 2, "kernel": (1, 1), "padding": (0, 0, 0, 0), "ends": (7, 90)},
        {"image": (1, 1, 64), "outputs": 10, "kernel": (1, 1), "padding": (0, 0, 0, 0), "out_zero": 200},
    )
    found = [convolution(g, bits=1, **form) for form in forms] + [convolution(g, bits=2, **forms[0])]
    signed = [(with_signedness(program, True), {"x": (inputs["x"] ^ 0x80).view(np.int8)}) for program, inputs in found]
    assert [by_differences(program.ops[0]) for program, _ in signed] == [True] * len(forms) + [False]
    codes = [cortex_m.code(program, isa.CORTEX_M4, f"case{i}_") for i, (program, _) in enumerate(signed)]
    outcomes = run_all(codes, isa.CORTEX_M4, [x for _, x in signed])
    for (program, inputs), outcome in zip(signed, outcomes, strict=True):
        np.testing.assert_array_equal(outcome.outputs["y"], reference.run(program, inputs)["y"])
    assert outcomes[0].instructions < 0.75 * outcomes[-1].instructions
