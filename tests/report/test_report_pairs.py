"""Plots of any two figures: what is known of each, which points no other beats, what the line joins."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from compress.report import chart
from compress.report.chart import WIDE
from compress.report.facts import RunFacts
from compress.report.html import render
from compress.report.points import ENERGY, METRICS, Metric, figure, front_line, interval, ordered, points, unit
from compress.results import Candidate, Estimate, Front, Measurement

PAIRS = [(up, metric) for up, metric in itertools.combinations(METRICS, 2)]


def with_energy(front: Front) -> Front:
    """The candidates' devices also tell the joules of one input: those of the baseline are unknown."""

    def told(number: int, candidate):
        artifact = candidate.best
        assert artifact.measurement is not None
        conditions = {**artifact.measurement.conditions, ENERGY: 1e-3 * (number + 1)}
        measurement = replace(artifact.measurement, conditions=conditions)
        return replace(candidate, artifacts=(replace(artifact, measurement=measurement),))

    return replace(front, candidates=tuple(told(i, c) for i, c in enumerate(front.candidates)))


@pytest.mark.parametrize(("up", "metric"), PAIRS)
def test_marked_points_are_those_that_no_other_beats(fronts: dict[str, Front], up: Metric, metric: Metric) -> None:
    found = [p for p in points(with_energy(fronts["measured"]), metric, up) if not p.baseline]
    assert len(found) == 8
    higher = -1 if up == "accuracy" else 1
    for point in found:
        beaten = any(
            q.x <= point.x and higher * q.y <= higher * point.y and (q.x, q.y) != (point.x, point.y) for q in found
        )
        assert point.on_front == (not beaten)
    corners = front_line(found)
    assert len(corners) == 2 * sum(p.on_front for p in found) - 1
    assert [x for x, _ in corners] == sorted(x for x, _ in corners)
    assert [higher * y for _, y in corners] == sorted((higher * y for _, y in corners), reverse=True)


@pytest.mark.parametrize(("up", "metric"), PAIRS)
def test_marks_lie_where_the_axes_say(fronts: dict[str, Front], up: Metric, metric: Metric) -> None:
    drawn = chart.lay_out(with_energy(fronts["measured"]), metric, WIDE, up)
    assert drawn is not None
    for one, other in itertools.combinations(drawn.marks, 2):
        assert (one.x < other.x) == (one.point.x < other.point.x)
        assert (one.y > other.y) == (one.point.y < other.point.y)
    for mark in drawn.marks:
        assert WIDE.left <= mark.x_low <= mark.x <= mark.x_high <= WIDE.width - WIDE.right
        assert WIDE.top <= mark.y_high <= mark.y <= mark.y_low <= WIDE.height - WIDE.bottom


def test_energy_has_an_axis_only_where_a_device_told_it(fronts: dict[str, Front]) -> None:
    front = fronts["measured"]
    assert chart.lay_out(front, "energy", WIDE) is None
    drawn = chart.lay_out(with_energy(front), "energy", WIDE)
    assert drawn is not None
    assert drawn.x_title == "Energy (mJ, logarithmic)"
    assert {mark.point.id for mark in drawn.marks} == {c.id for c in front.candidates}
    assert "3.00 mJ measured" in next(m.text for m in drawn.marks if m.point.id == "c3")


def test_ram_of_a_runtime_is_predicted_and_that_of_a_compiled_library_planned(fronts: dict[str, Front]) -> None:
    front = fronts["measured"]
    compiled = replace(front.candidates[0], artifacts=(replace(front.candidates[0].best, runtime="tvm"),))
    front = front.with_candidate(compiled)
    kinds = {p.id: p.kind for p in points(front, "ram")}
    assert kinds.pop("c1") == "measured"
    assert set(kinds.values()) == {"predicted"}


def test_a_prediction_on_either_axis_is_drawn_apart(fronts: dict[str, Front]) -> None:
    for point in points(fronts["predicted"], "macs", "latency"):
        assert point.kind == "predicted"
        assert point.y_high - point.y == pytest.approx(0.5 * point.y)
        assert point.x_low == point.x == point.x_high
    assert {p.kind for p in points(fronts["predicted"], "macs")} == {"measured"}


def test_intervals_of_latencies() -> None:
    assert interval(Estimate(2e-3, 0, 0, (), 0.25)) == pytest.approx((1.5e-3, 2.5e-3))
    assert interval(Measurement(2e-3, 3e-3, 10, "here")) == (2e-3, 3e-3)
    assert interval(Measurement(2e-3, 3e-3, 10, "here", {}, 1.9e-3, 2.2e-3)) == (1.9e-3, 2.2e-3)
    assert interval(Estimate(2e-3, 0, 0, (), 1.5))[0] == 0.0


def test_units_fit_every_candidate(fronts: dict[str, Front]) -> None:
    front = with_energy(fronts["measured"])
    for metric in METRICS:
        by = unit(front, metric)
        for candidate in ordered(front):
            known = figure(front, candidate, metric)
            if known is not None:
                assert 1e-3 < known[0] / by.size < 1e5
    assert unit(front, "macs").symbol == "M"
    assert unit(front, "ram").symbol == "KiB"


def test_limits_stand_in_every_plot_that_has_their_axis(fronts: dict[str, Front]) -> None:
    front = fronts["psnr"]
    front = replace(front, budget=replace(front.budget, ram_bytes=front.baseline.best.ram_bytes, macs=0.5))
    drawn = chart.lay_out(front, "macs", WIDE, "ram")
    assert drawn is not None
    ram, macs = unit(front, "ram"), unit(front, "macs")
    assert {limit.text for limit in drawn.limits} == {
        f"limit {ram.text(front.baseline.best.ram_bytes)}",
        f"limit {macs.text(0.5 * front.baseline.macs)}",
    }


def test_the_legend_says_what_bars_of_latencies_are(
    fronts: dict[str, Front], facts: Callable[[Front], RunFacts]
) -> None:
    def with_interval(candidate: Candidate) -> Candidate:
        known = candidate.best.measurement
        assert known is not None
        measurement = replace(known, low_s=0.98 * known.latency_s, high_s=1.03 * known.latency_s)
        return replace(candidate, artifacts=(replace(candidate.best, measurement=measurement),))

    def legend(front: Front) -> str:
        return render(front, facts(front)).split('class="legend"')[1].split("</ul>")[0]

    without = fronts["measured"]
    everyone = replace(
        without,
        baseline=with_interval(without.baseline),
        candidates=tuple(with_interval(each) for each in without.candidates),
    )
    assert "median to 90th percentile" in legend(without)
    assert "95% interval of the median<" in legend(everyone)
    assert "95% interval of the median, or up to p90" in legend(replace(everyone, baseline=without.baseline))
