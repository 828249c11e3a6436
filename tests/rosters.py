"""Laws over rosters: the default run takes every member of every roster once; the rest of the product is slow."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from typing import Any

import pytest


def crossed(names: str | tuple[str, ...], *rosters: Iterable[Any]) -> pytest.MarkDecorator:
    """Every combination of the rosters' members, of which those off the diagonal are slow tests.

    The diagonal takes the n-th member of each roster, a shorter roster from its start again, so that the default run
    has every member at least once, and as few combinations as that takes.
    """
    members = [tuple(roster) for roster in rosters]
    diagonal = {tuple(n % len(each) for each in members) for n in range(max(map(len, members)))}
    return pytest.mark.parametrize(
        names,
        [
            _param([each[i] for each, i in zip(members, at, strict=True)], at in diagonal)
            for at in itertools.product(*(range(len(each)) for each in members))
        ],
    )


def some(names: str | tuple[str, ...], roster: Iterable[Any], quick: Collection[Any]) -> pytest.MarkDecorator:
    """Every member of a roster, of which those not in ``quick`` are slow tests."""
    members = list(roster)
    assert all(each in members for each in quick), "a quick member that the roster doesn't have would be run nowhere"
    single = isinstance(names, str) and "," not in names
    return pytest.mark.parametrize(names, [_param([each] if single else list(each), each in quick) for each in members])


def _param(values: list[Any], quick: bool) -> Any:
    return pytest.param(
        *values,
        marks=() if quick else pytest.mark.slow,
        id="-".join(str(getattr(value, "__name__", value)) for value in values),
    )
