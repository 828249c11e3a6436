"""The reference network: times taken at several paces are brought to one."""

from __future__ import annotations

import pytest

from compress.calibration import Calibration
from compress.profiling import calibrating, designs, fitting, pace
from compress.profiling.calibrating import Size
from compress.targets import load
from compress.types import FLOAT32, Precision
from tests.profiling.synthetic import PRICES, Synthetic

NUMBERS = (FLOAT32, Precision(8, 8, "integer"))


class Wavering(Synthetic):
    """A device whose every group of networks runs at another pace, the slowest at half of the quickest.

    Args:
        blind: it times no reference network.
    """

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind

    def measure(self, drawn, runtime, tell):
        exact = super().measure([*drawn, calibrating.reference(drawn)], runtime, tell)
        groups = []
        for number, first in enumerate(range(0, len(drawn), calibrating.TOGETHER)):
            slower = 1 + (number * 7 % 11) / 10
            part = drawn[first : first + calibrating.TOGETHER]
            groups.append({each.name: slower * exact[each.name] for each in [*part, calibrating.reference(drawn)]})
        self.warnings += calibrating.said_of(groups)
        if self.blind:
            return {name: seconds for group in groups for name, seconds in group.items() if name != pace.NAME}
        return pace.at_one_pace(groups)


def calibrated(stand: Synthetic) -> Calibration:
    return calibrating.calibrate(load("cpu"), stand, lambda *_: None, Size(39, 21, 10))


def test_times_of_every_group_are_those_at_the_median_pace() -> None:
    groups = [{"a": 4.0, "b": 1.0, pace.NAME: 2.0}, {"c": 3.0, pace.NAME: 3.0}, {"d": 5.0, pace.NAME: 10.0}]
    assert pace.at_one_pace(groups) == {"a": 6.0, "b": 1.5, "c": 3.0, "d": 1.5, pace.NAME: 3.0}
    assert pace.moved(groups) == pytest.approx(4.0)
    assert pace.at_one_pace([]) == {}
    assert pace.moved([]) == 0


@pytest.mark.parametrize("precision", NUMBERS, ids=["float", "integer"])
def test_the_reference_never_changes(precision) -> None:
    """Calibrations of different days are set against it."""
    first, again = pace.network(precision), pace.network(precision)
    assert first.file == again.file
    convolutions = 24**2 * (9 * 3 * 32 + 9 * 32**2 + 32**2) + 12**2 * (32 * 64 + 9 * 64 + 64**2)
    assert sum(each.macs for each in first.operators) == convolutions + 64 * 10
    assert pace.NAME not in {each.name for each in (*designs.chains(precision), *designs.networks(precision, 9, 1))}


@pytest.mark.slow
def test_a_machine_that_wavers_is_fitted_as_one_that_does_not() -> None:
    found, steady = calibrated(Wavering()), calibrated(Synthetic())
    blind = calibrated(Wavering(True))
    for mine, theirs, unaware in zip(found.fits, steady.fits, blind.fits, strict=True):
        assert mine.pace_s is not None
        assert theirs.pace_s is None
        exact = fitting.predicted(calibrating.terms_of(pace.network(NUMBERS[mine.kind == "integer"])), PRICES)
        slower = mine.pace_s / exact
        assert 1.2 < slower < 1.8
        assert {name: price / slower for name, price in mine.prices.items()} == pytest.approx(theirs.prices, rel=1e-3)
        assert mine.error == pytest.approx(theirs.error, abs=1e-3)
        assert unaware.error > 5 * mine.error
    assert found.warnings == ("the machine was up to 100% slower at times; all times are brought to one pace",)
