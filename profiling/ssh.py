"""A device over SSH: the system's own OpenSSH client, with an agent on the far side that is sent along.

The client rather than a library: it is there, it is kept up to date by the system, and it knows the user's keys,
agents, jump hosts and known hosts. ``COMPRESS_SSH`` names another command, with options, in its place
(``ssh -F FILE``).

One connection carries requests to the agent (``export/templates/device_agent.py``) as lines of JSON and files as
bytes. Nothing that the user typed is ever part of what a shell reads but the interpreter's path, which is quoted; the
rest of the command is a constant. Host keys must be known. A connection that is lost is made again, and goes on where
it was: files are resumed at their last byte, and the measurement runs on by itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from compress.errors import BadInput, CheckFailed, DeviceUnreachable
from compress.profiling.device_address import SshDevice

T = TypeVar("T")
COMMAND = "COMPRESS_SSH"
MARK = b"@compress "
BOOTSTRAP = (
    "import sys;n=int(sys.stdin.buffer.readline());AGENT=sys.stdin.buffer.read(n).decode();"
    'exec(compile(AGENT,"agent","exec"))'
)
OPTIONS = (
    ("BatchMode", "yes"),
    ("StrictHostKeyChecking", "yes"),
    ("ConnectTimeout", "10"),
    ("ServerAliveInterval", "5"),
    ("ServerAliveCountMax", "3"),
    ("ForwardAgent", "no"),
    ("ForwardX11", "no"),
    ("ClearAllForwardings", "yes"),
)
OWN_FAILURE = 255
"""The client's exit status where it isn't the far side's."""
TRIES, FIRST_WAIT_S, LONGEST_WAIT_S = 6, 0.5, 8.0
ANSWER_S = 120.0
"""How long an answer may take; a measurement is asked for again and again."""
CHUNK = 1 << 16


class ConnectionLost(Exception):
    """The connection broke; another may hold."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A file that goes to the device.

    Attributes:
        path: below the job's folder there.
        content: a file here, or its bytes.
        executable: it is a program.
    """

    path: str
    content: Path | bytes
    executable: bool = False

    def digest(self) -> tuple[str, int]:
        """SHA-256 and size."""
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest(), len(self.content)
        with self.content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), self.content.stat().st_size


def _template(name: str) -> bytes:
    return resources.files("compress.export").joinpath("templates", name).read_bytes()


class Connection:
    """One SSH process with an agent behind it."""

    def __init__(self, device: SshDevice) -> None:
        self.device = device
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the connection
        source = _template("device_agent.py")
        try:
            self.process = subprocess.Popen(
                command(device), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors
            )
        except OSError as error:
            self.errors.close()
            raise BadInput(
                f"--device ssh: the client can't be started ({error.strerror}): apt install openssh-client"
            ) from None
        self.answers: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._write(b"%d\n" % len(source) + source)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                self.answers.put(line[len(MARK) :])
        self.answers.put(None)

    def _write(self, content: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(content)
            self.process.stdin.flush()
        except OSError:
            self._lost()

    def _lost(self) -> None:
        """Say why: what can't be mended by trying again is the user's to mend.

        Raises:
            ConnectionLost, BadInput: always.
        """
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace")
        reason = explained(said, self.process.returncode, self.device)
        if reason is not None:
            raise DeviceUnreachable(str(self.device), *reason)
        lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("Warning")]
        raise ConnectionLost(lines[-1][:160] if lines else f"the client ended with {self.process.returncode}")

    def ask(
        self, request: Mapping[str, Any], send: Callable[[Callable[[bytes], None]], None] | None = None
    ) -> dict[str, Any]:
        """One request and its answer; ``send`` writes what follows the line.

        Raises:
            ConnectionLost: there is no answer.
            BadInput, CheckFailed: the device refuses.
        """
        self._write(json.dumps(request).encode() + b"\n")
        if send is not None:
            send(self._write)
        try:
            line = self.answers.get(timeout=ANSWER_S)
        except queue.Empty:
            self.process.kill()
            raise ConnectionLost(f"no answer within {ANSWER_S:.0f} s") from None
        if line is None:
            self._lost()
        assert line is not None
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            refuse(self.device, answer["kind"], answer["error"])
        return answer

    def close(self) -> None:
        """End it; the agent ends with its input."""
        try:
            if self.process.stdin is not None:
                self.process.stdin.close()
        except OSError:
            pass  # it is gone already
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def command(device: SshDevice) -> list[str]:
    """The client's command line for a device.

    Raises:
        BadInput: ``COMPRESS_SSH`` can't be split into words.
    """
    try:
        given = shlex.split(os.environ.get(COMMAND, "")) or ["ssh"]
    except ValueError as error:
        raise BadInput(f"{COMMAND} can't be split into words ({error}); close its quotes") from None
    for name, value in OPTIONS:
        given += ["-o", f"{name}={value}"]
    given += ["-T", *(["-p", str(device.port)] if device.port else []), *(["-l", device.user] if device.user else [])]
    return [*given, "--", device.host, " ".join(shlex.quote(word) for word in (device.python, "-u", "-c", BOOTSTRAP))]


