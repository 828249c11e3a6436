"""Boards of TVM's RPC tracker: a real tracker and a real server on loopback."""

from __future__ import annotations

import pytest

from compress.errors import BadInput, CheckFailed, DeviceUnreachable
from compress.profiling import rpc
from compress.profiling.device_address import RpcDevice
from tests.export.small_bundles import make_bundle
from tests.profiling.servers import free_port


@pytest.fixture(scope="module")
def tracker():
    pytest.importorskip("tornado")
    pytest.importorskip("psutil")
    from tvm.rpc import Server
    from tvm.rpc.tracker import Tracker

    first = free_port()
    made = Tracker(host="127.0.0.1", port=first, port_end=first + 50, silent=True)
    first = free_port()
    server = Server("127.0.0.1", first, first + 50, tracker_addr=("127.0.0.1", made.port), key="board", silent=True)
    yield made
    server.terminate()
    made.terminate()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("cpu") / "bundle", "cpu", runtimes=("tvm",))


def test_a_board_of_the_tracker_equals_the_reference(tracker, bundle):
    found = rpc.profile(bundle, RpcDevice("127.0.0.1", tracker.port, "board"))
    assert found.profile.golden_equal
    assert 0 < found.profile.latency_s <= found.profile.latency_p90_s
    assert found.profile.runtime == "tvm"


def test_wrong_outputs_are_seen(tracker, bundle, monkeypatch):
    from compress.export import compiled

    right = compiled.outputs_of
    monkeypatch.setattr(compiled, "outputs_of", lambda p, x: {k: v + 1 for k, v in right(p, x).items()})
    assert not rpc.profile(bundle, RpcDevice("127.0.0.1", tracker.port, "board")).profile.golden_equal


def test_a_key_that_no_board_has(tracker, bundle):
    with pytest.raises(DeviceUnreachable, match="no board of the key 'other' .it has: board.*rpc_server"):
        rpc.profile(bundle, RpcDevice("127.0.0.1", tracker.port, "other"))


def test_no_tracker(bundle):
    with pytest.raises(DeviceUnreachable, match="no tracker answers there.*rpc_tracker"):
        rpc.profile(bundle, RpcDevice("127.0.0.1", free_port(), "board"))


def test_a_board_of_another_processor(tracker, tmp_path):
    other = make_bundle(tmp_path / "bundle", "raspberry-pi-5", runtimes=("tvm",))
    with pytest.raises((BadInput, CheckFailed), match="processor isn't aarch64-linux-gnu"):
        rpc.profile(other, RpcDevice("127.0.0.1", tracker.port, "board"))
