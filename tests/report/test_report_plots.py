"""The plots' geometry, and the static picture."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from compress.report import chart, layers
from compress.report.chart import NARROW, WIDE, Canvas, Label
from compress.report.plot import _PANEL, front_svg
from compress.report.points import front_line, ordered, points
from compress.results import Front, LayerFact


def test_the_baseline_comes_first_and_then_the_fastest(fronts: dict[str, Front]) -> None:
    assert [c.id for c in ordered(fronts["measured"])] == ["float", "c8", "c6", "c5", "c4", "c3", "c2", "c1", "c7"]


def test_points_lie_at_the_latency_that_candidates_are_compared_by(any_front: Front) -> None:
    by_id = {c.id: c for c in (any_front.baseline, *any_front.candidates)}
    for point in points(any_front, "latency"):
        best = by_id[point.id].best
        if point.kind == "measured":
            assert best.measurement is not None
            assert point.x == point.x_low == best.measurement.latency_s
            assert point.x_high == best.measurement.latency_p90_s
        else:
            assert best.estimate is not None
            assert point.x == best.estimate.latency_s
            assert point.x_high - point.x == pytest.approx(best.estimate.error * point.x)
            assert point.measured_x == (best.measurement.latency_s if best.measurement else None)


def test_in_a_mixed_front_a_prediction_never_hides_behind_a_measurement(fronts: dict[str, Front], hostile: str) -> None:
    kinds = {p.id: (p.kind, p.measured_x is not None) for p in points(fronts["long"], "latency")}
    assert kinds[hostile] == ("predicted", False)
    assert set(kinds.values()) == {("predicted", True), ("predicted", False)}


def test_marked_points_are_those_that_no_other_beats(any_front: Front) -> None:
    for metric in ("latency", "size"):
        found = [p for p in points(any_front, metric) if not p.baseline]  # type: ignore[arg-type]  # a literal
        for point in found:
            beaten = any(
                q.x <= point.x
                and q.accuracy.value >= point.accuracy.value
                and (q.x, q.accuracy.value) != (point.x, point.accuracy.value)
                for q in found
            )
            assert point.on_front == (not beaten)


def test_the_line_is_a_staircase_through_the_front(fronts: dict[str, Front]) -> None:
    corners = front_line(points(fronts["measured"], "latency"))
    assert len(corners) == 2 * 5 - 1
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in itertools.pairwise(corners))
    assert corners[0] == (0.051e-3, pytest.approx(88.2))
    assert corners[-1] == (0.131e-3, pytest.approx(98.4))


def box(label: Label) -> tuple[float, float, float, float]:
    width = 7 * len(label.text)
    left = {"start": label.x, "middle": label.x - width / 2, "end": label.x - width}[label.anchor]
    return left, label.y - 10, left + width, label.y + 2


@pytest.mark.parametrize("canvas", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("metric", ["latency", "size"])
def test_labels_overlap_neither_one_another_nor_a_point(any_front: Front, canvas: Canvas, metric: Any) -> None:
    drawn = chart.lay_out(any_front, metric, canvas)
    assert drawn is not None
    boxes = [box(label) for label in drawn.labels]
    assert len(boxes) >= 1
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for left, top, right, bottom in boxes:
        assert left >= 0
        assert right <= canvas.width
        assert top >= 0
        assert bottom <= canvas.height - canvas.bottom
        assert not any(left < m.x < right and top < m.y < bottom for m in drawn.marks)


@pytest.mark.parametrize("metric", ["latency", "size"])
def test_no_line_goes_through_a_name_that_has_another_place(fronts: dict[str, Front], metric: Any) -> None:
    drawn = chart.lay_out(fronts["crowded"], metric, _PANEL)
    assert drawn is not None
    assert {label.text for label in drawn.labels} >= {"macs4-drop1-mixed7_5", "macs5-drop1-w8", "float"}
    pixel = {(mark.point.x, mark.point.y): (mark.x, mark.y) for mark in drawn.marks}
    across, down = ({key[i]: at[i] for key, at in pixel.items()} for i in (0, 1))
    line = [(across[x], down[y]) for x, y in front_line([mark.point for mark in drawn.marks])]
    for left, top, right, bottom in map(box, drawn.labels):
        for (x0, y0), (x1, y1) in itertools.pairwise(line):
            assert max(x0, x1) <= left or min(x0, x1) >= right or max(y0, y1) <= top or min(y0, y1) >= bottom


def test_marks_lie_on_the_canvas_where_the_axes_say(any_front: Front) -> None:
    drawn = chart.lay_out(any_front, "latency", WIDE)
    assert drawn is not None
    for mark in drawn.marks:
        assert WIDE.left <= mark.x_low <= mark.x <= mark.x_high <= WIDE.width - WIDE.right
        assert WIDE.top <= mark.y_high <= mark.y <= mark.y_low <= WIDE.height - WIDE.bottom
        assert (mark.point.kind in mark.classes.split()) is True
    by_x = sorted(drawn.marks, key=lambda m: m.x)
    assert [m.point.x for m in by_x] == sorted(m.point.x for m in drawn.marks)


def test_limits_are_drawn_where_they_were_asked_for(fronts: dict[str, Front]) -> None:
    drawn = chart.lay_out(fronts["psnr"], "latency", WIDE)
    assert drawn is not None
    assert [limit.text for limit in drawn.limits] == ["limit 5.00 ms", "float \N{MINUS SIGN} 1.00 dB"]
    free = chart.lay_out(fronts["measured"], "latency", WIDE)
    assert free is not None
    assert free.limits == ()


def test_a_front_without_latencies_has_no_plot_of_them(fronts: dict[str, Front]) -> None:
    bare = fronts["empty"]
    artifact = replace(bare.baseline.artifacts[0], estimate=None, measurement=None)
    bare = replace(bare, baseline=replace(bare.baseline, artifacts=(artifact,)))
    assert chart.lay_out(bare, "latency", WIDE) is None
    assert chart.lay_out(bare, "size", WIDE) is not None
    assert "Latency (unknown)" in front_svg(bare)


def facts_of(n: int) -> tuple[LayerFact, ...]:
    return tuple(LayerFact(f"layer{i}", "conv2d", 8 + i % 8, 16, 1 + i % 32, 8, 100, 50 + i, 200 + i) for i in range(n))


@pytest.mark.parametrize("n", [1, 3, 20, 48, 49, 110])
def test_the_picture_has_every_layer_once_in_order_and_in_proportion(n: int) -> None:
    facts = facts_of(n)
    picture = layers.picture(facts)
    assert picture is not None
    columns = [column for line in picture.lines for column in line.columns]
    assert [c.fact for c in columns] == list(facts)
    assert all(len(line.columns) <= 48 for line in picture.lines)
    assert len(picture.rows) == n
    most = max(f.macs_before for f in facts)
    for column, row, fact in zip(columns, picture.rows, facts, strict=True):
        assert column.kept_height == pytest.approx(layers.KEPT_HEIGHT * fact.channels / fact.channels_before)
        assert column.macs_after / column.macs_before == pytest.approx(fact.macs / fact.macs_before)
        assert column.macs_before == pytest.approx(layers.MACS_HEIGHT * fact.macs_before / most)
        assert row.kept == pytest.approx(fact.channels / fact.channels_before)
        assert layers.GUTTER <= column.x <= column.x + column.width <= layers.WIDTH
    assert {c.weight_class for c in columns} <= {name for name, _ in picture.legend}


def test_no_layers_no_picture() -> None:
    assert layers.picture(()) is None


@pytest.mark.parametrize(
    ("bits", "name"), [(1, "b1"), (2, "b2"), (3, "b4"), (4, "b4"), (5, "b8"), (8, "b8"), (16, "b16"), (32, "b32")]
)
def test_colours_change_where_number_formats_do(bits: int, name: str) -> None:
    assert layers.bit_class(bits) == name


def test_the_static_picture_is_the_same_for_the_same_front(any_front: Front) -> None:
    import matplotlib as mpl

    svg = front_svg(any_front)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        assert front_svg(any_front) == svg
    assert "<dc:date>" not in svg
    assert "Matplotlib" not in svg


def test_the_static_picture_is_svg_whose_text_is_text(fronts: dict[str, Front], hostile: str) -> None:
    svg = front_svg(fronts["measured"])
    texts = ["".join(node.itertext()).strip() for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    for text in ("Latency (µs)", "Accuracy (top-1, %)", "File size (KiB, logarithmic)", "c4", "float", "dominated"):
        assert text in texts
    assert "predicted, with its error" not in texts
    assert "predicted, with its error" in front_svg(fronts["predicted"])
    assert ET.fromstring(front_svg(fronts["long"])) is not None
    assert "<script" not in front_svg(fronts["long"])


def test_dollars_in_a_name_are_not_a_formula(
    fronts: dict[str, Front], make_candidate: Callable[..., Any], make_top1: Any
) -> None:
    odd = make_candidate("a$^{x$", 0.5, 8, make_top1(490), 90_000, 0.1e-3, 0.1e-3)
    assert "a$^{x$" in front_svg(replace(fronts["measured"], candidates=(odd,)))