def explained(said: str, status: int | None, device: SshDevice) -> tuple[str, str] | None:
    """Why a connection can't be, and what the user has to do; None where trying again may help."""
    target = f"{device.user}@{device.host}" if device.user else device.host
    port = f" -p {device.port}" if device.port else ""
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
        return (
            "the host's key isn't the one that is known",
            f"if the device was set up again: ssh-keygen -R {device.host}",
        )
    if "Host key verification failed" in said or "host key is known" in said:
        return "the host's key isn't known", f"connect once and compare its fingerprint: ssh{port} {target}"
    if "Permission denied" in said and status == OWN_FAILURE:
        return "it takes none of your keys", f"put one there: ssh-copy-id{port} {target}"
    if "Could not resolve" in said:
        return "there is no host of that name", "give its address, or an entry of ~/.ssh/config"
    about = [line for line in said.splitlines() if device.python in line and not line.startswith("Warning")]
    missing = any(words in line.lower() for line in about for words in ("not found", "no such file"))
    if status == 127 or missing:
        return f"there is no {device.python} on the device", f"name its interpreter: ssh://{target}/usr/bin/python3"
    if status == 126:
        return f"{device.python} can't be run on the device", f"name another: ssh://{target}/usr/bin/python3"
    if "SyntaxError" in said or "exec format error" in said.lower():
        return f"{device.python} isn't Python 3.8 or later", f"name another: ssh://{target}/usr/bin/python3"
    return None


def refuse(device: SshDevice, kind: str, why: str) -> None:
    """Raise what the device's refusal means.

    Raises:
        ConnectionLost: a file came damaged.
        BadInput, CheckFailed: else.
    """
    where = f"--device {device}"
    if kind == "damaged":
        raise ConnectionLost(why)
    if kind == "full":
        raise BadInput(f"{where}: its disk is full ({why}); make room below ~/.cache there")
    if kind == "architecture":
        raise BadInput(f"{where}: {why}; make the bundle for that device: --target")
    if kind in ("disk", "request"):
        raise BadInput(f"{where}: files can't be written there ({why}); is the home folder writable?")
    if kind == "runtime":
        raise BadInput(f"{where}: {why}")
    raise CheckFailed(str(device), [why])


@dataclass
class Session:
    """Requests to a device, over one connection after the other. A context: it cleans up behind itself.

    Attributes:
        job: 16 hexadecimal digits; the same job finds its files again.
        tell: told of connections that are made again.
    """

    device: SshDevice
    job: str
    tell: Callable[[str], None] = lambda message: None
    connection: Connection | None = None
    connected: bool = False
    reconnections: int = 0

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.connected and not isinstance(error, DeviceUnreachable):
                self.ask({"do": "clean"})
        except (BadInput, CheckFailed) as problem:
            self.tell(f"the device could not be cleaned up ({problem}): rm -r ~/.cache/compress-profile there")
        finally:
            self._drop()

    def _drop(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def again(self, work: Callable[[Connection], T]) -> T:
        """Do something over a connection, and again over another one if that is lost.

        Raises:
            BadInput: it can't be reached, or the connection is lost again and again.
        """
        wait = FIRST_WAIT_S
        for attempt in range(TRIES):
            try:
                if self.connection is None:
                    self.connection = Connection(self.device)
                found = work(self.connection)
                self.connected = True
                return found
            except ConnectionLost as lost:
                self._drop()
                if not self.connected or attempt == TRIES - 1:
                    said = "it was lost and can't be reached again" if self.connected else "it can't be reached"
                    fix = "is it on, and does its SSH server run? The same command goes on where this one stopped"
                    raise DeviceUnreachable(str(self.device), f"{said} ({lost})", fix) from None
                self.reconnections += 1
                self.tell(f"the connection was lost ({lost}); again in {wait:.1f} s")
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
        raise AssertionError("unreachable")

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A request that may be made twice."""
        return self.again(lambda connection: connection.ask({"job": self.job, **request}))

    def start(self, spec: Mapping[str, Any]) -> None:
        """Have the job measured there, in a process of its own."""
        self.ask({"do": "start", "spec": spec, "program": _template("device_measuring.py").decode()})

    def send(self, files: list[Sent]) -> None:
        """Copy files, each from where an earlier attempt stopped."""
        entries = []
        for each in files:
            digest, size = each.digest()
            entries.append({"path": each.path, "sha256": digest, "bytes": size, "executable": each.executable})

        def work(connection: Connection) -> None:
            have = connection.ask({"do": "offer", "job": self.job, "files": entries})["have"]
            for each, entry in zip(files, entries, strict=True):
                offset = have[each.path]
                if offset < entry["bytes"] or (entry["bytes"] == 0 and offset == 0):
                    request = {"do": "put", "job": self.job, "offset": offset, **entry}
                    connection.ask(request, lambda write, each=each, offset=offset: _stream(each, offset, write))  # type: ignore[misc]

        self.again(work)


def _stream(sent: Sent, offset: int, write: Callable[[bytes], None]) -> None:
    if isinstance(sent.content, bytes):
        for start in range(offset, len(sent.content), CHUNK):
            write(sent.content[start : start + CHUNK])
        return
    with sent.content.open("rb") as file:
        file.seek(offset)
        while part := file.read(CHUNK):
            write(part)


__all__ = ["COMMAND", "Connection", "ConnectionLost", "Sent", "Session", "command", "explained"]
