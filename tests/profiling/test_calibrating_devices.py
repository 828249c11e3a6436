"""Calibrations measured by real parts, at tiny size: this machine, a device over SSH, instructions under QEMU."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import compress
from compress.errors import BadInput
from compress.profiling import calibrating, designs, pace
from compress.profiling.calibrating import Counted, Here, Size
from compress.profiling.device_address import SshDevice, parse
from compress.profiling.drawing import Drawing
from compress.profiling.remote_designs import There
from compress.profiling.timer import Timed, Turn
from compress.targets import load
from compress.types import FLOAT32, Precision
from tests.profiling.servers import Sshd, left_behind

W8A8 = Precision(8, 8, "integer")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "ROUNDS", 1)
    monkeypatch.setattr(calibrating, "SLICE_S", 1e-4)


def test_this_machine_times_files_and_compiled_libraries(quick) -> None:
    stand = Here(load("cpu"))
    assert {kind for _, kind in stand.groups()} == {"float", "integer"}
    drawn, told = designs.chains(W8A8, 2, 1e5), []
    for runtime in {runtime for runtime, _ in stand.groups()}:
        found = stand.measure(drawn, runtime, told.append)
        assert set(found) == {each.name for each in drawn} | {pace.NAME}
        assert all(seconds > 0 for seconds in found.values())
    assert set(told) == {2}


def ssh(server: Sshd, more: str = "") -> SshDevice:
    address = parse(server.address(more=more))
    assert isinstance(address, SshDevice)
    return address


def test_a_device_over_ssh_times_the_files_and_is_left_clean(server, quick, monkeypatch) -> None:
    monkeypatch.setattr(calibrating, "TOGETHER", 2)
    said: list[str] = []
    stand = There(load("x86-64"), ssh(server), said.append)
    assert stand.address == str(ssh(server))
    assert stand.versions["onnxruntime"]
    drawn, told = designs.chains(FLOAT32, 3, 1e5), []
    found = stand.measure(drawn, "onnxruntime", told.append)
    assert set(found) == {each.name for each in drawn} | {pace.NAME}
    assert set(told) <= {2, 3}  # what it had done whenever it was asked
    assert all(seconds > 0 for seconds in found.values())
    assert any("copy 3 files" in line for line in said)
    assert left_behind(server) == []


def test_a_device_sets_files_against_the_references_as_this_machine_does(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "agent", mock.MagicMock())  # which stands beside it on a device
    measuring = runpy.run_path(str(Path(compress.__file__).parent / "export" / "templates" / "device_measuring.py"))
    random = np.random.default_rng(0)
    seconds = {name: random.random((8, 3)) + 0.5 for name in ("a", "b", "one", "two")}
    found = measuring["in_step"]({name: each.tolist() for name, each in seconds.items()}, ["one", "two"], pace.NAME)
    here = Timed({name: [Turn(tuple(t), False) for t in each] for name, each in seconds.items()}, {})
    ratios, own = here.ratios(["one", "two"]), here.pace(["one", "two"])
    assert found == pytest.approx({pace.NAME: own} | {name: ratio * own for name, ratio in ratios.items()})
    means = np.sqrt(np.median(seconds["one"], axis=1) * np.median(seconds["two"], axis=1))
    assert found[pace.NAME] == pytest.approx(float(np.median(means)))


def test_a_device_of_another_architecture_is_refused(server) -> None:
    with pytest.raises(BadInput, match="give its own target"):
        There(load("raspberry-pi-5"), ssh(server))


def test_only_microcontrollers_are_counted() -> None:
    with pytest.raises(BadInput, match="counts a microcontroller's instructions, and cpu is none"):
        Counted(load("cpu"))


@pytest.mark.skipif(
    shutil.which("qemu-system-arm") is None or shutil.which("arm-none-eabi-gcc") is None,
    reason="needs qemu-system-arm and gcc-arm-none-eabi",
)
def test_counts_are_the_same_every_time_and_grow_with_the_work() -> None:
    stand = Counted(load("cortex-m4"))
    both = []
    for out in (4, 8):
        d = Drawing(f"{out} channels", 3, 6, W8A8)
        both.append(d.done(d.conv(d.input, out)))
    counts = stand.measure(both, "tvm", lambda _: None)
    assert counts == stand.measure(both, "tvm", lambda _: None)
    # 36 pixels, 27 inputs each: at least one instruction for two products, whatever else there is.
    assert counts["8 channels"] - counts["4 channels"] >= 36 * 27 * 4 / 2
    assert stand.unit == "instructions"


def test_the_usual_size_gives_nine_in_ten_an_interval() -> None:
    size = Size()
    assert size.checked >= calibrating.LEAST_CHECKED
    assert size.all == size.chains + size.fitted + size.checked
