"""Data that the tests share: real images where the machine has them, else a skip that says so."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Two processes with OpenMP threads that spin can stall one another for minutes on two cores.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many processes as cores: one thread each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # The size that a worker is told isn't a terminal's: tables are as wide as without one.
    os.environ.pop("COLUMNS", None)
    os.environ.pop("LINES", None)

# No test takes what another one, or the user, has made: those of the cache ask for one of their own, and the default
# job's, which is slow, runs as the user's does.
os.environ["COMPRESS_CACHE_BYTES"] = "0"

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--until", type=float, help="seconds since 1970: tests that would begin later are skipped")


def pytest_runtest_setup(item: pytest.Item) -> None:
    until = item.config.getoption("--until")
    if until is not None and time.time() > until:
        pytest.skip("no time is left for it: --until")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published data sets and weights: ``$COMPRESS_DATA_DIR``, or ``../shared/data``."""
    given = os.environ.get("COMPRESS_DATA_DIR")
    for folder in ([Path(given)] if given else []) + [REPOSITORY.parent / "shared" / "data"]:
        if (folder / "weights" / "cifar10-akamaster").is_dir():
            return folder
    pytest.skip("no shared data: set COMPRESS_DATA_DIR to the folder that holds cifar10/, mnist/ and weights/")


@pytest.fixture(scope="session")
def cifar10_dir(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CIFAR-10 in both published layouts, ``cifar-10-batches-bin`` and ``-py``."""
    source = shared_data / "cifar10"
    if (source / "cifar-10-batches-bin" / "test_batch.bin").is_file():
        return source
    if not (source / "unpack.py").is_file():
        pytest.skip(f"no CIFAR-10 in {source}")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, source / "unpack.py", folder], check=True, capture_output=True)
    return folder


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests see neither the user's data folder nor the user's cache, nor what was calibrated on this machine."""
    monkeypatch.delenv("COMPRESS_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "empty-cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "empty-data"))


@pytest.fixture(scope="session", autouse=True)
def one_cache_of_zig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All processes of a test run share what zig makes of its C libraries, which takes it a minute a device."""
    own = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZIG_GLOBAL_CACHE_DIR", str((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "zig"))
        yield


@pytest.fixture(scope="session", autouse=True)
def brief_timing() -> Iterator[None]:
    """Programs are timed as they always are, but briefly: no test is about a time."""
    from compress.profiling import timer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timer, "LONGEST_WARM_UP_S", 0.0)
        patch.setattr(timer, "WARM_UP_S", 0.01)
        patch.setattr(timer, "SLICE_S", 0.002)
        yield
