"""Devices over SSH: a real OpenSSH server on loopback, real interruptions, compiled Arm code under QEMU on the
far side."""

from __future__ import annotations

import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from compress.errors import BadInput, CheckFailed, DeviceUnreachable
from compress.profiling import remote, ssh
from compress.profiling.device_address import parse
from tests.profiling.servers import Sshd, left_behind

SECONDS = 0.05


def measured(
    bundle: Path, server: Sshd, runtime: str | None = None, more: str = "", said: list[str] | None = None, **given
):
    tell = (lambda message: None) if said is None else said.append
    address = parse(given.pop("address", server.address(more=more)))
    return remote.profile(bundle, address, runtime, given.pop("tell", tell), seconds=SECONDS)


def wrapper(folder: Path, lines: str = "", python: str = sys.executable) -> Path:
    """An interpreter behind a shell script."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n{lines}\nexec {python} "$@"\n', encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# Measuring


def test_onnxruntime_on_the_device(server, arm):
    found = measured(arm, server, "onnxruntime")
    assert found.profile.golden_equal
    assert found.profile.runtime == "onnxruntime"
    assert 0 < found.profile.latency_s <= found.profile.latency_p90_s
    assert found.profile.conditions["runs"] >= 10
    assert found.probe["packages"]["numpy"] == np.__version__
    assert found.reconnections == 0
    assert left_behind(server) == []


@pytest.mark.skipif(shutil.which("qemu-aarch64-static") is None, reason="needs qemu-user-static")
def test_the_compiled_arm_library_equals_the_reference_on_the_far_side(server, arm):
    found = measured(arm, server, "tvm", "?launcher=qemu-aarch64-static")
    assert found.profile.golden_equal
    assert found.profile.conditions["threads"] >= 1
    assert found.profile.latency_s is None
    assert "no device's" in found.profile.conditions["latency"]
    assert left_behind(server) == []


def test_wrong_outputs_are_seen(server, arm, monkeypatch):
    from compress.profiling import device_program

    right = device_program.outputs_of
    monkeypatch.setattr(device_program, "outputs_of", lambda p, x: {k: v + 1 for k, v in right(p, x).items()})
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("needs qemu-user-static")
    assert not measured(arm, server, "tvm", "?launcher=qemu-aarch64-static").profile.golden_equal


def test_an_engine_is_built_there(server, jetson, tmp_path):
    from tests.export.test_build_engine import TRTEXEC

    seen = tmp_path / "seen"
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text(TRTEXEC.format(python=sys.executable, version="100300", seen=seen), encoding="utf-8")
    program.chmod(0o755)
    python = wrapper(tmp_path, f'PATH="{program.parent}:$PATH"; export PATH')
    found = measured(jetson, server, address=server.address(str(python)))
    assert found.profile.runtime == "tensorrt"
    assert found.profile.golden_equal
    assert (found.profile.latency_s, found.measured["gpu_s"]) == (2e-3, 1.5e-3)
    assert "--stronglyTyped" in seen.read_text()


# Interruptions


def test_a_copy_that_is_cut_goes_on_at_its_last_byte(server, arm, monkeypatch):
    offers: list[dict[str, int]] = []
    ask = ssh.Connection.ask
    stream = ssh._stream
    monkeypatch.setattr(ssh, "CHUNK", 1024)

    def watched(self, request, send=None):
        answer = ask(self, request, send)
        if request["do"] == "offer":
            offers.append(answer["have"])
        return answer

    def cutting(sent, offset, write):
        written = 0

        def part(content):
            nonlocal written
            write(content)
            written += len(content)
            if len(offers) < 3 and written >= 5000:
                import time

                time.sleep(0.3)  # until the far side has it
                server.cut()

        stream(sent, offset, part)

    monkeypatch.setattr(ssh.Connection, "ask", watched)
    monkeypatch.setattr(ssh, "_stream", cutting)
    said: list[str] = []
    found = measured(arm, server, "onnxruntime", said=said)
    assert found.profile.golden_equal
    assert found.reconnections == 2
    assert len(offers) == 3
    assert offers[0]["model.onnx"] == 0
    assert 0 < offers[1]["model.onnx"] < offers[2]["model.onnx"] < (arm / "model.onnx").stat().st_size
    assert any("connection was lost" in message for message in said)
    assert left_behind(server) == []


def test_a_measurement_runs_on_without_its_connection(server, arm):
    cut: list[str] = []

    def tell(message):
        if "measuring" in message and not cut:
            cut.append(message)
            server.cut()

    found = remote.profile(arm, parse(server.address()), "onnxruntime", tell, seconds=1.5)
    assert cut
    assert found.reconnections >= 1
    assert found.profile.golden_equal


def test_a_server_that_goes_away_is_said_and_the_same_command_goes_on(server, arm, monkeypatch):
    monkeypatch.setattr(ssh, "TRIES", 2)
    copied: list[int] = []
    stream = ssh._stream

    def stopping(sent, offset, write):
        stream(sent, offset, write)
        copied.append(offset)
        if len(copied) == 1:
            server.stop()

    monkeypatch.setattr(ssh, "_stream", stopping)
    with pytest.raises(DeviceUnreachable, match="was lost and can't be reached again"):
        measured(arm, server, "onnxruntime")
    assert len(left_behind(server)) == 1  # what came is still there
    server.start()
    assert measured(arm, server, "onnxruntime").profile.golden_equal
    assert left_behind(server) == []


# What is refused


def test_a_host_that_is_not_there(server, arm):
    server.stop()
    with pytest.raises(DeviceUnreachable, match="can't be reached.*is it on"):
        measured(arm, server)


def test_an_unknown_name(server, arm):
    with pytest.raises(DeviceUnreachable, match="there is no host of that name"):
        measured(arm, server, address="ssh://no-such-host.invalid")


def test_a_wrong_key(server, arm):
    server.configure("other")
    with pytest.raises(DeviceUnreachable, match="takes none of your keys.*ssh-copy-id"):
        measured(arm, server)


def test_a_host_key_that_is_not_known(server, arm):
    (server.folder / "known").write_text("")
    with pytest.raises(DeviceUnreachable, match="key isn't known.*fingerprint"):
        measured(arm, server)


def test_a_host_key_that_has_changed(server, arm):
    server.know((server.folder / "other.pub").read_text())
    with pytest.raises(DeviceUnreachable, match="isn't the one that is known.*ssh-keygen -R"):
        measured(arm, server)


def test_no_python(server, arm):
    with pytest.raises(DeviceUnreachable, match="there is no /no/python on the device"):
        measured(arm, server, address=server.address("/no/python"))


def test_a_library_for_another_processor(server, arm):
    import platform

    if platform.machine() == "aarch64":
        pytest.skip("this is that processor")
    with pytest.raises(BadInput, match=r"the library is for aarch64, the device is x86_64.*--target"):
        measured(arm, server, "tvm")


def test_a_device_without_the_runtime(server, jetson, tmp_path):
    python = patched(tmp_path, "import importlib.metadata as m", NO_PACKAGES)
    with pytest.raises(BadInput, match="has no runtime for this bundle.*libnvinfer.*-m pip install numpy onnxruntime"):
        measured(jetson, server, address=server.address(str(python)))
    with pytest.raises(BadInput, match="TensorRT isn't installed there"):
        measured(jetson, server, "tensorrt", address=server.address(str(python)))


NO_PACKAGES = """
def version(name):
    raise m.PackageNotFoundError(name)
