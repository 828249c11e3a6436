"""Explanations on the page, in the terminal, in Markdown and in JSON: the same numbers everywhere."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from compress.explanation import Explanation, LayerTimes, LayerWork, Reason, Remedy
from compress.report import explanation
from compress.report.facts import RunFacts
from compress.report.html import render
from compress.report.markdown import front_markdown
from compress.report.terminal import explanation_blocks
from compress.results import Candidate, Front, candidate_document, candidate_from_document
from compress.types import Precision

W8A8, W4A8 = Precision(8, 8, "integer"), Precision(4, 8, "integer")
Facts = Callable[[Front], RunFacts]


def work(name: str, predicted_s: float, before_s: float | None, measured_s: float | None = None) -> LayerWork:
    return LayerWork(
        name=name,
        operator=f"{name}_op",
        kind="conv2d",
        in_channels=12,
        out_channels=16,
        macs=1_000_000,
        padded_macs=1_500_000,
        bytes=50_000,
        precision=W4A8,
        computed_as=W8A8,
        macs_per_s=1e9,
        wider_macs_per_s=None,
        compute_s=1.5e-3,
        memory_s=0.1e-3,
        launch_s=1e-6,
        predicted_s=predicted_s,
        macs_before=2_000_000 if before_s else None,
        predicted_before_s=before_s,
        measured_s=measured_s,
        measured_before_s=2 * measured_s if measured_s else None,
    )


def explained(hostile: str = "", measured: bool = False) -> Explanation:
    layers = (
        work("conv1", 3e-3, 4e-3, 1e-3 if measured else None),
        work(hostile or "linear", 1e-3, 4e-3, 2e-3 if measured else None),
    )
    times = LayerTimes("a board", "onnxruntime", 200, 1e-3, ("QuantizeLinear", "Transpose")) if measured else None
    return Explanation(
        layers,
        8,
        0.4,
        (Reason("conv1", "misaligned", 0.75, "conv1: filled up"), Reason(layers[1].name, "misaligned", 0.25, "x: y")),
        (Remedy("conv1", "channels", "8 channels in place of 12", 1e-3, 0.25),),
        times,
    )


def with_explanation(front: Front, found: Explanation) -> Front:
    return replace(front, candidates=tuple(replace(c, explanation=found) for c in front.candidates))


def test_front_json_keeps_explanations(fronts: dict[str, Front]) -> None:
    candidate = replace(fronts["measured"].candidates[0], explanation=explained(measured=True))
    assert candidate_from_document(candidate_document(candidate, False)) == candidate
    # A front.json from before there were explanations.
    document = candidate_document(candidate, False)
    del document["explanation"]
    assert candidate_from_document(document).explanation is None


def test_shares_are_of_the_whole_time(fronts: dict[str, Front]) -> None:
    front = with_explanation(fronts["measured"], explained())
    found = explanation.view(front, front.candidates[0])
    assert found is not None
    assert [row.share for row in found.rows] == pytest.approx([75, 25])
    assert [row.share_before for row in found.rows] == pytest.approx([50, 50])
    assert found.rows[0].time == "3.00 ms"
    assert found.rows[0].precision == "W4A8 as W8A8"
    assert (found.rows[0].intensity, found.rows[0].ridge) == ("20", "2")
    assert found.remedies == ("conv1: 8 channels in place of 12: 1.00 ms less, 25% of the time (predicted)",)
    assert [(g.why, g.layers, g.share) for g in found.reasons] == [("misaligned", ("conv1", "linear"), "100%")]
    assert "predicted" in found.known
    assert "40%" in found.known


def test_measured_times_say_so_and_count_what_the_runtime_adds(fronts: dict[str, Front]) -> None:
    front = with_explanation(fronts["measured"], explained(measured=True))
    found = explanation.view(front, front.candidates[0])
    assert found is not None
    assert [row.share for row in found.rows] == pytest.approx([25, 50])
    assert found.rest == "Besides the layers, ONNX Runtime takes 1.00 ms (25%) for QuantizeLinear, Transpose."
    assert "measured" in found.known
    assert "200 runs on a board" in found.known
    layers = (*explained(measured=True).layers, replace(work("sum", 1e-3, 4e-3, 1e-3), measured_s=0.0))
    fused = explanation.view(
        front, replace(front.candidates[0], explanation=replace(explained(measured=True), layers=layers))
    )
    assert fused is not None
    assert fused.rows[2].time == "fused"
    compiled = replace(front.candidates[0], artifacts=(replace(front.candidates[0].best, runtime="tvm"),))
    other = explanation.view(front, compiled)
    assert other is not None
    assert "The file that counts runs by TVM" in other.known


def test_another_runtime_is_named_where_it_was_measured_faster(fronts: dict[str, Front]) -> None:
    front = fronts["measured"]
    slow = front.candidates[0].best
    assert slow.measurement is not None
    fast = replace(slow, runtime="tvm", measurement=replace(slow.measurement, latency_s=slow.measurement.latency_s / 4))
    forced = replace(front.candidates[0], artifacts=(slow, fast), runtime="onnxruntime", explanation=explained())
    first = explanation.remedies(front, forced)[0]
    assert (first.change, first.known, first.saves) == ("runtime", "measured", pytest.approx(0.75))
    assert explanation.remedies(front, replace(forced, runtime=None))[0].change == "channels"


def test_the_page_has_the_explanation_of_every_candidate(fronts: dict[str, Front], facts: Facts, hostile: str) -> None:
    front = with_explanation(fronts["measured"], explained(hostile))
    page = render(front, facts(front))
    assert page.count("Where its time goes") == len(front.candidates)
    assert "8 channels in place of 12" in page
    assert "<script>alert" not in page
    assert "Where its time goes" not in render(fronts["measured"], facts(fronts["measured"]))


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_terminal_cuts_nothing(fronts: dict[str, Front], width: int) -> None:
    front = with_explanation(fronts["measured"], explained())
    candidate = front.candidates[0]
    found = explanation.view(front, candidate)
    assert found is not None
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None)
    for block in explanation_blocks(front, candidate, found, width):
        console.print(block)
    out = stream.getvalue()
    assert max(map(len, out.splitlines())) <= width
    text = " ".join(out.split())
    for word in ("c1", "conv1", "linear", "3.00 ms", "75%", "misaligned", "8 channels in place of 12", "(predicted)"):
        assert word in text
    assert ("MACs/byte" in text) == (width >= 92)


def test_markdown_has_the_best_candidates_explanation(fronts: dict[str, Front]) -> None:
    front = with_explanation(fronts["measured"], explained())
    said = front_markdown(front)
    assert "### Where the time of c4 goes" in said
    assert "| conv1 | 3.00 ms | 75% | 1.00 M | 48.8 KiB | 20 (2) | W4A8 as W8A8 | misaligned |" in said
    assert "- **misaligned**, 100% of the time: conv1: filled up." in said
    assert "Where the time" not in front_markdown(fronts["measured"])


def test_json_has_what_is_derived_too(fronts: dict[str, Front]) -> None:
    front = with_explanation(fronts["measured"], explained())
    document = explanation.document(front, front.candidates[0])
    assert document["known"] == "predicted"
    assert document["total_s"] == pytest.approx(4e-3)
    assert document["error"] == 0.4
    layer = document["layers"][0]
    assert layer["share"] == pytest.approx(0.75)
    assert layer["intensity_macs_per_byte"] == pytest.approx(20)
    assert layer["ridge_macs_per_byte"] == pytest.approx(1e9 * 0.1e-3 / 50_000)
    assert layer["bound"] == "compute-bound"
    assert layer["reasons"] == ["misaligned"]
    assert document["remedies"][0]["known"] == "predicted"
    bare: Candidate = fronts["measured"].candidates[0]
    assert explanation.document(front, bare)["layers"] == []
    assert explanation.view(front, bare) is None


def test_the_picture_gets_a_track_of_times(fronts: dict[str, Front], facts: Facts) -> None:
    front = with_explanation(fronts["measured"], explained())
    page = render(front, facts(front))
    assert page.count('class="time"') >= 2 * len(front.candidates)
    assert 'class="time"' not in render(fronts["measured"], facts(fronts["measured"]))
