"""Wall time of the default job, ``compress --model resnet --target T``, and where it goes.

Each run is a process of its own, from the shell's point of view: it starts Python, imports, loads, compresses and
writes its folder. The row of a target is the run with the median wall time, so that its phases add up to it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common

TARGETS = ("jetson", "cpu")
RUNS = 3
TARGET_SECONDS = {"jetson": 120.0, "cpu": 120.0}


def once(target: str) -> common.Row:
    """One run: what it took and what it found."""
    with tempfile.TemporaryDirectory() as parent:
        return _once(target, Path(parent) / "run")


def _once(target: str, folder: Path) -> common.Row:
    command = [sys.executable, "-m", "compress", "--model", "resnet", "--target", target, "--out", str(folder), "-q"]
    command.append("--no-cache")  # what a first run takes
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr.strip()}")
    front = json.loads((folder / "front.json").read_text())
    phases = json.loads((folder / "run.json").read_text())["seconds"]
    made = front["candidates"]
    best = next((c for c in made if c["id"] == front["best"]), None)
    row: common.Row = {
        "target": target,
        "wall_seconds": round(wall, 2),
        "candidates": len(made),
        "candidates_on_front": sum(c["on_front"] for c in made),
        "macs_largest_over_smallest": _spread(made, "macs"),
        "file_bytes_largest_over_smallest": _spread(made, "flash_bytes"),
        "float_accuracy_percent": round(front["baseline"]["accuracy"]["value"], 2),
        "best": front["best"],
        "best_accuracy_percent": round(best["accuracy"]["value"], 2) if best else None,
    }
    # Python's start, the imports and the end of the process aren't phases of the run.
    outside = wall - sum(seconds for _, seconds in phases)
    for phase, seconds in [["start and end", outside], *phases]:
        row[f"{phase.replace(' ', '_')}_seconds"] = round(seconds, 2)
    return row


def _spread(made: list[dict[str, Any]], key: str) -> float:
    values: list[int] = [candidate[key] for candidate in made]
    return round(max(values) / min(values), 2)


def measure() -> list[common.Row]:
    runs: dict[str, list[common.Row]] = {target: [] for target in TARGETS}
    for _ in range(RUNS):
        for target in TARGETS:
            row, other_work = common.quietly(partial(once, target), attempts=2, wait_s=300)
            runs[target].append({**row, "other_work_percent": other_work})
    return aligned([median(found) for found in runs.values()])


def median(runs: list[common.Row]) -> common.Row:
    """The run with the median wall time (of an odd number), with the range of all beside it."""
    ordered = sorted(runs, key=lambda run: float(run["wall_seconds"] or 0))
    walls = [run["wall_seconds"] for run in ordered]
    middle = dict(ordered[len(ordered) // 2])
    head = {"target": middle.pop("target"), "wall_seconds": middle.pop("wall_seconds")}
    return {**head, "fastest_wall_seconds": walls[0], "slowest_wall_seconds": walls[-1], "runs": len(runs), **middle}


def aligned(rows: list[common.Row]) -> list[common.Row]:
    """The rows with the same keys, null where a target has no such phase."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in keys} for row in rows]


def phases(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The seconds of each phase by its name, as they add up to the wall time."""
    ends = "_seconds"
    return {key[: -len(ends)].replace("_", " "): row[key] for key in row if key.endswith(ends) and "wall" not in key}


def section(document: Mapping[str, Any]) -> str:
    rows = document["rows"]
    verdicts = [
        f"`{row['target']}` took {row['wall_seconds']:.0f} s, "
        f"{'under' if row['wall_seconds'] < limit else 'which misses'} the target of {limit:.0f} s. "
        for row in rows
        if (limit := TARGET_SECONDS.get(row["target"])) is not None
    ]
    busiest = max((row["other_work_percent"] or 0.0) for row in rows)
    table = common.markdown_table(["", *(f"`{row['target']}`" for row in rows)], _table(rows))
    return (
        "`compress --model resnet --target T` with nothing else given: a whole process, offline, training and "
        f"calibration on the shipped digits included. {''.join(verdicts)}The row shows the run with the median wall "
        f"time of {rows[0]['runs']}, the targets in turns; other programs used up to {busiest:.1f}% of the cores "
        "meanwhile. Beside other work on the same cores the job takes several times as long.\n\n" + table
    )


def _table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The rows of the documents as columns, a figure a line."""

    def line(label: str, *keys: str, decimals: int | None = None) -> list[str]:
        return [label, *(", ".join(common.shown(row[key], decimals) for key in keys) for row in rows)]

    def phase(name: str) -> list[str]:
        seconds = (phases(row)[name] for row in rows)
        return [f"of it: {name}, s", *("—" if s is None else f"{s:.1f}" for s in seconds)]

    return [
        line("wall time, s (median)", "wall_seconds", decimals=1),
        line("fastest and slowest, s", "fastest_wall_seconds", "slowest_wall_seconds", decimals=1),
        *(phase(name) for name in phases(rows[0])),
        line("candidates, of them on the front", "candidates", "candidates_on_front"),
        line("MACs, largest over smallest", "macs_largest_over_smallest", decimals=2),
        line("file size, largest over smallest", "file_bytes_largest_over_smallest", decimals=2),
        line("accuracy, float and best, %", "float_accuracy_percent", "best_accuracy_percent", decimals=2),
        line("cores used by other programs, %", "other_work_percent", decimals=1),
    ]


BENCHMARK = common.Benchmark(
    name="default_job",
    title="wall time of `compress --model resnet`, by phase",
    needs=(),
    packages=("torch", "onnx", "onnxruntime", "brevitas", "numpy"),
    measure=measure,
    section=section,
    minutes=10,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
