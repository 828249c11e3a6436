"""Devices over SSH: a real OpenSSH server on loopback, real interruptions, compiled Arm code under QEMU on the
far side."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compress.errors import BadInput, CheckFailed, DeviceUnreachable, RunFolderError
from compress.export.manifest import read_manifest
from compress.profiling import remote, ssh
from compress.profiling.device_address import RpcDevice, SshDevice, parse
from tests.export.small_bundles import make_bundle
from tests.profiling.servers import Sshd

SECONDS = 0.05


@pytest.fixture
def server(tmp_path, monkeypatch):
    folder = tmp_path / "sshd"
    folder.mkdir()
    made = Sshd(folder)
    made.start()
    monkeypatch.setenv(ssh.COMMAND, made.command)
    monkeypatch.setattr(ssh, "FIRST_WAIT_S", 0.05)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("arm") / "bundle", "raspberry-pi-5", runtimes=("tvm",))


@pytest.fixture(scope="module")
def jetson(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("jetson") / "bundle")


def measured(
    bundle: Path, server: Sshd, runtime: str | None = None, more: str = "", said: list[str] | None = None, **given
):
    tell = (lambda message: None) if said is None else said.append
    address = parse(given.pop("address", server.address(more=more)))
    return remote.profile(bundle, address, runtime, given.pop("tell", tell), seconds=SECONDS)


def left_behind(server: Sshd) -> list[Path]:
    return list((server.home / ".cache").rglob("compress-profile*"))


def wrapper(folder: Path, lines: str = "", python: str = sys.executable) -> Path:
    """An interpreter behind a shell script."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n{lines}\nexec {python} "$@"\n', encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# Addresses


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("ssh://pi@raspberry", SshDevice("raspberry", "pi")),
        ("ssh://board:2222/opt/env/bin/python", SshDevice("board", None, 2222, "/opt/env/bin/python")),
        ("ssh://a@[fe80::1]:22", SshDevice("fe80::1", "a", 22)),
        ("ssh://h?launcher=taskset%20-c%200", SshDevice("h", launcher=("taskset", "-c", "0"))),
        ("rpc://tracker:9190/jetson", RpcDevice("tracker", 9190, "jetson")),
    ],
)
def test_addresses(address, wanted):
    assert parse(address) == wanted


@pytest.mark.parametrize(
    "address",
    [
        "ssh://", "ssh://-oProxyCommand=x", "ssh://-l@h", "ssh://u:secret@h", "ssh://h:0x1", "ssh://h:99999",
        "ssh://a b", "ssh://h?frob=1", "ssh://h/py%0Athon", "rpc://h/key", "rpc://h:1", "http://h", "board",
    ],
)  # fmt: skip
def test_addresses_of_another_form_are_refused(address):
    with pytest.raises(BadInput, match="--device"):
        parse(address)


def test_what_the_user_types_is_never_an_option_or_a_part_of_the_shells_command():
    command = ssh.command(SshDevice("host", "me", 22, "/a b/$(id)'; touch x; '"))
    assert command[-3:-1] == ["--", "host"]
    import shlex

    assert shlex.split(command[-1]) == ["/a b/$(id)'; touch x; '", "-u", "-c", ssh.BOOTSTRAP]
    assert "StrictHostKeyChecking=yes" in command


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


@pytest.mark.parametrize(
    ("said", "status", "wanted"),
    [
        ("Warning: Identity file /k not accessible: No such file or directory.\nConnection reset by peer", 255, None),
        ("sh: 1: python3: not found", 127, "there is no python3"),
        ("python3: Command not found.", 1, "there is no python3"),
        ("sh: 1: python3: Permission denied", 126, "python3 can't be run"),
        ("me@h: Permission denied (publickey).", 255, "takes none of your keys"),
    ],
)
def test_why_a_connection_ended(said, status, wanted):
    found = ssh.explained(said, status, SshDevice("h", "me"))
    assert found is None if wanted is None else wanted in found[0]


def test_a_client_that_cannot_be_split(monkeypatch):
    monkeypatch.setenv(ssh.COMMAND, "ssh -F 'x")
    with pytest.raises(BadInput, match="COMPRESS_SSH can't be split.*close its quotes"):
        ssh.command(SshDevice("h"))


def test_an_interruption_ends_the_measurement_and_cleans_up(server, arm, monkeypatch):
    import functools
    import signal
    import threading

    monkeypatch.setattr(remote, "profile", functools.partial(remote.profile, seconds=60.0))
    results: list[object] = []
    ask = ssh.Connection.ask

    def watched(self, request, send=None):
        answer = ask(self, request, send)
        results.extend([answer["result"]] if "result" in answer else [])
        return answer

    monkeypatch.setattr(ssh.Connection, "ask", watched)

    def tell(message):
        if "measuring" in message:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    devices = [parse(server.address())]
    with pytest.raises(KeyboardInterrupt):
        remote.several(arm, devices, "onnxruntime", tell)
    assert results == []
    assert left_behind(server) == []


