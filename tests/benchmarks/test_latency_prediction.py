"""The table of predicted against measured latencies: what is counted in it, from rows whose figures are known."""

from __future__ import annotations

import numpy as np

from benchmarks import latency_prediction


def row(runtime: str, numbers: str, error: float, counted: int | None = None) -> dict[str, object]:
    return {
        "network": "n",
        "runtime": runtime,
        "numbers": numbers,
        "predicted_instructions": counted,
        "counted_instructions": counted,
        "predicted_ms": None if counted else 1.0,
        "measured_ms": None if counted else 3.0,
        "at_pace_ms": None if counted else 1.0,
        "slower_ratio": None if counted else 3.0,
        "uncorrected_error_percent": error if counted else 2 * error,
        "error_percent": error,
        "interval_percent": 12.0,
        "within_interval": error <= 12.0,
    }


def test_each_runtime_has_a_line_with_its_own_errors() -> None:
    errors = [1.0, 2.0, 4.0, 8.0, 16.0]
    rows = [row("onnxruntime", "float", each) for each in errors] + [row("cortex-m4", "integer", 3.0, 1000)]
    text = latency_prediction.section({"rows": rows})
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    raw90 = f"{np.percentile([2 * each for each in errors], 90):.1f}"
    p90 = f"{np.percentile(errors, 90):.1f}"
    assert [cell.strip("| ") for cell in lines[2]] == [
        "onnxruntime", "float", "latency", "5", "4.0", p90, "16.0", "8.0", raw90, "12.0", "4"
    ]  # fmt: skip
    assert [cell.strip("| ") for cell in lines[3]][:4] == ["cortex-m4", "integer", "instructions", "1"]
    assert "latency, onnxruntime float: median below 10%, 90th percentile 20%: kept" in text
    assert "instructions, cortex-m4 integer: every error below 5%: kept" in text
    assert "can't tell" not in text
    assert "took from 3.00 to 3.00 times as long" in text


def test_a_figure_that_falls_short_and_a_machine_that_may_have_changed_are_said() -> None:
    rows = [row("tvm", "integer", each) for each in (1.0, 11.0, 12.0, 13.0)]
    late = [{**each, "at_pace_ms": 1.5} for each in rows]
    text = latency_prediction.section({"rows": [*rows, *late, row("cortex-m7", "integer", 5.0, 1000)]})
    assert "latency, tvm integer: median below 10%, 90th percentile 20%: missed" in text
    assert "instructions, cortex-m7 integer: every error below 5%: missed" in text
    assert "was 1.00 (median) in the first half of the run and 1.50 in the second" in text


def test_a_run_without_a_network_of_fixed_work_beside_it_says_so() -> None:
    rows = [row("tvm", "integer", 4.0)]
    for key in ("slower_ratio", "at_pace_ms", "uncorrected_error_percent"):
        del rows[0][key]
    text = latency_prediction.section({"rows": rows})
    assert "this run had no fixed work beside it" in text
    assert "| tvm | integer | latency | 1 | 4.0 | 4.0 | 4.0 | — | — | 12.0 | 1 |" in text


def test_networks_that_are_predicted_differ_from_one_another() -> None:
    """Bases in turn at ever smaller shares, then other seeds: no two of 40 are the same."""
    count, bases, shares = latency_prediction.NETWORKS, latency_prediction.BASES, latency_prediction.SHARES
    named = {(bases[n % len(bases)], shares[(n // len(bases)) % len(shares)]) for n in range(count)}
    assert len(named) == count == 40
