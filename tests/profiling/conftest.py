"""A real SSH server, and bundles to measure there."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.profiling import ssh
from tests.export.small_bundles import make_bundle
from tests.profiling.servers import Sshd


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