# Several devices, the run that a bundle is of, queues


def test_several_devices_at_once(server, arm, tmp_path):
    folder = tmp_path / "second"
    folder.mkdir()
    second = Sshd(folder)
    shutil.copyfile(server.folder / "mine.pub", folder / "authorized")
    (server.folder / "known").open("a").write(
        f"[127.0.0.1]:{second.port} {' '.join((folder / 'host.pub').read_text().split()[:2])}\n"
    )
    second.start()
    try:
        devices = [parse(server.address()), parse(second.address()), parse(server.address("/no/python"))]
        found = remote.several(arm, devices, "onnxruntime", lambda message: None)
    finally:
        second.stop()
    assert [device for device, _ in found] == devices
    assert [isinstance(result, remote.Remote) for _, result in found] == [True, True, False]
    assert left_behind(second) == []


def test_a_queue_is_worked_off_and_keeps_what_cannot_be_done(server, arm, tmp_path, capsys, monkeypatch):
    from compress.cli import devices

    queue = str(tmp_path / "queue.jsonl")
    nowhere = server.address("/no/python")
    devices.enqueue(queue, str(arm), [server.address(), nowhere], "onnxruntime")
    with pytest.raises(DeviceUnreachable):
        devices.work_off(queue, as_json=True, quiet=True)
    left = [json.loads(line) for line in Path(queue).read_text().splitlines()]
    assert [entry["device"] for entry in left] == [nowhere]
    out = capsys.readouterr().out
    assert '"golden_equal": true' in out
    measure = devices.profile

    def meanwhile(*given):
        devices.enqueue(queue, str(arm), [server.address("/other")], "onnxruntime")
        return measure(*given)

    Path(queue).write_text(Path(queue).read_text().replace("/no/python", sys.executable))
    monkeypatch.setattr(devices, "profile", meanwhile)
    devices.work_off(queue, as_json=True, quiet=True)
    left = [json.loads(line) for line in Path(queue).read_text().splitlines()]
    assert [entry["device"] for entry in left] == [server.address("/other")]
    Path(queue).write_text('{"bundle": 1}\n')
    with pytest.raises(BadInput, match="line 1 isn't one of its entries"):
        devices.work_off(queue, as_json=True, quiet=True)


@pytest.mark.slow
def test_a_measurement_comes_home_beside_the_prediction(server, tmp_path, capsys):
    import torch

    import compress
    from compress.cli import devices, homecoming
    from tests.graph.networks import Residual, build, images

    run = tmp_path / "run"
    data = (images(40), torch.arange(40) % 5)
    compress.run(build(Residual), data, target="raspberry-pi-5", out=run, candidates=1, samples=16)
    bundle = run / "bundle"
    before = json.loads((run / "front.json").read_text())
    best = next(c for c in before["candidates"] if c["id"] == before["best"])
    assert best["latency"]["measured_s"] is None
    devices.profile(str(bundle), [server.address()], "onnxruntime", as_json=True, quiet=True)
    printed = json.loads(capsys.readouterr().out)
    after = json.loads((run / "front.json").read_text())
    found = next(c for c in after["candidates"] if c["id"] == before["best"])
    artifact = next(a for a in found["artifacts"] if a["runtime"] == "onnxruntime")
    assert artifact["latency"]["measured_s"] == printed["latency_s"]
    assert artifact["latency"]["device"] == printed["device"]
    predicted = next(a for a in best["artifacts"] if a["runtime"] == "onnxruntime")["latency"]["predicted_s"]
    assert artifact["latency"]["predicted_s"] == predicted
    assert printed["predicted_s"] is not None
    assert printed["device"] in (run / "report.html").read_text()
    folder = run / "candidates" / before["best"]
    assert len(json.loads((folder / "measurements.json").read_text())) == 1
    assert read_manifest(bundle).files == read_manifest(folder).files
    assert not (bundle / "measurements.json").exists()

    (found,) = (found for _, found in remote.several(bundle, [parse(server.address())], "onnxruntime", lambda m: None))
    assert isinstance(found, remote.Remote)
    wrong = replace(found, profile=replace(found.profile, golden_equal=False))
    assert "other outputs" in homecoming.bring(bundle, wrong)
    assert len(json.loads((folder / "measurements.json").read_text())) == 1
    (folder / "measurements.json").write_text("no list")
    with pytest.raises(RunFolderError, match="holds no list"):
        homecoming.bring(bundle, found)
    assert json.loads((run / "front.json").read_text()) == after
