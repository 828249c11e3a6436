"""The timer's rules: what is warm, what counts, how wide a median's interval is, what disturbs. No time is compared."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.stats import binom

from compress.profiling import designs, session, timer
from compress.profiling.disturbance import Watch, pinned, slowing
from compress.profiling.timer import Turn
from compress.types import FLOAT32


def test_every_job_gets_its_turns_and_conditions() -> None:
    calls = dict.fromkeys("abc", 0)

    def job(name: str):
        def run() -> None:
            calls[name] += 1

        return run

    found = timer.interleaved({name: job(name) for name in calls}, "here", {"threads": 1}, rounds=4, slice_s=1e-5)
    for name, measurement in found.items():
        assert calls[name] > measurement.runs >= 3 * 2
        assert measurement.device == "here"
        assert measurement.conditions["threads"] == 1
        assert measurement.low_s <= measurement.latency_s <= measurement.high_s
        assert measurement.latency_s <= measurement.latency_p90_s


@pytest.fixture
def first_in_line() -> Iterator[None]:
    """This thread, and those that it starts, get the processor before other programs', where the system allows it."""
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    yield
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.mark.usefixtures("first_in_line")
def test_a_sessions_threads_sleep_when_its_turn_is_over(tmp_path) -> None:
    """Nobody computes any more once a timer has let pass what it does; beside other programs, most of the times."""
    drawn = designs.networks(FLOAT32, 1, 1)[0]
    path = tmp_path / "model.onnx"
    path.write_bytes(drawn.file)
    run, x = session.runner(session.open_session(path)), np.random.default_rng(0).random(drawn.shape, np.float32)
    computed = []
    for _ in range(9):
        for _ in range(3):
            run(x)
        time.sleep(timer.SETTLE_S)
        before = time.process_time()
        time.sleep(0.1)
        computed.append(time.process_time() - before)
    assert statistics.median(computed) < session.SPIN_S


@pytest.mark.parametrize(
    ("medians", "warm"),
    [
        ([1.0, 1.0, 1.0], False),
        ([9.0, 1.0, 1.01, 1.02, 1.03], True),
        ([1.0, 1.01, 1.02, 1.04], False),
        ([4.0, 3.0, 2.0, 1.0], False),
    ],
)
def test_warm_is_when_the_last_batches_agree(medians, warm) -> None:
    assert timer.steady(medians) is warm


def test_disturbed_turns_do_not_count_where_half_were_left_alone() -> None:
    alone, hit = Turn((1.0,), False), Turn((9.0,), True)
    assert timer.counted([alone, hit, alone]) == ([alone, alone], 1)
    assert timer.counted([alone, hit, hit]) == ([alone, hit, hit], 2)
    assert timer.counted([alone, alone]) == ([alone, alone], 0)


def turns(*seconds: float, disturbed: tuple[int, ...] = ()) -> list[Turn]:
    return [Turn((each / 2, each, 2 * each), number in disturbed) for number, each in enumerate(seconds)]


def test_ratios_are_taken_round_by_round() -> None:
    """The machine is three times as slow in some rounds: other ones for the median of one job than of the other."""
    slower = (1.0, 3.0, 1.0, 3.0, 1.0, 3.0)
    found = timer.Timed(
        {
            "job": turns(*(2 * each for each in slower)),
            "once": turns(9.0, *(5 * each for each in slower[1:])),
            "small": turns(*(each / 4 for each in slower)),
            "large": turns(*(4 * each for each in slower)),
        },
        {name: {} for name in ("job", "once", "small", "large")},
    )
    assert found.ratios(["small", "large"]) == pytest.approx({"job": 2.0, "once": 5.0})
    assert found.ratios(["job"]) == pytest.approx({"once": 2.5, "small": 1 / 8, "large": 2.0})
    assert found.pace(["small", "large"]) == pytest.approx(2.0), "between rounds of 1 and rounds of 3"


def test_rounds_in_which_a_reference_was_disturbed_do_not_count_where_half_are_left() -> None:
    job, beside = turns(2.0, 2.0, 2.0, 2.0), turns(1.0, 4.0, 4.0, 1.0, disturbed=(1, 2))
    assert timer.Timed({"job": job, "beside": beside}, {}).ratios(["beside"]) == {"job": 2.0}
    most = turns(1.0, 4.0, 4.0, 4.0, disturbed=(1, 2, 3))
    assert timer.Timed({"job": job, "beside": most}, {}).ratios(["beside"]) == {"job": 0.5}


@pytest.mark.parametrize("n", [6, 8, 12, 20, 41])
def test_a_medians_interval_holds_it_with_19_in_20(n) -> None:
    """Ranks low..high (from 1) hold the median with probability sum of binomial(n, 1/2) from low to high - 1."""
    low, high = timer.median_interval([float(rank) for rank in range(n, 0, -1)])
    held = binom.cdf(high - 1, n, 0.5) - binom.cdf(low - 1, n, 0.5)
    assert held >= 0.95
    narrower = binom.cdf(high - 2, n, 0.5) - binom.cdf(low, n, 0.5)
    assert narrower < 0.95
    assert 1 <= low <= (n + 1) / 2 <= high <= n


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_the_thread_is_on_one_core_meanwhile_and_on_all_again_afterwards() -> None:
    before = os.sched_getaffinity(0)
    with pinned() as core:
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before
    with contextlib.suppress(KeyError), pinned():
        raise KeyError
    assert os.sched_getaffinity(0) == before


def test_a_clock_that_falls_is_told_from_one_disturbed_loop() -> None:
    assert slowing([1.0, 1.0, 1.0, 1.0, 1.2, 1.2]) == pytest.approx(0.2)
    assert slowing([1.0, 1.0, 3.0, 1.0, 1.0, 3.0]) == pytest.approx(0.0)
    assert slowing([2.0]) == 0


def watched(tmp_path, stat: list[str], throttled: list[int]) -> dict:
    """What is said of a system whose files change meanwhile."""
    (tmp_path / "proc").mkdir()
    counter = tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    counter.parent.mkdir(parents=True)

    def now(index: int) -> None:
        (tmp_path / "proc/stat").write_text(stat[index])
        counter.write_text(f"{throttled[index]}\n")

    now(0)
    with Watch(tmp_path) as watch:
        now(1)
    watch.loops = [1.0, 1.0, 1.0]
    return watch.conditions()


def test_other_programs_and_stolen_time_are_said(tmp_path) -> None:
    """Far more busy ticks than this process can have had in the meantime."""
    said = watched(tmp_path, ["cpu  100 0 0 900 0 0 0 0 0 0\n", "cpu  9000 0 0 900 0 0 0 9000 0 0\n"], [3, 3])
    assert set(said) == {"other_programs"}


def test_the_processors_own_count_of_throttling_is_said(tmp_path) -> None:
    same = "cpu  100 0 0 900 0 0 0 0 0 0\n"
    assert watched(tmp_path, [same, same], [3, 5])["throttled"] == "2 times, as the processor counted"


def test_nothing_is_said_of_a_quiet_system(tmp_path) -> None:
    same = "cpu  100 0 0 900 0 0 0 0 0 0\n"
    assert watched(tmp_path, [same, same], [3, 3]) == {}


def test_a_system_without_these_files_says_nothing(tmp_path) -> None:
    with Watch(tmp_path) as watch:
        pass
    watch.loops = [1.0]
    assert watch.conditions() == {}
