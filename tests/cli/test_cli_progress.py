"""Progress: bars on a terminal, lines elsewhere; how long the rest will take."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from compress.cli import progress
from compress.cli.progress import Bars, Lines, Pace, candidate_line, clock
from compress.results import Accuracy, Artifact, Candidate
from compress.types import Plan


def candidate(name: str) -> Candidate:
    artifact = Artifact(
        "p", "onnxruntime", "", "", 41_677, Accuracy(97.8, 96, 99, 500, "onnxruntime"), None, None, None
    )
    return Candidate(name, Plan(), (artifact,), (), 2_973_856, 12_000, 8.0, 8.0)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_the_rest_takes_as_long_as_candidates_took_on_average_but_for_the_first(now: list[float]) -> None:
    pace = Pace()
    pace.total = 6
    for seconds in (2.0, 10.0, 14.0):
        assert pace.finish() is False  # not begun: from before
        pace.done -= 1
        pace.start()
        now[0] += seconds
        assert pace.finish() is True
    assert pace.remaining() == pytest.approx(3 * 12.0)
    pace.start()
    now[0] += 5.0
    assert pace.remaining() == pytest.approx(3 * 12.0 - 5.0)
    now[0] += 100.0
    assert pace.remaining() == pytest.approx(2 * 12.0)
    assert pace.elapsed() == pytest.approx(131.0)


def test_nothing_is_estimated_from_the_float_network_alone(now: list[float]) -> None:
    pace = Pace()
    pace.total = 3
    pace.start()
    now[0] += 1
    pace.finish()
    assert pace.remaining() is None


def test_a_candidate_is_one_line_of_id_accuracy_size_and_macs() -> None:
    assert candidate_line(candidate("macs12-w8")) == "macs12-w8           97.8%   40.7 KiB  2.97 M MACs"


def test_runtimes_that_differ_are_all_given_until_one_is_the_fastest() -> None:
    made = candidate("macs12-w8")
    (first,) = made.artifacts
    second = replace(first, runtime="tvm", accuracy=Accuracy(98.2, 97, 99, 500, "tvm"))
    both = replace(made, artifacts=(first, second))
    assert candidate_line(both) == "macs12-w8        97.8% or 98.2%   40.7 KiB  2.97 M MACs"
    assert "98.2% " in candidate_line(replace(both, runtime="tvm"))
    assert "or" not in candidate_line(replace(both, runtime="tvm"))
    assert candidate_line(replace(made, artifacts=(first, replace(first, runtime="tvm")))) == candidate_line(made)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")])
def test_times_are_minutes_and_seconds(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def tell(watcher: Lines) -> None:
    watcher.phase("load")
    watcher.begin(3, 1)
    watcher.finished(candidate("float"))
    watcher.candidate("macs12-w8")
    watcher.message("prune by norm")
    watcher.finished(candidate("macs12-w8"))
    watcher.candidate("macs6-w8")
    watcher.dropped("macs6-w8", "its file takes 9 bytes [more] than :there: are")
    watcher.phase("measure latency")


def test_lines_tell_all_that_matters_in_order() -> None:
    out = io.StringIO()
    tell(Lines(Console(file=out, width=40, markup=False, emoji=False, highlight=False), verbose=False))
    assert out.getvalue().splitlines() == [
        "load",
        "1 of 3 candidates are there from before",
        "float               97.8%   40.7 KiB  2.97 M MACs, from before",
        "macs12-w8           97.8%   40.7 KiB  2.97 M MACs",
        "macs6-w8         dropped: its file takes 9 bytes [more] than :there: are",
        "measure latency",
    ]


def test_verbose_lines_tell_every_step_too() -> None:
    out = io.StringIO()
    tell(Lines(Console(file=out, width=80), verbose=True))
    assert "macs12-w8:\n  prune by norm\n" in out.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_bars_show_the_candidate_its_step_and_the_count_within_the_width(width: int, now: list[float]) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None, markup=False, highlight=False)
    bars = Bars(console, verbose=False)
    bars.begin(4, 0)
    bars.candidate("macs12-w8")
    bars.message("train with quantizers, which is a rather long step to tell of in one line")
    now[0] += 65
    console.print(bars._draw())
    step, status = out.getvalue().splitlines()
    assert max(len(step), len(status)) <= width
    assert "macs12-w8: train" in step
    assert "0 of 4" in status
    assert ("1:05 elapsed" in status) == (width > 40)


def test_bars_leave_the_finished_lines_and_a_visible_cursor() -> None:
    out = io.StringIO()
    with Bars(Console(file=out, width=80, force_terminal=True, color_system=None, markup=False), False) as bars:
        tell(bars)
    text = out.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "macs12-w8           97.8%   40.7 KiB  2.97 M MACs" in text
    assert "dropped: its file takes 9 bytes [more] than :there: are" in text
