"""Two runs side by side: compared only where it makes sense, and what isn't compared is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from compress.report.facts import RunFacts
from compress.report.html import render_two
from compress.report.markdown import runs_markdown
from compress.report.runs import Beside, Side, beside, document
from compress.results import Dataset, Front

Facts = Callable[[Front], RunFacts]


@pytest.fixture
def side(facts: Facts) -> Callable[[str, Front], Side]:
    return lambda name, front: Side(name, front, facts(front))


def row(both: Beside, name: str) -> tuple[str, str, str]:
    found = next(row for row in both.rows if row.name == name)
    return found.first, found.second, found.difference


def test_runs_of_one_network_and_target_are_compared(fronts: dict[str, Front], side) -> None:
    one = fronts["measured"]
    fewer = replace(one, candidates=tuple(c for c in one.candidates if c.id != "c4"))
    assert (one.best().id, fewer.best().id) == ("c4", "c2")
    both = beside(side("a", one), side("b", fewer))
    assert row(both, "best candidate") == ("c4", "c2", "—")
    # By hand: 490 and 492 of 500 right; 104 and 131 microseconds; 128,000 and 221,000 bytes.
    assert row(both, "accuracy")[2] == "+0.4 points"
    assert row(both, "latency, measured") == ("104 µs", "131 µs", "1.3× slower")  # noqa: RUF001
    assert row(both, "file")[2] == "1.7× larger"  # noqa: RUF001
    assert both.merged is not None
    assert len(both.merged.candidates) == 8 + 7
    assert {r.difference for r in both.shared} == {"the same plan"}
    assert [r.name for r in both.settings] == ["candidates"]
    assert any("small differences of measured latencies" in note for note in both.notes)


def test_other_data_is_no_comparison_of_accuracies(fronts: dict[str, Front], side) -> None:
    one = fronts["measured"]
    other = replace(one, dataset=Dataset("mnist", "12" * 32, 500))
    both = beside(side("a", one), side("b", other))
    assert row(both, "accuracy")[2] == "—"
    assert row(both, "latency, measured")[2] == "no faster"
    assert both.merged is None
    assert any("accuracies" in note and "mnist" in note for note in both.notes)


def test_other_targets_are_no_comparison_of_latencies(fronts: dict[str, Front], side) -> None:
    both = beside(side("a", fronts["measured"]), side("b", fronts["predicted"]))
    assert row(both, "latency, predicted")[2] == "—"
    assert row(both, "accuracy")[2] != "—"
    assert any("cpu" in note and "jetson-orin-nano" in note for note in both.notes)
    assert not both.latencies
    page = render_two(both)
    # Latencies in a plot each, files in one plot of both.
    assert [page.count(f"{name}: Accuracy against") for name in ("a", "b", "Both runs")] == [1, 1, 1]


def test_measurements_of_two_machines_are_not_compared(fronts: dict[str, Front], side) -> None:
    one = fronts["measured"]

    def moved(candidate):
        artifact = candidate.best
        measurement = replace(artifact.measurement, device="another machine")
        return replace(candidate, artifacts=(replace(artifact, measurement=measurement),))

    other = replace(one, baseline=moved(one.baseline), candidates=tuple(map(moved, one.candidates)))
    both = beside(side("a", one), side("b", other))
    assert row(both, "latency, measured")[2] == "—"
    assert any("another machine" in note for note in both.notes)


def test_other_networks_share_no_candidates(fronts: dict[str, Front], side) -> None:
    one = fronts["measured"]
    other = replace(one, model="resnet56", baseline=replace(one.baseline, macs=2 * one.baseline.macs))
    both = beside(side("a", one), side("b", other))
    assert both.shared == ()
    assert any("resnet56" in note for note in both.notes)
    kept = one.best().macs / one.baseline.macs
    assert row(both, "of its float network's MACs")[:2] == (f"{100 * kept:.0f}%", f"{50 * kept:.0f}%")


@pytest.mark.parametrize("other", ["measured", "predicted", "psnr", "single", "long", "empty"])
def test_any_two_can_be_set_side_by_side(fronts: dict[str, Front], side, other: str) -> None:
    both = beside(side("a/<b>", fronts["measured"]), side("b|c", fronts[other]))
    page = render_two(both)
    assert "<b>" not in page.split("<title>")[1].split("</title>")[0]
    assert "<script>alert" not in page
    assert "src=" not in page
    assert "href=" not in page
    said = runs_markdown(both)
    assert r"b\|c" in said
    json.dumps(document(both), allow_nan=False)


def test_json_has_both_fronts(fronts: dict[str, Front], side) -> None:
    found = document(beside(side("a", fronts["measured"]), side("b", fronts["predicted"])))
    assert [each["run"] for each in found["runs"]] == ["a", "b"]
    assert found["runs"][1]["front"] == fronts["predicted"].document()
    assert found["not_compared"]
