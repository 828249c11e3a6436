"""Addresses of devices, the SSH client's command line, and what its last words mean."""

from __future__ import annotations

import pytest

from compress.errors import BadInput
from compress.profiling import ssh
from compress.profiling.device_address import RpcDevice, SshDevice, parse


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
