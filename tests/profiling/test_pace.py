"""The reference network: times taken at several paces are brought to one."""

from __future__ import annotations

from statistics import geometric_mean

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
        blind: it times no reference networks.
    """

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind

    def measure(self, drawn, runtime, tell):
        references = calibrating.references(drawn)
        exact = super().measure([*drawn, *references], runtime, tell)
        exact[pace.NAME] = geometric_mean([exact[each.name] for each in references])
        groups = []
        for number, first in enumerate(range(0, len(drawn), calibrating.TOGETHER)):
            slower = 1 + (number * 7 % 11) / 10
            part = [each.name for each in drawn[first : first + calibrating.TOGETHER]]
            groups.append({name: slower * exact[name] for name in [*part, pace.NAME]})
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
    first, again = pace.networks(precision), pace.networks(precision)
    assert [each.file for each in first] == [each.file for each in again]
    residual = 32**2 * 9 * (3 * 16 + 2 * 16 * 16 + 2 * 16 * 13) + 16**2 * (9 * (16 * 27 + 27 * 32) + 16 * 32) + 32 * 10
    blocks = 2 * 16 * 64 * 24**2 + 9 * 64 * 24**2, 16 * 64 * 24**2 + (9 * 64 + 64 * 24) * 12**2
    last = (24 * 96 + 9 * 96 + 96 * 22) * 12**2 + 22 * 96 * 12**2 + 96 * 10
    separable = 9 * 3 * 16 * 24**2 + sum(blocks) + last
    plain = 28**2 * 25 * 10 + 14**2 * 9 * 10 * 36 + 7**2 * 9 * 36 * 24 + 7**2 * 24 * 64 + 64 * 10
    assert [sum(each.macs for each in one.operators) for one in first] == [residual, separable, plain]
    drawn = {each.name for each in (*designs.chains(precision), *designs.networks(precision, 9, 1))}
    assert not drawn & {pace.NAME, *(each.name for each in first)}


@pytest.mark.slow
def test_a_machine_that_wavers_is_fitted_as_one_that_does_not() -> None:
    found, steady = calibrated(Wavering()), calibrated(Synthetic())
    blind = calibrated(Wavering(True))
    for mine, theirs, unaware in zip(found.fits, steady.fits, blind.fits, strict=True):
        assert mine.pace_s is not None
        assert theirs.pace_s is None
        references = pace.networks(NUMBERS[mine.kind == "integer"])
        exact = geometric_mean([fitting.predicted(calibrating.terms_of(each), PRICES) for each in references])
        slower = mine.pace_s / exact
        assert 1.2 < slower < 1.8
        assert {name: price / slower for name, price in mine.prices.items()} == pytest.approx(theirs.prices, rel=1e-3)
        assert mine.error == pytest.approx(theirs.error, abs=1e-3)
        assert unaware.error > 5 * mine.error
    assert found.warnings == ("the machine was up to 100% slower at times; all times are brought to one pace",)
