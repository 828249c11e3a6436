"""Several devices at once, an interruption, queues, and the run that a measured bundle is of."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from compress.errors import BadInput, DeviceUnreachable, RunFolderError
from compress.export.manifest import read_manifest
from compress.profiling import remote, ssh
from compress.profiling.device_address import parse
from tests.profiling.servers import Sshd, left_behind


def test_an_interruption_ends_the_measurement_and_cleans_up(server, arm, monkeypatch):
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
    # Where tests are started in the background, interruptions are ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            remote.several(arm, devices, "onnxruntime", tell)
    finally:
        signal.signal(signal.SIGINT, before)
    assert results == []
    assert left_behind(server) == []


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


@pytest.mark.slow
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
    assert json.loads(out[out.index("[") :])[1]["error"]
    measure = devices.measured

    def meanwhile(*given):
        devices.enqueue(queue, str(arm), [server.address("/other")], "onnxruntime")
        return measure(*given)

    Path(queue).write_text(Path(queue).read_text().replace("/no/python", sys.executable))
    monkeypatch.setattr(devices, "measured", meanwhile)
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