m.version = version
"""
FULL = """
usage = shutil.disk_usage
shutil.disk_usage = lambda path: usage(path)._replace(free=1 << 20)
"""
FULL_LATER = """
class File:
    def __init__(self, file): self.file, self.n = file, 0
    def __enter__(self): return self
    def __exit__(self, *error): self.file.close()
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, content):
        self.n += len(content)
        if self.n > 4096: raise OSError(28, "No space left on device")
        return self.file.write(content)
own = builtins.open
def opened(path, mode="r", *a, **k):
    file = own(path, mode, *a, **k)
    return File(file) if str(path).endswith(".partial") and mode == "wb" else file
builtins.open = opened
"""


BROKEN = """
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            raise RuntimeError("no memory for that")
sys.meta_path.insert(0, Finder())
"""


def patched(folder: Path, imports: str, code: str) -> Path:
    """An interpreter whose sitecustomize changes what the device is."""
    made = folder / "site"
    made.mkdir()
    (made / "sitecustomize.py").write_text(f"{imports}\n{code}", encoding="utf-8")
    return wrapper(folder, f'PYTHONPATH="{made}"; export PYTHONPATH')


@pytest.mark.parametrize(
    ("imports", "code"), [("import shutil", FULL), ("import builtins", FULL_LATER)], ids=["before", "within"]
)
def test_a_full_disk(server, arm, tmp_path, imports, code):
    python = patched(tmp_path, imports, code)
    with pytest.raises(BadInput, match="its disk is full.*make room"):
        measured(arm, server, "onnxruntime", address=server.address(str(python)))
    assert left_behind(server) == []


def test_a_measurement_that_fails_is_in_the_devices_words(server, arm, tmp_path):
    python = patched(tmp_path, "import sys", BROKEN)
    with pytest.raises(CheckFailed, match="no memory for that"):
        measured(arm, server, "onnxruntime", address=server.address(str(python)))


def test_paths_with_quotes_and_blanks_are_paths(server, arm, tmp_path):
    odd = tmp_path / "it's; touch pwned $(touch pwned)"
    odd.mkdir()
    python = wrapper(odd)
    found = measured(arm, server, "onnxruntime", address=server.address(str(python).replace(" ", "%20")))
    assert found.profile.golden_equal
    assert not list(tmp_path.rglob("pwned"))
    assert not list(server.home.rglob("pwned"))


def test_a_damaged_bundle_goes_nowhere(server, arm, tmp_path):
    copy = Path(shutil.copytree(arm, tmp_path / "copy"))
    (copy / "model.onnx").write_bytes(b"x")
    with pytest.raises(CheckFailed, match="has been changed"):
        measured(copy, server)


def test_names_that_leave_the_jobs_folder_are_refused_by_the_device(server, arm):
    with ssh.Session(parse(server.address()), "0" * 16) as session:
        for name in ("../x", "/etc/x", "a/../../x", ""):
            with pytest.raises(BadInput, match="can't be written"):
                session.send([ssh.Sent(name, b"x")])
        with pytest.raises(BadInput, match="16 hexadecimal digits"):
            session.ask({"do": "offer", "job": "../../../x", "files": []})
