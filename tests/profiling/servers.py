"""A real OpenSSH server on loopback: an unprivileged port, keys and files in a folder of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Sshd:
    """A server that can be stopped, with all of its connections, and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.program = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)
        if self.program is None or shutil.which("ssh") is None:
            pytest.skip("there is no OpenSSH server here: apt install openssh-server openssh-client")
        for name in ("host", "mine", "other"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(key, check=True)
        folder.chmod(0o700)
        (folder / "authorized").write_bytes((folder / "mine.pub").read_bytes())
        (folder / "authorized").chmod(0o600)
        self.know((folder / "host.pub").read_text())
        self.home = folder / "home"
        self.home.mkdir()
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized\n"
            f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n"
            f"PermitRootLogin yes\nSetEnv HOME={self.home}\nPermitUserEnvironment no\n"
        )
        self.configure("mine")
        self.process: subprocess.Popen[bytes] | None = None

    def know(self, public: str) -> None:
        """Make the client know a host key."""
        kind, key, *_ = public.split()
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def configure(self, key: str) -> None:
        """The client's configuration, with one of the keys."""
        (self.folder / "ssh_config").write_text(
            f"Host *\n  IdentityFile {self.folder}/{key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.folder}/known\n  GlobalKnownHostsFile /dev/null\n  LogLevel ERROR\n"
        )

    @property
    def command(self) -> str:
        """For ``COMPRESS_SSH``."""
        return f"ssh -F {self.folder}/ssh_config"

    def address(self, python: str = sys.executable, more: str = "") -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{python}{more}"

    def start(self) -> None:
        assert self.program is not None
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        command = [self.program, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(command, stderr=log, start_new_session=True)
        for _ in range(200):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        pytest.skip(f"sshd doesn't start here: {(self.folder / 'log').read_text()[-300:]}")

    def connections(self) -> list[int]:
        """The server's own processes behind the listening one."""
        assert self.process is not None
        found, front = [], [self.process.pid]
        while front:
            pid = front.pop()
            listed = subprocess.run(
                ["ps", "-o", "pid=,comm=", "--ppid", str(pid)], capture_output=True, text=True
            ).stdout
            for line in listed.splitlines():
                child, name = line.split(None, 1)
                if name.strip().startswith("sshd"):
                    found.append(int(child))
                    front.append(int(child))
        return found

    def cut(self) -> None:
        """End every connection, as a network that breaks does; the server goes on."""
        for pid in reversed(self.connections()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def stop(self) -> None:
        """The server and its connections."""
        if self.process is not None:
            children = self.connections()
            self.process.kill()
            self.process.wait()
            for pid in children:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process = None


def left_behind(server: Sshd) -> list[Path]:
    return list((server.home / ".cache").rglob("compress-profile*"))
