# ruff: noqa: RUF001  # the multiplication sign is what reports print
"""What was gained, in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from compress.report import gains
from compress.results import Accuracy, Candidate, Dataset, Front
from compress.types import Budget

Make = Callable[..., Any]


def front_of(baseline: Candidate, *candidates: Candidate, budget: Budget | None = None) -> Front:
    return Front("net", "cpu", Dataset("digits", "0" * 64, 500), baseline, candidates, budget or Budget())


@pytest.mark.parametrize(
    ("size", "measured", "correct", "words"),
    [
        (250, 1e-3, 490, "4.0× smaller, 4.0× faster (measured), the same accuracy as the float network"),
        (100, 8e-3, 489, "10× smaller, 2.0× slower (measured), 0.2 points less accurate than the float network"),
        (1000, 4e-3, 491, "no smaller, no faster (measured), 0.2 points more accurate than the float network"),
        (2000, 3.9e-3, 490, "2.0× larger, no faster (measured), the same accuracy as the float network"),
    ],
)
def test_the_headline(
    make_candidate: Make, make_top1: Make, size: int, measured: float, correct: int, words: str
) -> None:
    baseline = make_candidate("float", 1.0, 32, make_top1(490), 1000, 4e-3)
    front = front_of(baseline, make_candidate("a", 0.5, 8, make_top1(correct), size, measured))
    assert gains.headline(front) == words


def test_a_measurement_is_never_set_against_a_prediction(make_candidate: Make, make_top1: Make) -> None:
    measured = make_candidate("m", 1.0, 32, make_top1(490), 1000, 4e-3, None)
    predicted = make_candidate("p", 0.5, 8, make_top1(490), 500, None, 1e-3)
    both = make_candidate("b", 0.5, 8, make_top1(490), 500, 2e-3, 1e-3)
    assert gains.compare(measured, predicted).speed is None
    assert gains.compare(predicted, measured).speed is None
    assert "speed unknown" in gains.parts(front_of(measured, predicted), predicted)
    only_measured, only_predicted = gains.compare(measured, both), gains.compare(both, predicted)
    assert (only_measured.speed, only_measured.kind) == (pytest.approx(2.0), "measured")
    assert (only_predicted.speed, only_predicted.kind) == (pytest.approx(1.0), "predicted")


def test_measurements_from_two_devices_are_not_compared(make_candidate: Make, make_top1: Make) -> None:
    here = make_candidate("a", 1.0, 32, make_top1(490), 1000, 4e-3)
    artifact = here.best
    assert artifact.measurement is not None
    elsewhere = replace(
        here, artifacts=(replace(artifact, measurement=replace(artifact.measurement, device="a board")),)
    )
    assert gains.compare(here, elsewhere).speed is None


def test_decibels_and_simulations_are_named(make_candidate: Make) -> None:
    baseline = make_candidate("float", 1.0, 32, Accuracy(33.0, 32.0, 34.0, 11, "torch", "psnr_db"), 1000, 4e-3)
    small = make_candidate("a", 0.5, 8, Accuracy(32.5, 31.5, 33.5, 11, "torch", "psnr_db"), 500, 2e-3)
    assert gains.headline(front_of(baseline, small)).endswith("0.50 dB lower PSNR than the float network (simulated)")


def test_the_metric_says_what_may_be_lost_where_nobody_does(make_candidate: Make) -> None:
    def of(value: float) -> Accuracy:
        return Accuracy(value, value - 1, value + 1, 11, "onnxruntime", "psnr_db")

    baseline = make_candidate("float", 1.0, 32, of(33.0), 1000, 4e-3)
    near = make_candidate("near", 0.7, 8, of(32.6), 500, 3e-3)
    far = make_candidate("far", 0.5, 8, of(32.3), 400, 2e-3)
    front = front_of(baseline, near, far)
    best = front.best()
    assert best is not None
    assert best.id == "near"  # "far" is faster, and 0.7 dB below
    assert gains.choice(front) == "near is the fastest candidate within 0.5 dB of the float network."
    assert gains.choice(front_of(baseline, far)) == (
        "far is the most accurate candidate; none is within 0.5 dB of the float network."
    )


def test_the_choice_is_explained(fronts: dict[str, Front]) -> None:
    assert gains.choice(fronts["measured"]) == "c4 is the fastest candidate within 1 point of the float network."
    assert gains.choice(fronts["predicted"]) == "c4 is the fastest candidate within 2 points of the float network."
    assert gains.choice(fronts["single"]) == "c1 comes nearest: latency is 31% over the limit."  # 0.262 of 0.2 ms
    assert gains.choice(fronts["psnr"]).startswith("c2 is the fastest candidate that meets the limits, within 1 dB")
    poor = replace(fronts["measured"], candidates=fronts["measured"].candidates[4:6])
    assert gains.choice(poor) == "c5 is the most accurate candidate; none is within 1 point of the float network."


def test_a_drop_beyond_the_limit_is_given_in_points(fronts: dict[str, Front]) -> None:
    front = replace(
        fronts["measured"], candidates=fronts["measured"].candidates[7:], budget=Budget(max_accuracy_drop=1.0)
    )
    # 493 of 500 against 441 of 500 is a drop of 10.4 points.
    assert gains.choice(front) == "c8 comes nearest: 9.4 points more accuracy lost than allowed."


def test_the_shares_of_a_prediction_are_those_of_its_layers(fronts: dict[str, Front]) -> None:
    candidate = fronts["predicted"].candidates[0]
    estimate = candidate.best.estimate
    assert estimate is not None
    launch = sum(layer.latency_s for layer in estimate.per_layer if layer.bound == "launch")
    shares = dict(gains.bound_shares(candidate))
    assert shares["launch"] == pytest.approx(launch / estimate.latency_s)
    assert sum(shares.values()) == pytest.approx(1)


def test_a_smaller_network_that_is_not_faster_says_why(make_candidate: Make, make_top1: Make) -> None:
    baseline = make_candidate("float", 1.0, 32, make_top1(490), 1000, 1e-3, 1e-3)
    slow = make_candidate("slow", 0.5, 8, make_top1(490), 250, 1e-3, 0.9e-3, launch=0.9)
    quick = make_candidate("quick", 0.5, 8, make_top1(490), 250, 0.2e-3, 0.2e-3)
    blind = make_candidate("blind", 0.5, 8, make_top1(490), 250, 1e-3)
    why = gains.why_not_faster(front_of(baseline, slow), slow)
    assert why is not None
    assert "but no faster (measured). Of its predicted time, 90% is the fixed cost of starting each operator" in why
    assert gains.why_not_faster(front_of(baseline, quick), quick) is None
    assert "no prediction by layer" in (gains.why_not_faster(front_of(baseline, blind), blind) or "")
