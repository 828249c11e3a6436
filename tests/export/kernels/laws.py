"""The law of every back end: its code computes what the reference does, whatever the instruction set and layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.export.kernels.code import Layout
from compress.export.kernels.emit import assemble
from compress.export.kernels.emitted import Emitter, Layouts
from compress.export.kernels.isa import Isa
from compress.integer import reference
from compress.integer.program import Program
from tests.export.kernels import crossed, hosted, roster

TOLERANCE = {"rtol": 2e-6, "atol": 2e-6}
"""Of float32 results: rounding in another order, of sums of up to a few hundred terms of magnitude about 1."""


@dataclass(frozen=True)
class BackEnd:
    """Something that turns programs into code, and a way to run it here."""

    name: str
    isa: Isa
    overrides: tuple[Emitter, ...] = ()
    layouts: Layouts | None = None
    run: hosted.Run = hosted.in_process
    needs: str = ""

    @property
    def missing(self) -> bool:
        """Whether this machine's processor lacks the feature ``needs``."""
        return bool(self.needs) and self.needs not in Path("/proc/cpuinfo").read_text()


def agree(want: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> None:
    """Integers to the bit, float32 to rounding."""
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert got[name].dtype == value.dtype
        if value.dtype == np.float32:
            np.testing.assert_allclose(got[name], value, **TOLERANCE)
        else:
            np.testing.assert_array_equal(got[name], value)


def check(name: str, back_end: BackEnd) -> None:
    """One case of the roster."""
    program, inputs = roster.case(name, back_end.isa.signed)
    code = assemble(program, back_end.isa, back_end.overrides, back_end.layouts)
    agree(reference.run(program, inputs), back_end.run(code, back_end.isa, inputs))


def check_emulated(
    names: Sequence[str], isa: Isa, overrides: Sequence[Emitter] = (), how: Layouts | None = None
) -> None:
    """Many cases of the roster in one emulated program."""
    cases = [roster.case(name, isa.signed) for name in names]
    codes = [assemble(program, isa, overrides, how, prefix=f"k{k}_") for k, (program, _) in enumerate(cases)]
    found = crossed.run_all(codes, isa, [inputs for _, inputs in cases])
    wrong = []
    for name, (program, inputs), got in zip(names, cases, found, strict=True):
        try:
            agree(reference.run(program, inputs), got)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    assert not wrong, "\n".join(wrong)


def awkward(program: Program, isa: Isa) -> Mapping[str, Layout]:
    """Every image with gaps between its pixels and a lopsided halo: nothing may count on dense memory."""
    images = [t for t in program.tensors.values() if len(t.shape) == 3]
    return {t.name: Layout(t.shape[2] + 3, (2, 1, 0, 3)) for t in images}
