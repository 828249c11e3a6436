"""The frame that every benchmark shares: what it needs, the machine it ran on, its result as a document.

A document is ``{"benchmark", "command", "date", "load_average_before", "machine": {"cpu", "cores", "gpu", "os"},
"versions", "rows"}``; a row is flat, one case, with units in its keys, null where a figure isn't known.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compress.serial import write_json

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
QUIET_PERCENT = 3.0
"""The share of the cores that other programs may use beside a timed part before it is timed again."""

Row = dict[str, str | int | float | bool | None]
T = TypeVar("T")


@dataclass(frozen=True)
class Need:
    """Something that a benchmark can't run without: a name, and why it is missing, None where it is there."""

    name: str
    missing: Callable[[], str | None]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: of its module, its results file and its section.
        title: what it measures, in a line.
        needs: what must be there.
        packages: distributions whose versions shape its figures.
        measure: makes the rows.
        section: its part of the docs, Markdown without the heading, from a document.
        minutes: how long it takes on an idle machine of two cores, roughly.
    """

    name: str
    title: str
    needs: tuple[Need, ...]
    packages: tuple[str, ...]
    measure: Callable[[], list[Row]]
    section: Callable[[Mapping[str, Any]], str]
    minutes: float

    @property
    def results(self) -> Path:
        return RESULTS / f"{self.name}.json"

    @property
    def elsewhere(self) -> tuple[Path, ...]:
        """Results from machines of other kinds, each in a folder of its kind's name."""
        return tuple(sorted(RESULTS.glob(f"*/{self.name}.json")))

    def missing(self) -> list[str]:
        """Why it can't run here; empty if it can."""
        return [reason for need in self.needs if (reason := need.missing()) is not None]


def run(benchmark: Benchmark, kind: str | None = None) -> dict[str, Any]:
    """Measure, write the results file, of a ``kind`` of machine if there is one, print the rows; the document."""
    load_average = os.getloadavg()[0]
    rows = benchmark.measure()
    made = document(benchmark, rows, load_average)
    folder = RESULTS if kind is None else RESULTS / kind
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / benchmark.results.name, made)
    print_rows(rows)
    return made


def document(benchmark: Benchmark, rows: list[Row], load_average: float) -> dict[str, Any]:
    """The results file's content."""
    return {
        "benchmark": benchmark.name,
        "command": f"python -m benchmarks.{benchmark.name}",
        "date": datetime.date.today().isoformat(),
        "load_average_before": load_average,
        "machine": machine(),
        "versions": versions(benchmark.packages),
        "rows": rows,
    }


def main(benchmark: Benchmark) -> None:
    """What ``python -m benchmarks.NAME`` does."""
    missing = benchmark.missing()
    if missing:
        sys.exit(f"error: {benchmark.name} can't run: {'; '.join(missing)}")
    run(benchmark)


