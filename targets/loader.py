"""Devices by name, by alias, or from a user's own TOML file.

A file holds the fields of :class:`compress.types.Target`. A number is a table of its own::

    [ram_bytes]
    value = 524288
    source = "STM32H743 data sheet (DS12110): AXI SRAM"
    date = 2026-11-20            # when the figure was entered or measured
    evidence = "datasheet"       # or measured, derived, assumed

``[[memories]]`` (name, bytes, optionally a ``bandwidth_bytes_per_s`` table) and ``[[macs_per_s]]``
(weight_bits, activation_bits, kind, value, an ``efficiency`` table) carry the same three. On a target
with ``host = true`` the number of bytes may be ``"detect"``: the operating system is asked.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast, get_args

from compress.errors import BadInput, UnknownName
from compress.targets.reader import Reader
from compress.types import FLOAT32, Evidence, Kind, Memory, Precision, Rate, Signedness, Source, Target


@dataclass(frozen=True, slots=True)
class Row:
    """One number of a target for people: ``value`` with its unit, and where it comes from."""

    field: str
    value: str
    source: str
    date: str
    evidence: Evidence


def names() -> tuple[str, ...]:
    """The canonical names of the targets that come with the package, sorted."""
    files = resources.files("compress.targets").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load(name: str) -> Target:
    """A target by its name or alias, or from a file where ``name`` is the path of a ``.toml``.

    Raises:
        UnknownName: no target is called so.
        BadInput: the file can't be read, or a key in it is missing, unknown or wrong.
    """
    if name.endswith(".toml") or os.sep in name:
        return _target(name, _parsed(name, _file_text(name)))
    if name in names():
        return _target(f"{name}.toml", document(name))
    aliases = {alias: known for known in names() for alias in document(known).get("aliases", ())}
    if name in aliases:
        return load(aliases[name])
    raise UnknownName("target", name, (*names(), *aliases), "see compress targets, or give a .toml file")


def document(name: str) -> Mapping[str, Any]:
    """What the TOML parser makes of a target that comes with the package."""
    text = (resources.files("compress.targets") / f"{name}.toml").read_text(encoding="utf-8")
    return _parsed(f"{name}.toml", text)


def _file_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"target file {path} isn't UTF-8 text; give a .toml file") from None
    except OSError as error:
        reason = error.strerror or "it can't be read"
        raise BadInput(f"target file {path}: {reason}; give a .toml file, or a name from compress targets") from None


def _parsed(file: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"target file {file} isn't valid TOML: {error}") from None


def _target(file: str, table: Mapping[str, Any]) -> Target:
    reader = Reader(file, dict(table))
    sources: dict[str, Source] = {}

    def number(key: str, *, high: float = float("inf")) -> float:
        entry = reader.table(key)
        value, sources[key] = entry.bare("value", high=high), entry.source()
        entry.finish()
        return float(value)

    def whole(key: str, detected: int | None = None) -> int:
        entry = reader.table(key)
        value, sources[key] = entry.whole("value", detected=detected), entry.source()
        entry.finish()
        return value

    host = reader.flag("host")
    detected = _host_ram() if host else None
    target = Target(
        name=reader.text("name"),
        title=reader.text("title"),
        runtime=reader.text("runtime"),
        runtimes=reader.texts("runtimes", required=True),
        host=host,
        memories=_memories(reader, sources, detected),
        macs_per_s=_rates(reader, sources),
        bandwidth_bytes_per_s=number("bandwidth_bytes_per_s"),
        launch_overhead_s=number("launch_overhead_s"),
        ram_bytes=whole("ram_bytes", detected),
        flash_bytes=whole("flash_bytes") if reader.has("flash_bytes") else None,
        weights_in_ram=reader.flag("weights_in_ram"),
        channel_multiple=whole("channel_multiple"),
        activations=cast(Signedness, reader.choice("activations", get_args(Signedness))),
        triple=reader.optional_text("triple"),
        cpu=reader.optional_text("cpu"),
        prediction_error=number("prediction_error", high=1.0),
        sources=sources,
        measured_on=reader.date("measured_on", required=False),
        aliases=reader.texts("aliases", required=False),
        gpu=reader.optional_text("gpu"),
        accelerators=reader.texts("accelerators", required=False),
    )
    reader.finish()
    if target.runtime not in target.runtimes:
        raise reader.bad("runtime", f"must be one of its runtimes ({', '.join(target.runtimes)})")
    if target.gpu is not None and not re.fullmatch(r"sm_[1-9][0-9]{1,2}[af]?", target.gpu):
        raise reader.bad("gpu", f"must be an architecture such as sm_87, not {target.gpu!r}")
    if FLOAT32 not in target.precisions:
        raise reader.bad("macs_per_s", "must have a float entry of 32 bits: what nothing faster runs falls back to it")
    return target


def _memories(reader: Reader, sources: dict[str, Source], detected: int | None) -> tuple[Memory, ...]:
    memories: list[Memory] = []
    for entry in reader.tables("memories"):
        name, size = entry.text("name"), entry.whole("bytes", detected=detected)
        sources[f"memories[{name}]"] = entry.source()
        bandwidth = None
        if entry.has("bandwidth_bytes_per_s"):
            inner = entry.table("bandwidth_bytes_per_s")
            bandwidth = float(inner.bare("value"))
            sources[f"memories[{name}].bandwidth_bytes_per_s"] = inner.source()
            inner.finish()
        entry.finish()
        if name in (memory.name for memory in memories):
            raise entry.bad("name", f"{name!r} is there twice; give each memory a name of its own")
        memories.append(Memory(name, size, bandwidth))
    return tuple(memories)


def _rates(reader: Reader, sources: dict[str, Source]) -> tuple[Rate, ...]:
    rates: list[Rate] = []
    for entry in reader.tables("macs_per_s"):
        precision = Precision(
            entry.whole("weight_bits", high=32),
            entry.whole("activation_bits", high=32),
            cast(Kind, entry.choice("kind", get_args(Kind))),
        )
        value = float(entry.bare("value"))
        sources[f"macs_per_s[{precision}]"] = entry.source()
        share = entry.table("efficiency")
        efficiency = float(share.bare("value", high=1.0))
        sources[f"macs_per_s[{precision}].efficiency"] = share.source()
        share.finish()
        entry.finish()
        if precision in (rate.precision for rate in rates):
            raise entry.bad("", f"gives {precision} a second time; one entry a precision")
        rates.append(Rate(precision, value, efficiency))
    return tuple(rates)


def _host_ram() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe(target: Target) -> tuple[Row, ...]:
    """Every number of ``target`` with its unit and its source, in the order of the file's fields."""
    values: dict[str, str] = {"ram_bytes": _bytes(target.ram_bytes)}
    if target.flash_bytes is not None:
        values["flash_bytes"] = _bytes(target.flash_bytes)
    for memory in target.memories:
        values[f"memories[{memory.name}]"] = _bytes(memory.bytes)
        if memory.bandwidth_bytes_per_s is not None:
            values[f"memories[{memory.name}].bandwidth_bytes_per_s"] = _metric(memory.bandwidth_bytes_per_s, "B/s")
    for rate in target.macs_per_s:
        values[f"macs_per_s[{rate.precision}]"] = _metric(rate.macs_per_s, "MAC/s")
        values[f"macs_per_s[{rate.precision}].efficiency"] = f"{rate.efficiency:.0%}"
    values["bandwidth_bytes_per_s"] = _metric(target.bandwidth_bytes_per_s, "B/s")
    values["launch_overhead_s"] = f"{target.launch_overhead_s * 1e6:.3g} µs"
    values["channel_multiple"] = str(target.channel_multiple)
    values["prediction_error"] = f"±{target.prediction_error:.0%}"
    return tuple(
        Row(field, value, source.source, source.date, source.evidence)
        for field, value in values.items()
        for source in (target.sources[field],)
    )


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _metric(value: float, unit: str) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
