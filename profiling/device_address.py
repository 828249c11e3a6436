"""Devices by address: ``ssh://user@host:port/python`` and ``rpc://host:port/key``."""

from __future__ import annotations

import re
import shlex
import urllib.parse
from dataclasses import dataclass

from compress.errors import BadInput

SSH_FORM = "ssh://[USER@]HOST[:PORT][/PYTHON][?launcher=PROGRAM]"
RPC_FORM = "rpc://HOST:PORT/KEY"
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\]")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\$?")


@dataclass(frozen=True, slots=True)
class SshDevice:
    """A device that is reached over SSH.

    Attributes:
        host: a name, an address, or an entry of the user's ``~/.ssh/config``.
        user, port: None where that file or the client's default says.
        python: the interpreter there.
        launcher: a program, with its arguments, in front of compiled ones: ``qemu-aarch64``, ``taskset -c 0``.
    """

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    launcher: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The address without the launcher."""
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        python = "" if self.python == "python3" else f"/{self.python.removeprefix('/')}"
        return f"ssh://{user}{self.host}{port}{python}"


@dataclass(frozen=True, slots=True)
class RpcDevice:
    """A pool of boards behind TVM's RPC tracker, which hands out one of those that are registered as ``key``."""

    host: str
    port: int
    key: str

    def __str__(self) -> str:
        """The address."""
        return f"rpc://{self.host}:{self.port}/{self.key}"


def parse(address: str) -> SshDevice | RpcDevice:
    """A device by its address.

    Raises:
        BadInput: it has another form.
    """
    scheme, separator, _ = address.partition("://")
    if not separator or scheme not in ("ssh", "rpc"):
        raise BadInput(f"--device {address}: give local, qemu, {SSH_FORM} or {RPC_FORM}")
    try:
        parts = urllib.parse.urlsplit(address)
        port = parts.port
        query = dict(urllib.parse.parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    except ValueError as error:
        raise BadInput(f"--device {address}: {error}; give {SSH_FORM if scheme == 'ssh' else RPC_FORM}") from None
    user, _, place = parts.netloc.rpartition("@")
    host = place if place.endswith("]") else place.rpartition(":")[0] if port is not None else place
    if not _HOST.fullmatch(host):
        raise BadInput(
            f"--device {address}: {host!r} isn't the name of a host; give {SSH_FORM if scheme == 'ssh' else RPC_FORM}"
        )
    if scheme == "rpc":
        key = parts.path.removeprefix("/")
        if port is None or not key or "/" in key or query or user:
            raise BadInput(f"--device {address}: give {RPC_FORM}, the tracker's port and the key of the boards")
        return RpcDevice(host, port, key)
    if ":" in user:
        raise BadInput(
            f"--device {address}: no passwords here; put your key on the "
            f"device: ssh-copy-id {user.partition(':')[0]}@{host}"
        )
    if user and not _USER.fullmatch(user):
        raise BadInput(f"--device {address}: {user!r} isn't the name of a user; give {SSH_FORM}")
    if set(query) - {"launcher"}:
        raise BadInput(f"--device {address}: {min(set(query) - {'launcher'})!r} isn't known; give {SSH_FORM}")
    try:
        launcher = tuple(shlex.split(query.get("launcher", "")))
    except ValueError as error:
        raise BadInput(f"--device {address}: the launcher can't be split ({error})") from None
    path = urllib.parse.unquote(parts.path)
    if any(not c.isprintable() for c in path + "".join(launcher)):
        raise BadInput(f"--device {address}: it holds characters that can't be printed; give {SSH_FORM}")
    python = path if path.strip("/") else "python3"
    return SshDevice(host.strip("[]"), user or None, port, python, launcher)


__all__ = ["RPC_FORM", "SSH_FORM", "RpcDevice", "SshDevice", "parse"]
