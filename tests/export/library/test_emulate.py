"""Libraries for other architectures under QEMU's user-mode emulator."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from compress.errors import BadInput, MissingCompiler
from compress.export.kernels import isa
from compress.export.library import building, emulate, toolchain
from tests.export.library.codes import expected, images, small_code

DEVICES = {"x86": isa.X86_AVX2, "cortex-a72": isa.CORTEX_A72, "cortex-a76": isa.CORTEX_A76, "riscv64": isa.RV64_LINUX}


@pytest.mark.parametrize("device", DEVICES)
def test_200_images_give_what_numpy_gives(device, tmp_path):
    built = building.build(small_code(), DEVICES[device], tmp_path)
    try:
        emulate.emulator(built)
        toolchain.find(built.isa)
    except (BadInput, MissingCompiler) as missing:
        pytest.skip(str(missing))
    x = images(200)
    raw = built.interface.inputs[0].to_library(x)
    assert emulate.run_named(built, {"x": x})["y"].tolist() == expected(raw).tolist()


@pytest.mark.slow
def test_zigs_programs_run_too(tmp_path):
    built = building.build(small_code(), isa.CORTEX_A72, tmp_path)
    tools = [c for c in toolchain.candidates(isa.CORTEX_A72) if c.kind == "zig"]
    if not tools or shutil.which("qemu-aarch64-static") is None:
        pytest.skip("needs ziglang and qemu-user-static")
    raw = built.interface.inputs[0].to_library(images(3))
    assert emulate.run_raw(built, [raw], tools[0])[0].tolist() == expected(raw).tolist()


def test_a_microcontroller_has_no_programs_to_emulate(tmp_path):
    built = building.build(small_code(), isa.CORTEX_M7, tmp_path)
    with pytest.raises(BadInput, match="no operating system"):
        emulate.run_raw(built, [np.zeros((1, 6, 5, 3), np.int8)])


def test_a_missing_emulator_is_named(tmp_path, monkeypatch):
    built = building.build(small_code(), isa.RV64_LINUX, tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match="apt install qemu-user-static"):
        emulate.emulator(built)


def test_inputs_of_another_type_are_refused(tmp_path):
    built = building.build(small_code(), isa.RV64_LINUX, tmp_path)
    with pytest.raises(BadInput, match="takes int8"):
        emulate.run_raw(built, [np.zeros((1, 6, 5, 3), np.uint8)])
