"""``docs/benchmarks.md``, from the results files."""

from __future__ import annotations

import json

from benchmarks import common
from benchmarks.roster import BENCHMARKS

PAGE = common.REPOSITORY / "docs" / "benchmarks.md"
INTRODUCTION = """\
# Benchmarks

This page is generated from `benchmarks/results/` (`python -m benchmarks --docs`), so that each figure on it is one that
a run gave. `python -m benchmarks` lists the benchmarks with what each needs; `python -m benchmarks --run` runs those
that can run. Times are those of one machine, named below each heading; on another, run them again.

**Not measured anew yet:** in the results of `prune_cifar10`, `prune_imagenet`, `cifar10_ptq` and `compiled_x86`,
networks that ONNX Runtime computed on two threads were timed among others of its sessions, whose
threads were still waiting for work on the second core. Large ones came out up to twice as slow as they are alone
([latency.md](latency.md#measuring)), so ratios to them may be too kind. One thread isn't affected, nor is what compiled
code takes. Their 8-bit files also padded images and computed last linear layers in float, which today's don't.
"""


def markdown() -> str:
    """The whole page; a benchmark without results says so."""
    parts = [INTRODUCTION]
    for benchmark in BENCHMARKS.values():
        parts.append(f"\n## {benchmark.title[0].upper()}{benchmark.title[1:]}\n\n")
        if not benchmark.results.exists():
            needs = "; ".join(need.name for need in benchmark.needs) or "nothing more"
            parts.append(f"Not run yet: `python -m benchmarks.{benchmark.name}`. It needs {needs}.\n")
            continue
        for path in (benchmark.results, *benchmark.elsewhere):
            document = json.loads(path.read_text(encoding="utf-8"))
            heading = "" if path == benchmark.results else f"\n### The same on {path.parent.name}\n\n"
            parts.append(f"{heading}{common.conditions(document)}\n\n{benchmark.section(document)}")
    return "".join(parts)
