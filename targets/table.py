"""The table of targets in docs/targets.md: ``python -m compress.targets.table > docs/targets.md``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import get_args

from compress.targets.loader import Row, describe, document, load, names
from compress.targets.reader import DETECT
from compress.types import Evidence, Target

INTRODUCTION = """\
# Targets

A target is a device as data: `targets/NAME.toml` holds its memories, its rates, and what code for it is
compiled for. `compress --target` takes a name or an alias from here, or the path of a `.toml` of your own.
This page is generated from those files.

Each number says where it comes from, and how much that is worth:

- **datasheet**: the vendor's documents give it.
- **measured**: a program in `benchmarks/` measured it. Only `cpu` has such numbers, and they are those of one
  machine with two cores; yours differs, so candidates for `cpu` are timed where the command runs. Nobody has
  measured on any other target: every latency for those is a prediction.
- **derived**: arithmetic on a vendor's or a published figure, which the source shows.
- **assumed**: a guess, with what it leans on.

The date is the day on which the figure was entered or measured. `efficiency` is the share of a peak rate that
convolutions reach. A layer at a precision without a rate runs at the next wider one that has one.

"""


def markdown() -> str:
    """The whole page, the same on every machine."""
    targets = [load(name) for name in names()]
    parts = [INTRODUCTION, *_overview(targets)]
    for target in targets:
        parts += [f"\n## {target.name}\n\n", *_facts(target), *_numbers(describe(target), _detected(target))]
    return "".join(parts)


def _overview(targets: Sequence[Target]) -> list[str]:
    kinds = get_args(Evidence)
    lines = [
        "| target | device | runtimes | precisions | " + " | ".join(kinds) + " |\n",
        "|---" * (4 + len(kinds)),
        "|\n",
    ]
    for target in targets:
        counts = Counter(source.evidence for source in target.sources.values())
        name = ", ".join(f"`{known}`" for known in (target.name, *target.aliases))
        precisions = ", ".join(str(precision) for precision in target.precisions)
        cells = [name, target.title, ", ".join(target.runtimes), precisions, *(str(counts[kind]) for kind in kinds)]
        lines.append(f"| {' | '.join(cells)} |\n")
    return [*lines, "\nThe last four columns count each target's numbers by their evidence.\n"]


def _facts(target: Target) -> list[str]:
    compiled = f"; compiled for `{target.triple}`, `{target.cpu}`" if target.triple else ""
    compiled += f"{' and' if target.triple else '; compiled for'} `{target.gpu}`" if target.gpu else ""
    held = "in RAM" if target.weights_in_ram else "read in place from flash"
    last = f"last measured on {target.measured_on}" if target.measured_on else "never measured there"
    runs = f"figures for {target.runtime}, {target.activations} activations, weights {held}{compiled}"
    return [f"{target.title}: {runs}; {last}.\n\n"]


def _detected(target: Target) -> frozenset[str]:
    """The fields that depend on the machine which loads the target."""
    table = document(target.name)
    memories = {f"memories[{m['name']}]" for m in table["memories"] if m["bytes"] == DETECT}
    return frozenset(memories | {key for key in ("ram_bytes",) if table[key]["value"] == DETECT})


def _numbers(rows: Sequence[Row], detected: frozenset[str]) -> list[str]:
    lines = ["| number | value | evidence | source | date |\n|---|---|---|---|---|\n"]
    for row in rows:
        value = "detected" if row.field in detected else row.value
        lines.append(f"| {row.field} | {value} | {row.evidence} | {row.source} | {row.date} |\n")
    return lines


if __name__ == "__main__":
    sys.stdout.write(markdown())
