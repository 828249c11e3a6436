"""The figures of the searches that are set side by side."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from benchmarks import front_search
from compress.results import Accuracy, Artifact, Candidate, Dataset, Front, Measurement
from compress.search import Proposal
from compress.types import Plan


def candidate(name: str, value: float, **milliseconds: float) -> Candidate:
    def artifact(runtime: str, ms: float) -> Artifact:
        accuracy = Accuracy(value if runtime == "onnxruntime" else value - 0.25, 0.0, 100.0, 10_000, runtime)
        timed = Measurement(ms / 1e3, ms / 1e3, 10, "here")
        return Artifact(name, runtime, "", "", 1, accuracy, None, timed, None)

    return Candidate(name, Plan(), tuple(artifact(*each) for each in milliseconds.items()), (), 1, 1, 8.0, 8.0)


def front(*candidates: Candidate) -> Front:
    baseline = candidate("float", 92.0, onnxruntime=4.0)
    return Front("n", "cpu", Dataset("d", "", 10_000), baseline, candidates)


def test_the_hypervolume_is_the_area_of_its_rectangles() -> None:
    points = [(0.5, 92.0), (0.25, 90.0), (0.3, 89.0), (0.1, 80.0), (1.5, 92.5)]
    # The second point dominates ln 4 x 3 points above 87, the first ln 2 x 2 more; the others add nothing.
    assert front_search.hypervolume(points, 92.0) == pytest.approx(math.log(4) * 3 + math.log(2) * 2)
    assert front_search.hypervolume([], 92.0) == 0.0


def test_speedups_are_those_of_the_fastest_within_a_point() -> None:
    found = front_search.row(
        "ours",
        front(
            candidate("macs100-w8", 91.9, onnxruntime=2.0, tvm=1.5),
            candidate("near", 91.5, onnxruntime=1.25, tvm=0.8),
            candidate("far", 90.5, onnxruntime=0.5, tvm=0.4),
        ),
        0.5,
    )
    assert (found["best"], found["onnxruntime_best"]) == ("near", "near")
    assert found["speedup_over_float"] == pytest.approx(4.0 / 0.8)
    assert found["speedup_over_8_bits"] == pytest.approx(2.0 / 0.8)
    assert found["onnxruntime_speedup_over_8_bits"] == pytest.approx(2.0 / 1.25)
    assert found["useful_candidates"] == 3


def test_a_front_with_nothing_near_or_without_a_plain_file_has_no_speedup() -> None:
    found = front_search.row("other", front(candidate("macs50-w8", 80.0, onnxruntime=1.0)), None)
    assert found["best"] is None
    assert found["speedup_over_8_bits"] is None
    assert found["hypervolume_nat_points"] == 0.0
    assert list(found) == list(front_search.row("ours", front(), 0.1))


def test_random_choices_are_distinct_and_the_same_for_the_same_seed() -> None:
    forecasts = tuple(SimpleNamespace(proposal=Proposal(i / 50, None, 8.0, False)) for i in range(1, 51))

    def drawn(seed: int) -> tuple[Proposal, ...]:
        maker = SimpleNamespace(job=SimpleNamespace(seed=seed, candidates=10), forecasts=lambda least: forecasts)
        search = front_search.Drawn(maker, (0.0, 0.0))  # type: ignore[arg-type]
        assert search.propose(((),)) == ()  # type: ignore[arg-type]
        return search.propose(())

    assert len(set(drawn(0))) == 10
    assert drawn(0) == drawn(0) != drawn(1)
