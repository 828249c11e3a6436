"""``compress targets`` and ``compress models``: what there is to choose from; ``compress cache``: what is kept."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from compress import targets as devices
from compress.cli import screen
from compress.report import words
from compress.serial import to_json
from compress.types import FLOAT32

if TYPE_CHECKING:
    from compress.networks import NetworkInfo
    from compress.types import Target

MODEL_FORMS = (
    ("timm:NAME", "a network of timm with its weights (pip install timm)"),
    ("torchvision:NAME", "a network of torchvision with its weights (pip install torchvision)"),
    ("hf:NAME", "an image classifier of Hugging Face (pip install transformers)"),
    ("FILE.py:FUNCTION", "what your function returns, a torch.nn.Module"),
    ("FILE.pt2", "what torch.export.save wrote"),
)
DESCRIBED = 110
"""Columns from which on the networks' descriptions have room beside their figures."""


def targets(name: str | None, as_json: bool) -> int:
    """Print all targets, or every number of one.

    Raises:
        BadInput: there is no such target, or its file is wrong.
    """
    if name is not None:
        return _target(devices.load(name), as_json)
    found = [devices.load(known) for known in devices.names()]
    if as_json:
        screen.emit([_summary(target) for target in found])
        return 0
    from compress.report.terminal import rows_table

    rows = [
        (
            target.name,
            target.runtime,
            words.size(target.ram_bytes),
            words.size(target.flash_bytes),
            " ".join(str(p) for p in target.precisions if p != FLOAT32),
            _latency_known(target),
        )
        for target in found
    ]
    aliases = [(", ".join(t.aliases), f"stands for {t.name}") for t in found if t.aliases]
    blocks = [rows_table(["target", "runtime", "RAM", "flash", "precisions", "latency"], rows, right=[2, 3])]
    if aliases:
        blocks.append(rows_table(["", ""], aliases))
    screen.show(*blocks, "Every number and where it comes from: compress targets NAME")
    return 0


def _latency_known(target: Target) -> str:
    """How the latencies on it will be known."""
    return "measured here" if target.host else "predicted"


def _summary(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "aliases": list(target.aliases),
        "title": target.title,
        "runtime": target.runtime,
        "runtimes": list(target.runtimes),
        "ram_bytes": target.ram_bytes,
        "flash_bytes": target.flash_bytes,
        "precisions": [str(precision) for precision in target.precisions],
        "measured_here": target.host,
        "measured_on": target.measured_on,
    }


def _target(target: Target, as_json: bool) -> int:
    numbers = devices.describe(target)
    if as_json:
        screen.emit({**_summary(target), "target": to_json(target), "numbers": to_json(numbers)})
        return 0
    from compress.report.terminal import rows_table

    weights = "in RAM" if target.weights_in_ram else "read in place from flash"
    facts = [
        ("name", ", ".join([target.name, *target.aliases])),
        ("runtimes", ", ".join(target.runtimes)),
        ("activations", target.activations),
        ("weights", weights),
        ("compiled for", ", ".join(each for each in (target.triple, target.cpu) if each) or words.DASH),
        ("last measured there", target.measured_on or "never"),
        ("latency of a run", _latency_known(target)),
    ]
    rows = [(row.field, row.value, row.evidence, row.date, row.source) for row in numbers]
    screen.show(
        rows_table(["", ""], facts, title=target.title),
        rows_table(["number", "value", "evidence", "date", "source"], rows, right=[1]),
    )
    return 0


def models(as_json: bool) -> int:
    """Print the built-in networks and the other forms of ``--model``."""
    from compress.networks import NETWORKS

    if as_json:
        screen.emit(
            {
                "builtin": [
                    {
                        "name": each.name,
                        "input_shape": list(each.input_shape),
                        "num_classes": each.num_classes or None,
                        "weights_included": each.weights is not None or bool(each.by_ratio),
                        "data": each.data,
                        "description": each.description,
                    }
                    for each in NETWORKS
                ],
                "forms": [{"form": form, "what": what} for form, what in MODEL_FORMS],
            }
        )
        return 0
    from compress.report.terminal import rows_table

    headings = ["network", "input", "classes", "weights", "data", "what it is"]
    rows: list[tuple[str, ...]] = [
        (
            each.name,
            words.TIMES.join(map(str, each.input_shape)),
            str(each.num_classes or words.DASH),
            _weights(each),
            each.data or "--data DATA",
            each.description,
        )
        for each in NETWORKS
    ]
    if screen.console().width < DESCRIBED:
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    screen.show(
        rows_table(headings, rows, right=[2]),
        rows_table(["", ""], MODEL_FORMS, title="Also"),
    )
    return 0


def _weights(network: NetworkInfo) -> str:
    if network.weights is not None:
        return "included"
    if network.block is None:
        return "--weights FILE"
    there = ", ".join(f"{ratio:g}" for ratio in network.by_ratio)
    return f"included: {there}" if there else "--epochs N"


def cache(clear: bool, as_json: bool) -> int:
    """Print what the cache of earlier runs holds, or empty it."""
    from compress.cache import Cache, limit_bytes, location

    kept = Cache(location(), limit_bytes())
    if clear:
        entries = kept.entries()
        count, freed = kept.clear(), sum(each.bytes for each in entries)
        if as_json:
            screen.emit({"path": str(kept.path), "removed": count, "removed_bytes": freed})
        else:
            screen.show(f"{count} entries removed, {words.size(freed)}: {kept.path}")
        return 0
    entries = kept.entries()
    total = sum(each.bytes for each in entries)
    if as_json:
        found = [to_json(each) for each in entries]
        screen.emit({"path": str(kept.path), "limit_bytes": kept.limit, "bytes": total, "entries": found})
        return 0
    from compress.report.terminal import rows_table

    held = "it is off (COMPRESS_CACHE_BYTES is 0)" if not kept.limit else f"at most {words.size(kept.limit)}"
    summary = f"{len(entries)} entries, {words.size(total)}, {held}: {kept.path}"
    if not entries:
        screen.show(summary)
        return 0
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used)),
            each.kind,
            ", ".join(each.about.values()),
            words.size(each.bytes),
        )
        for each in entries
    ]
    screen.show(
        rows_table(["last used", "what", "of", "size"], rows, right=[3]),
        summary,
        "Remove all of it: compress cache --clear",
    )
    return 0
