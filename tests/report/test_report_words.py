# ruff: noqa: RUF001  # multiplication signs and dashes are what reports print
"""Numbers in words."""

from __future__ import annotations

import math

import pytest

from compress.report import words
from compress.report.axes import linear_axis, positive_axis, tick_labels
from compress.results import Accuracy
from compress.types import Budget


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "—"), (0.0, "0 s"), (4.12e-5, "41.2 µs"), (4.123e-3, "4.12 ms"), (1.234, "1.2 s"), (119.5, "119.5 s"),
     (133.4, "2 min 13 s"), (179.7, "3 min 00 s"), (math.inf, "—")],
)  # fmt: skip
def test_seconds(value: float | None, text: str) -> None:
    assert words.seconds(value) == text


def test_a_column_of_latencies_has_one_unit_in_which_the_largest_is_at_least_one() -> None:
    unit = words.latency_unit([0.41e-3, 9.812e-3, None, math.inf])
    assert [unit.text(v) for v in (0.41e-3, 9.812e-3, None)] == ["0.410 ms", "9.812 ms", "—"]
    assert words.latency_unit([38e-6, 260e-6]).text(38e-6) == "38.0 µs"
    assert words.latency_unit([]).text(None) == "—"


def test_a_column_of_sizes_has_one_unit_in_which_the_smallest_is_at_least_one() -> None:
    unit = words.byte_unit([40 * 1024, 3 * 1024**2, None])
    assert [unit.text(v) for v in (40 * 1024, 3 * 1024**2, None)] == ["40.0 KiB", "3,072.0 KiB", "—"]
    assert words.size(1023) == "1,023 B"
    assert words.size(2**20) == "1.0 MiB"


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999"), (27_250, "27.2 k"), (40_813_184, "40.8 M"), (1.024e9, "1.02 G")]
)
def test_counts_keep_three_digits(value: int, text: str) -> None:
    assert words.count(value) == text


def test_an_accuracy_shows_as_many_decimals_as_its_count_bears() -> None:
    assert words.accuracy_text(Accuracy.from_counts(489, 500, "tvm")) == "97.8%"
    assert words.accuracy_text(Accuracy.from_counts(9173, 10_000, "tvm")) == "91.73%"
    assert words.accuracy_text(Accuracy(31.424, 31, 32, 11, "tvm", "psnr_db")) == "31.42 dB"
    assert words.accuracy_text(None) == words.interval_text(None) == "—"


def test_the_budget_lists_what_was_asked_for() -> None:
    assert words.budget_text(Budget()) == ()
    asked = Budget(latency_s=5e-3, flash_bytes=512 * 1024, macs=0.5, weight_bits=4.0, max_accuracy_drop=1.0)
    assert words.budget_text(asked) == (
        "latency ≤ 5.00 ms",
        "file ≤ 512 KiB",
        "MACs kept ≤ 50.0%",
        "average weight bits ≤ 4",
        "accuracy drop ≤ 1 point",
    )


def test_a_shortened_name_keeps_both_ends() -> None:
    assert words.shorten("layers.0.1.conv2", 16) == "layers.0.1.conv2"
    assert words.shorten("backbone.layers.0.1.conv2", 13) == "back….1.conv2"
    assert all(len(words.shorten("x" * 50, most)) == most for most in range(3, 40))


def test_every_sign_of_the_reports_has_an_ascii_form() -> None:
    text = "★ ● 3.1× ± — – → ≤ µs · …"
    assert words.to_ascii(text).isascii()
    assert "?" not in words.to_ascii(text)


@pytest.mark.parametrize(
    "values", [[1.0], [3.0, 3.0], [0.05, 0.26], [0.1, 0.2, 9.0], [1e-4, 1e4], [5.0, 29.9], [0.001, 0.0011]]
)
def test_an_axis_holds_its_values_and_a_few_ticks_that_can_be_told_apart(values: list[float]) -> None:
    axis = positive_axis(values)
    assert axis.low < min(values) or axis.low == 0
    assert max(values) < axis.high
    assert axis.log == (max(values) / min(values) > 6)
    assert 1 <= len(axis.ticks) <= 8
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert [axis.at(v) for v in sorted(values)] == sorted(axis.at(v) for v in values)
    assert (axis.at(axis.low), axis.at(axis.high)) == (pytest.approx(0), pytest.approx(1))
    labels = tick_labels(axis.ticks)
    assert len(set(labels)) == len(labels)


def test_an_axis_of_percents_ends_at_100() -> None:
    assert linear_axis([96.0, 100.0], 0.0, 100.0).high == 100
    assert linear_axis([0.0, 3.0], 0.0, 100.0).low == 0
    assert linear_axis([100.0, 100.0], 0.0, 100.0).low < 100
