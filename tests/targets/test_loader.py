"""Laws that every target keeps, and what a user's own file is told."""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path

import pytest

from compress.errors import BadInput, UnknownName
from compress.serial import from_json, to_json
from compress.targets import describe, load, names
from compress.targets.table import markdown
from compress.types import FLOAT32, Precision, Target

ISSUED = {
    "cpu",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "cortex-m7",
    "cortex-m4",
    "jetson-orin-nano",
    "jetson-agx-orin",
    "jetson-agx-thor",
    "gpu",
}
W8A8, W4A8 = Precision(8, 8, "integer"), Precision(4, 8, "integer")
DOCS = Path(__file__).parents[2] / "docs" / "targets.md"

OWN = """\
name = "board"
title = "My board"
runtime = "tvm"
runtimes = ["tvm"]
host = false
weights_in_ram = false
activations = "signed"
ram_bytes = { value = 1024, source = "its label", date = 2026-01-31, evidence = "datasheet" }
flash_bytes = { value = 4096, source = "its label", date = 2026-01-31, evidence = "datasheet" }
bandwidth_bytes_per_s = { value = 1e6, source = "a guess", date = 2026-01-31, evidence = "assumed" }
launch_overhead_s = { value = 1e-6, source = "a guess", date = "2026-01-31", evidence = "assumed" }
channel_multiple = { value = 4, source = "a guess", date = 2026-01-31, evidence = "assumed" }
prediction_error = { value = 0.5, source = "a guess", date = 2026-01-31, evidence = "assumed" }
[[memories]]
name = "SRAM"
bytes = 1024
source = "its label"
date = 2026-01-31
evidence = "datasheet"
[[macs_per_s]]
weight_bits = 32
activation_bits = 32
kind = "float"
value = 2e6
source = "1 MHz x 2"
date = 2026-01-31
evidence = "derived"
efficiency = { value = 0.5, source = "a guess", date = 2026-01-31, evidence = "assumed" }
"""


@pytest.fixture(params=names())
def target(request: pytest.FixtureRequest) -> Target:
    return load(request.param)


def numbers(target: Target) -> set[str]:
    """The fields of a target that are numbers, listed from the types themselves."""
    found = {"ram_bytes", "bandwidth_bytes_per_s", "launch_overhead_s", "channel_multiple", "prediction_error"}
    found |= {"flash_bytes"} if target.flash_bytes is not None else set()
    for memory in target.memories:
        found.add(f"memories[{memory.name}]")
        if memory.bandwidth_bytes_per_s is not None:
            found.add(f"memories[{memory.name}].bandwidth_bytes_per_s")
    for rate in target.macs_per_s:
        found |= {f"macs_per_s[{rate.precision}]", f"macs_per_s[{rate.precision}].efficiency"}
    return found


def test_the_issued_targets_are_there() -> None:
    assert set(names()) >= ISSUED


def test_a_target_is_called_as_its_file(target: Target) -> None:
    assert target.name in names()
    assert load(target.name) == target


def test_every_number_has_a_source_a_date_and_evidence(target: Target) -> None:
    assert set(target.sources) == numbers(target)
    for source in target.sources.values():
        assert len(source.source) >= 5
        assert datetime.date(2020, 1, 1) <= datetime.date.fromisoformat(source.date)


def test_derived_numbers_show_their_arithmetic(target: Target) -> None:
    for field, source in target.sources.items():
        if source.evidence == "derived" and field.endswith("]"):
            assert re.search(r"\d", source.source) or "8-bit kernel" in source.source, field


def test_only_the_host_has_measured_numbers(target: Target) -> None:
    measured = any(source.evidence == "measured" for source in target.sources.values())
    assert measured == target.host == (target.measured_on is not None) == (target.name == "cpu")


@pytest.mark.parametrize("name", names())
def test_peaks_that_are_cores_times_clock_multiply_out(name: str) -> None:
    """``4 cores x 1.8 GHz x 8 MACs`` in the source is recomputed from its text."""
    units = {"GHz": 1e9, "MHz": 1e6}
    checked = 0
    for rate in load(name).macs_per_s:
        source = load(name).sources[f"macs_per_s[{rate.precision}]"].source
        match = re.match(
            r"(?:([\d,]+) (?:CUDA |tensor )?cores x )?([\d.,]+) ([GM]Hz)"
            r" x (\d+) (?:MACs|FMA|VFMA\.F32)(?: in (\d) cycles)?",
            source,
        )
        if match:
            cores, clock, unit, macs, cycles = match.groups()
            expected = float((cores or "1").replace(",", "")) * float(clock.replace(",", "")) * units[unit] * int(macs)
            assert rate.macs_per_s == pytest.approx(expected / int(cycles or 1), rel=1e-5), source
            checked += 1
    assert checked or load(name).host