# --- the machine -----------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    return {"cpu": processor(), "cores": cores(), "gpu": gpu(), "os": f"{platform.system()} {platform.machine()}"}


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Its name, with the instructions that decide how fast 8-bit arithmetic is."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(reversed([line.split(":", 1) for line in lines if ":" in line]))
    facts = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    has = [flag for flag in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp") if flag in flags]
    has = has or [flag for flag in ("avx2", "asimd") if flag in flags]
    return facts.get("model name", platform.machine()) + (f" ({', '.join(has)})" if has else "")


def gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    names = [line.strip() for line in found.stdout.splitlines() if line.strip()]
    return ", ".join(names) if found.returncode == 0 and names else None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions by distribution, those that aren't installed left out."""
    from compress import __version__

    found = {"compress": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# --- what else the machine does --------------------------------------------------------------------------------------


@dataclass
class Others:
    """What other programs used of the cores meanwhile, in percent; None where the system doesn't say."""

    percent: float | None = None


@contextmanager
def others() -> Iterator[Others]:
    """Measure what other programs use of this machine's cores while the block runs."""
    found, before, start = Others(), _cpu_seconds(), time.perf_counter()
    yield found
    after, wall = _cpu_seconds(), time.perf_counter() - start
    if before is not None and after is not None:
        # The system counts in hundredths of a second, so a short block may come out just below zero.
        found.percent = round(max(0.0, 100 * (after - before) / (wall * (os.cpu_count() or 1))), 1)


def _cpu_seconds() -> float | None:
    path = Path("/proc/stat")
    if not path.exists():
        return None
    own = os.times()
    mine = own.user + own.system + own.children_user + own.children_system
    return others_seconds(path.read_text().splitlines()[0], os.sysconf("SC_CLK_TCK"), mine)


def others_seconds(line: str, ticks_per_s: int, own_s: float) -> float:
    """Seconds of all cores that went to anything but this process and its finished children.

    Args:
        line: the first of /proc/stat: ``cpu user nice system idle iowait irq softirq steal ...``, in ticks.
        ticks_per_s: of the system.
        own_s: what this process and its finished children have used.
    """
    user, nice, system, _, _, irq, soft, steal = map(int, line.split()[1:9])
    # Steal is what the host gave to other machines: no less a disturbance.
    return (user + nice + system + irq + soft + steal) / ticks_per_s - own_s


def quietly(measure: Callable[[], T], attempts: int = 6, wait_s: float = 60.0) -> tuple[T, float | None]:
    """The quietest of several measurements, and the share of the cores that others used beside it, in percent.

    Ends with the first beside which others used at most :data:`QUIET_PERCENT`.
    """
    best: tuple[T, float | None] | None = None
    for _ in range(attempts):
        wait_until_quiet(wait_s)
        with others() as found:
            value = measure()
        if best is None or (found.percent or 0.0) < (best[1] or 0.0):
            best = value, found.percent
        if (best[1] or 0.0) <= QUIET_PERCENT:
            break
    assert best is not None
    return best


def wait_until_quiet(at_most_s: float) -> bool:
    """Wait until others leave the cores alone for two seconds; False if they don't within ``at_most_s``."""
    end = time.perf_counter() + at_most_s
    while True:
        with others() as found:
            time.sleep(2.0)
        if (found.percent or 0.0) <= QUIET_PERCENT:
            return True
        if time.perf_counter() >= end:
            return False


# --- needs -----------------------------------------------------------------------------------------------------------


def data_dir() -> Path | None:
    """``$COMPRESS_DATA_DIR``, or ``../shared/data`` beside the repository; None where neither is there."""
    given = os.environ.get("COMPRESS_DATA_DIR")
    places = ([Path(given)] if given else []) + [REPOSITORY.parent / "shared" / "data"]
    return next((place for place in places if place.is_dir()), None)


def data(path: str, what: str) -> Need:
    """A file or folder below the data folder."""

    def missing() -> str | None:
        folder = data_dir()
        there = folder is not None and (folder / path).exists()
        return None if there else f"{what}: put {path} into the folder that COMPRESS_DATA_DIR names"

    return Need(f"data: {what}", missing)


def package(distribution: str, module: str | None = None) -> Need:
    """An importable package."""
    found = importlib.util.find_spec
    return Need(
        f"package: {distribution}",
        lambda: (
            None if found(module or distribution) else f"{distribution} isn't installed: pip install {distribution}"
        ),
    )


def program(name: str, what: str = "program") -> Need:
    """A program on the path, such as an emulator."""
    return Need(f"{what}: {name}", lambda: None if shutil.which(name) else f"there is no {name} on the path")


def a_gpu() -> Need:
    return Need("GPU", lambda: None if gpu() else "there is no NVIDIA GPU")


@contextmanager
def cifar10() -> Iterator[Path]:
    """A folder with CIFAR-10 in its published layout; unpacked into a temporary one where the data is packed."""
    import tempfile

    folder = data_dir()
    assert folder is not None
    source = folder / "cifar10"
    if not (source / "unpack.py").is_file():
        yield source
        return
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([sys.executable, source / "unpack.py", made], check=True, capture_output=True)
        yield Path(made)


# --- tables ----------------------------------------------------------------------------------------------------------


def print_rows(rows: Sequence[Row]) -> None:
    """The rows as a plain table, one column a key."""
    if not rows:
        return
    table = [list(rows[0]), *([shown(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def shown(value: Any, decimals: int | None = None) -> str:
    """A figure as text; a dash where it isn't known."""
    if value is None:
        return "—"
    if isinstance(value, float) or decimals is not None:
        return f"{value:,.{4 if decimals is None else decimals}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table, all columns but the first ``text_columns`` right-aligned."""
    rule = ["---" if column < text_columns else "--:" for column in range(len(header))]
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, rule, *rows])


def conditions(found: Mapping[str, Any]) -> str:
    """One sentence: the machine, the date, the versions and the command."""
    machine, gpu = found["machine"], found["machine"]["gpu"]
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    where = f"{machine['cpu']}, {machine['cores']} cores, {gpu or 'no GPU'}, {machine['os']}"
    return f"{where}; {found['date']}; {packages}; `{found['command']}`."
