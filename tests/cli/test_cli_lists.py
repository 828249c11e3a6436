"""``targets``, ``models`` and ``doctor``: what they list is what there is."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from cli_calls import REPOSITORY, Call

from compress import targets
from compress.cli import doctor
from compress.networks import NETWORKS
from compress.profiling.selfcheck import SelfCheck, self_check


def test_targets_are_those_that_the_loader_knows(inside: Call) -> None:
    listed = inside("targets", "--json").json
    assert [each["name"] for each in listed] == list(targets.names())
    for each in listed:
        target = targets.load(each["name"])
        assert each["ram_bytes"] == target.ram_bytes
        assert each["precisions"] == [str(precision) for precision in target.precisions]
        assert each["measured_here"] == target.host
    text = inside("targets").out
    for name in targets.names():
        assert re.search(rf"^{re.escape(name)} ", text, re.MULTILINE)


@pytest.mark.parametrize("name", targets.names())
def test_a_target_shows_every_number_with_unit_source_date_and_evidence(inside: Call, name: str) -> None:
    target = targets.load(name)
    document = inside("targets", name, "--json").json
    assert {row["field"] for row in document["numbers"]} == set(target.sources)
    for row in document["numbers"]:
        source = target.sources[row["field"]]
        assert (row["source"], row["date"], row["evidence"]) == (source.source, source.date, source.evidence)
    text = "".join(inside("targets", name).out.split())
    for row in document["numbers"]:
        assert row["field"].replace(" ", "") in text
        assert row["value"].replace(" ", "") in text


def test_json_may_also_stand_before_the_command(inside: Call) -> None:
    assert inside("--json", "targets").json == inside("targets", "--json").json


def test_models_are_the_built_in_ones_and_the_other_forms(inside: Call) -> None:
    document = inside("models", "--json").json
    assert [each["name"] for each in document["builtin"]] == [each.name for each in NETWORKS]
    assert [each["name"] for each in document["builtin"] if each["weights_included"]] == ["resnet", "sensing"]
    forms = [each["form"] for each in document["forms"]]
    assert forms == ["timm:NAME", "torchvision:NAME", "hf:NAME", "FILE.py:FUNCTION", "FILE.pt2"]
    text = inside("models").out
    assert all(word in text for word in (*forms, *(each.name for each in NETWORKS)))
    assert "included: 0.01, 0.04, 0.1, 0.25" in text


@pytest.mark.slow
def test_doctor_finds_all_well_here(compress: Call) -> None:
    ended = compress("doctor", "--json")
    assert ended.status == 0, ended.err
    document = ended.json
    assert document["ok"]
    assert document["self_check"]["steps"] <= document["self_check"]["allowed"]
    assert all(p["version"] and p["problem"] is None for p in document["packages"] if p["extra"] is None)
    assert document["machine"]["threads"] >= 1
    assert document["data"]["COMPRESS_DATA_DIR"] is None


def test_doctor_knows_every_package_that_the_project_declares() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    known = {(package.name, package.extra) for package in doctor.PACKAGES}

    def names(requirements: list[str]) -> list[str]:
        return [re.split(r"[<>=!~ \[]", requirement)[0] for requirement in requirements]

    declared = {(name, None) for name in names(project["dependencies"])}
    for extra, requirements in project["optional-dependencies"].items():
        declared |= {(name, extra) for name in names(requirements)}
    anywhere = {package.name for package in doctor.PACKAGES}
    assert {(name, extra) for name, extra in declared - known if extra != "test" or name not in anywhere} == set()
    assert {package for package in known - declared if package[1] is None} == set()


def test_doctor_says_what_a_missing_package_leaves_out_and_what_brings_it(
    inside: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = doctor.Package("no-such-package", "no_such_package", "--model nosuch:NAME", "zoo")
    monkeypatch.setattr(doctor, "PACKAGES", (*doctor.PACKAGES[:2], absent))
    ended = inside("doctor")
    assert ended.status == 0
    assert "leaves out --model nosuch:NAME: pip install no-such-package" in " ".join(ended.out.split())


def test_doctor_fails_where_a_required_package_is_missing_or_broken(
    inside: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    absent = doctor.Package("no-such-package", "no_such_package", "everything")
    (tmp_path / "broken_module.py").write_text("raise OSError('libfoo.so: cannot open')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    broken = doctor.Package("numpy", "broken_module", "everything")
    monkeypatch.setattr(doctor, "PACKAGES", (absent, broken))
    ended = inside("doctor")
    assert ended.status == 4
    assert "no-such-package: missing: pip install no-such-package" in ended.err
    assert "numpy: can't be imported (OSError: libfoo.so: cannot open): pip install numpy" in ended.err


def test_doctor_fails_where_the_runtime_computes_something_else(inside: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.profiling.selfcheck.self_check", lambda: SelfCheck(40.0, 2))
    ended = inside("doctor", "--json")
    assert ended.status == 4
    assert not ended.json["ok"]
    assert ended.err == "error: doctor: self-check: ONNX Runtime and the simulation differ by 40.0 rounding steps\n"


def test_the_self_check_sees_a_wrong_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.profiling import selfcheck

    assert self_check().ok
    right = selfcheck.runner
    monkeypatch.setattr(selfcheck, "runner", lambda session: lambda x: right(session)(x) * 1.1)
    assert not self_check().ok