def test_integers_are_never_slower_than_float(target: Target) -> None:
    reached = {rate.precision: rate.macs_per_s * rate.efficiency for rate in target.macs_per_s}
    assert reached[W8A8] >= reached[FLOAT32]
    assert reached[W8A8] >= reached.get(W4A8, 0.0) >= reached[FLOAT32] * (W4A8 in reached)
    for precision, rate in reached.items():
        if precision.kind == "float":
            assert rate >= reached[FLOAT32]


def test_four_bit_weights_only_where_the_runtime_keeps_them(target: Target) -> None:
    assert (W4A8 in target.precisions) == (target.runtime != "tensorrt")


def test_limits_fit_in_the_memories(target: Target) -> None:
    sizes = {memory.bytes for memory in target.memories}
    assert target.ram_bytes in sizes
    assert target.flash_bytes is None or target.flash_bytes in sizes
    assert target.weights_in_ram == (target.flash_bytes is None)
    known = [m.bandwidth_bytes_per_s for m in target.memories if m.bandwidth_bytes_per_s is not None]
    assert not known or target.bandwidth_bytes_per_s <= max(known)


def test_zero_points_cost_nothing_on_x86_and_arm_and_tensorrt_takes_none(target: Target) -> None:
    free = target.host or (target.triple or "").startswith(("x86", "aarch64", "thumb"))
    assert target.activations == ("unsigned" if free and target.gpu is None else "signed")


def test_a_target_survives_json(target: Target) -> None:
    assert from_json(Target, to_json(target)) == target


def test_names_and_aliases_are_all_different() -> None:
    called = [name for target in map(load, names()) for name in (target.name, *target.aliases)]
    assert len(called) == len(set(called))


def test_jetson_is_the_orin_nano() -> None:
    assert load("jetson") == load("jetson-orin-nano")
    assert (load("jetson").cpu, load("jetson").triple) == ("cortex-a78ae", "aarch64-linux-gnu")


def test_the_hosts_memory_is_detected() -> None:
    assert load("cpu").ram_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_description_has_a_row_for_each_number_with_its_unit(target: Target) -> None:
    rows = describe(target)
    assert {row.field for row in rows} == numbers(target)
    assert all((row.source, row.date, row.evidence) == _as_tuple(target, row.field) for row in rows)


def _as_tuple(target: Target, field: str) -> tuple[str, str, str]:
    source = target.sources[field]
    return source.source, source.date, source.evidence


def test_values_are_described_in_the_units_that_people_use() -> None:
    values = {row.field: row.value for row in describe(load("cortex-m7"))}
    assert values["ram_bytes"] == "512 KiB"
    assert values["flash_bytes"] == "2 MiB"
    assert values["bandwidth_bytes_per_s"] == "1.92 GB/s"
    assert values["macs_per_s[W8A8]"] == "960 MMAC/s"
    assert values["macs_per_s[W8A8].efficiency"] == "55%"
    assert values["launch_overhead_s"] == "2 µs"
    assert values["prediction_error"] == "±100%"


def test_the_page_of_the_docs_is_the_generated_one() -> None:
    assert DOCS.read_text() == markdown(), "run: python -m compress.targets.table > docs/targets.md"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName) as raised:
        load("raspberypi-4")
    assert raised.value.nearest[0] == "raspberry-pi-4"
    assert "see compress targets, or give a .toml file" in str(raised.value)
    with pytest.raises(UnknownName, match="jetson"):
        load("jetsn")


