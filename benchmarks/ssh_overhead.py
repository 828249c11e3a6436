"""What measuring over SSH adds to the latency that it reports: the same bundle over loopback, and by hand.

By hand is ``python run.py --time`` in the bundle, as its README says. Both time one input in ONNX Runtime for about a
second behind a warm-up, each in a process of its own, in turns that change their order. The ratio is the median over
the pairs, so that what else the machine does falls on both sides.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import common

MODEL = "resnet56"
PAIRS = 15
SECONDS = 1.0
"""Of timing over SSH: what ``run.py`` takes too."""
MOST_PERCENT = 3.0


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, str]]:
    """An OpenSSH server on loopback with keys of its own: its address, and the client's command."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    for name in ("host", "mine"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "home").mkdir()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/mine.pub\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n"
        f"PermitRootLogin yes\nSetEnv HOME={folder}/home\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder}/mine\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {folder}/known\n  GlobalKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    program = _sshd()
    assert program is not None
    process = subprocess.Popen([program, "-D", "-f", str(folder / "sshd_config")], stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"ssh://{getpass.getuser()}@127.0.0.1:{port}{sys.executable}", f"ssh -F {folder}/ssh_config"
    finally:
        process.kill()
        process.wait()


def _sshd() -> str | None:
    """Its path; it has to be called by the whole of it, and is often in a folder that isn't on the path."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def by_hand(bundle: Path) -> float:
    """The median in ms that the bundle's own program prints."""
    done = subprocess.run([sys.executable, "run.py", "--time"], cwd=bundle, capture_output=True, text=True, check=True)
    found = re.search(r"latency: median ([\d.]+) ms", done.stdout)
    assert found is not None
    return float(found[1])


def over_ssh(bundle: Path, address: str) -> float:
    """The median in ms that ``compress profile --device`` reports."""
    from compress.profiling import remote
    from compress.profiling.device_address import SshDevice, parse

    device = parse(address)
    assert isinstance(device, SshDevice)
    latency_s = remote.profile(bundle, device, "onnxruntime", seconds=SECONDS).profile.latency_s
    assert latency_s is not None
    return 1e3 * latency_s


def measure() -> list[common.Row]:
    import torch

    import compress
    from compress.profiling import ssh

    generator = torch.Generator().manual_seed(0)
    data = (torch.randn(64, 3, 32, 32, generator=generator), torch.arange(64) % 10)
    before = os.environ.get(ssh.COMMAND)
    with tempfile.TemporaryDirectory() as temporary:
        run, keys = Path(temporary) / "run", Path(temporary) / "sshd"
        keys.mkdir(0o700)
        chosen: dict[str, Any] = {"prune": "none", "quantize": "uniform", "samples": 32, "epochs": 0}
        compress.run(MODEL, data, weights="random", target="x86-64", out=run, candidates=1, **chosen)
        with server(keys) as (address, command):
            os.environ[ssh.COMMAND] = command
            try:
                pairs, percents = _pairs(run / "bundle", address)
            finally:
                os.environ.pop(ssh.COMMAND)
                if before is not None:
                    os.environ[ssh.COMMAND] = before
    return [row(pairs, percents)]


def _pairs(bundle: Path, address: str) -> tuple[list[tuple[float, float]], list[float]]:
    """(by hand, over SSH) in ms, one behind the other, every second pair the other way round; and what other programs
    used of the cores beside each run by hand, in percent. (Beside the others it can't be told: what the server starts
    is no child of this process.)"""
    made, percents = [], []
    for index in range(PAIRS):
        there = over_ssh(bundle, address) if index % 2 else 0.0
        with common.others() as found:
            here = by_hand(bundle)
        made.append((here, there or over_ssh(bundle, address)))
        percents += [] if found.percent is None else [found.percent]
    return made, percents


def row(pairs: list[tuple[float, float]], percents: list[float]) -> common.Row:
    """Medians, and the ratio's median and quartiles over the pairs."""
    ratios = [there / here for here, there in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "model": MODEL,
        "runs": len(pairs),
        "by_hand_ms": round(statistics.median(here for here, _ in pairs), 4),
        "over_ssh_ms": round(statistics.median(there for _, there in pairs), 4),
        "ssh_over_hand": round(middle, 4),
        "lower_quartile_ssh_over_hand": round(low, 4),
        "upper_quartile_ssh_over_hand": round(high, 4),
        "other_work_percent": statistics.median(percents) if percents else None,
    }


def section(document: Mapping[str, Any]) -> str:
    (found,) = document["rows"]
    percent = 100 * (found["ssh_over_hand"] - 1)
    verdict = "within" if abs(percent) <= MOST_PERCENT else "outside"
    table = common.markdown_table(
        ["network", "by hand, ms", "over SSH, ms", "ratio", "quartiles of the ratio"],
        [
            [
                found["model"],
                common.shown(found["by_hand_ms"], 3),
                common.shown(found["over_ssh_ms"], 3),
                common.shown(found["ssh_over_hand"], 3),
                f"{found['lower_quartile_ssh_over_hand']:.3f} to {found['upper_quartile_ssh_over_hand']:.3f}",
            ]
        ],
    )
    return (
        "`compress profile --device ssh://` through a real SSH server on loopback beside `python run.py --time` in the "
        f"same bundle, 8 bits, in ONNX Runtime: {percent:+.1f}%, {verdict} the target of {MOST_PERCENT:.0f}%. Medians "
        f"of {found['runs']} pairs in turns; other programs used {common.shown(found['other_work_percent'], 1)}% of "
        "the cores beside the runs by hand.\n\n" + table
    )


BENCHMARK = common.Benchmark(
    name="ssh_overhead",
    title="latency reported over SSH beside the same measurement by hand",
    needs=(
        common.Need("program: sshd", lambda: None if _sshd() else "there is no sshd: apt install openssh-server"),
        common.program("ssh"),
    ),
    packages=("onnxruntime", "numpy"),
    measure=measure,
    section=section,
    minutes=4,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
