"""The default run has every member of every roster, all runs together the whole product."""

from __future__ import annotations

import itertools

import pytest

from tests.rosters import crossed, some


def quick(mark: pytest.MarkDecorator) -> list[tuple]:
    return [param.values for param in mark.args[1] if not param.marks]


@pytest.mark.parametrize("lengths", [(1,), (3, 10), (4, 4), (2, 5, 3), (7, 1)])
def test_the_default_run_has_every_member_and_all_together_the_product(lengths):
    rosters = [[(at, n) for n in range(length)] for at, length in enumerate(lengths)]
    mark = crossed(",".join("abc"[: len(lengths)]), *rosters)
    assert [param.values for param in mark.args[1]] == list(itertools.product(*rosters))
    assert {member for values in quick(mark) for member in values} == {each for roster in rosters for each in roster}
    assert len(quick(mark)) == max(lengths)


def test_some_of_a_roster_and_one_that_it_does_not_have():
    mark = some(("a", "b"), [(1, 2), (3, 4)], [(3, 4)])
    assert quick(mark) == [(3, 4)]
    assert [param.id for param in mark.args[1]] == ["1-2", "3-4"]
    with pytest.raises(AssertionError, match="run nowhere"):
        some("a", [1, 2], [3])
