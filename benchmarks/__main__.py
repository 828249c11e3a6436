"""``python -m benchmarks``: list the benchmarks, run those that can run, write the page of the docs."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence

from benchmarks import common, page
from benchmarks.roster import BENCHMARKS
from compress.errors import UnknownName
from compress.serial import write_atomic


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 where a benchmark failed, 2 for an unknown name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--run", nargs="*", metavar="NAME", help="run these, or all that can run here")
    parser.add_argument("--kind", metavar="NAME", help="keep results beside those of other kinds of machines")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md from the results")
    asked = parser.parse_args(arguments)
    if asked.kind is not None and asked.run is None:
        print("error: --kind says where the results of --run go; give both", file=sys.stderr)
        return 2
    if asked.kind is not None and not re.fullmatch(r"[a-z0-9-]+", asked.kind):
        print(f"error: --kind {asked.kind}: give it lower-case letters, digits and -, such as avx2", file=sys.stderr)
        return 2
    unknown = [name for name in asked.run or () if name not in BENCHMARKS]
    if unknown:
        print(f"error: {UnknownName('benchmark', unknown[0], BENCHMARKS)}", file=sys.stderr)
        return 2
    if asked.run is None and not asked.docs:
        listing()
        return 0
    failed = run(asked.run or list(BENCHMARKS), asked.kind) if asked.run is not None else False
    if asked.docs:
        write_atomic(page.PAGE, page.markdown().encode())
    return int(failed)


def listing() -> None:
    """Name, what it measures, what it needs, whether it can run here, and when it last did."""
    for benchmark in BENCHMARKS.values():
        missing = benchmark.missing()
        needs = "; ".join(need.name for need in benchmark.needs) or "nothing"
        last = json.loads(benchmark.results.read_text())["date"] if benchmark.results.exists() else "never"
        print(f"{benchmark.name}: {benchmark.title}")
        print(f"    needs {needs}; about {benchmark.minutes:g} min on two idle cores; last results: {last}")
        print(f"    can't run here: {'; '.join(missing)}" if missing else "    can run here")


def run(names: Sequence[str], kind: str | None = None) -> bool:
    """Run them, one after another; a failure doesn't keep the others from running. True if one failed."""
    failed = False
    for name in names:
        benchmark = BENCHMARKS[name]
        missing = benchmark.missing()
        if missing:
            print(f"{name}: skipped, {'; '.join(missing)}")
            continue
        print(f"{name}: {benchmark.title}", flush=True)
        try:
            common.run(benchmark, kind)
        except Exception as error:  # whatever a benchmark meets, the next one is to run
            print(f"error: {name}: {type(error).__name__}: {error}", file=sys.stderr)
            failed = True
    return failed


if __name__ == "__main__":
    sys.exit(main())