def test_a_users_own_file_is_a_target(tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text(OWN)
    target = load(str(file))
    assert (target.name, target.ram_bytes, target.flash_bytes, target.channel_multiple) == ("board", 1024, 4096, 4)
    assert target.precisions == (FLOAT32,)
    assert target.sources["launch_overhead_s"].date == "2026-01-31"
    assert target.triple is None
    assert target.measured_on is None


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('title = "My board"\n', "", "'title' is missing"),
        ('title = "My board"', "title = 3", "'title' must be text"),
        (
            'title = "My board"',
            'titel = "My board"\ntitle = "x"',
            "'titel' is no key of a target; did you mean 'title'?",
        ),
        ("host = false", 'host = "no"', "'host' must be true or false"),
        ('activations = "signed"', 'activations = "both"', "'activations' must be one of unsigned, signed"),
        (
            "ram_bytes = { value = 1024",
            "ram_bytes = { value = -5",
            "'ram_bytes.value' must be a number above 0, not -5",
        ),
        ("ram_bytes = { value = 1024", "ram_bytes = { value = 0", "'ram_bytes.value' must be a number above 0"),
        ("ram_bytes = { value = 1024", "ram_bytes = { value = 10.5", "'ram_bytes.value' must be a whole number"),
        ("ram_bytes = { value = 1024", "ram_bytes = { value = true", "'ram_bytes.value' must be a number"),
        ("ram_bytes = { value = 1024", 'ram_bytes = { value = "detect"', "'ram_bytes.value' must be a number"),
        (
            "bandwidth_bytes_per_s = { value = 1e6",
            "bandwidth_bytes_per_s = { value = nan",
            "'bandwidth_bytes_per_s.value' must be",
        ),
        (
            "bandwidth_bytes_per_s = { value = 1e6",
            "bandwidth_bytes_per_s = { value = inf",
            "'bandwidth_bytes_per_s.value' must be",
        ),
        ("prediction_error = { value = 0.5", "prediction_error = { value = 2", "'prediction_error.value' must be"),
        ("ram_bytes = { value = 1024, source", "ram_bytes = { value = 1024, sauce", "'ram_bytes.source' is missing"),
        ("ram_bytes = { value = 1024, ", "ram_bytes = { value = 1024, unit = 1, ", "'ram_bytes.unit' is no key"),
        ('date = "2026-01-31"', 'date = "yesterday"', "'launch_overhead_s.date' must be a date"),
        ('evidence = "derived"', 'evidence = "heard"', "'macs_per_s[0].evidence' must be one of datasheet"),
        ('kind = "float"', 'kind = "real"', "'macs_per_s[0].kind' must be one of integer"),
        ("weight_bits = 32", "weight_bits = 64", "'macs_per_s[0].weight_bits' must be a number above 0 and at most 32"),
        ("efficiency = { value = 0.5", "efficiency = { value = 1.5", "'macs_per_s[0].efficiency.value' must be"),
        ("activation_bits = 32", "activation_bits = 16", "'macs_per_s' must have a float entry of 32 bits"),
        ('runtimes = ["tvm"]', 'runtimes = ["onnxruntime"]', "'runtime' must be one of its runtimes"),
        ('runtimes = ["tvm"]', "runtimes = []", "'runtimes' must name at least one"),
        ("ram_bytes = {", "ram_bytes = 1024\nx = {", "'ram_bytes' must be a table"),
        ("[[memories]]", "[memories]", "'memories' must be one or more [[memories]] tables"),
        ('runtime = "tvm"', "runtime = ", "isn't valid TOML"),
    ],
)
def test_a_malformed_file_is_told_the_key_in_one_line(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert old in OWN
    file = tmp_path / "board.toml"
    file.write_text(OWN.replace(old, new, 1))
    with pytest.raises(BadInput) as raised:
        load(str(file))
    message = str(raised.value)
    assert named in message
    assert str(file) in message
    assert "\n" not in message
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("block", ["[[macs_per_s]]", "[[memories]]"])
def test_an_entry_that_is_there_twice_is_refused(tmp_path: Path, block: str) -> None:
    start = OWN.index(block)
    end = OWN.index("[[macs_per_s]]") if block == "[[memories]]" else len(OWN)
    file = tmp_path / "board.toml"
    file.write_text(OWN + OWN[start:end])
    with pytest.raises(BadInput, match=r"twice|second time"):
        load(str(file))


def test_a_file_that_is_missing_a_folder_or_not_text_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        load(str(tmp_path / "none.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(BadInput, match="directory"):
        load(str(tmp_path / "folder.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="UTF-8"):
        load(str(tmp_path / "bytes.toml"))
