"""JSON and back, and the checker that looks at JSON from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from compress.serial import from_json, mismatch, to_json


@dataclass(frozen=True)
class Inner:
    name: str
    share: float


@dataclass(frozen=True)
class Outer:
    count: int
    pair: tuple[int, float]
    all: tuple[Inner, ...]
    names: list[str]
    kind: Literal["a", "b"]
    by_name: Mapping[str, int] = field(default_factory=dict)
    maybe: Inner | None = None


VALUE = Outer(3, (1, 0.5), (Inner("x", 0.25), Inner("y", 1.0)), ["n"], "a", {"k": 2}, Inner("z", 0.0))
GOOD = to_json(VALUE)


def test_what_was_written_comes_back_equal_and_fits():
    assert from_json(Outer, GOOD) == VALUE
    assert mismatch(Outer, GOOD) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": 1.5}, "count must be an integer, not 1.5"),
        ({"count": True}, "count must be an integer, not True"),
        ({"pair": [1]}, "pair must be a list of 2, not [1]"),
        ({"pair": [1, "0.5"]}, "pair[1] must be a number, not '0.5'"),
        ({"pair": {"0": 1}}, "pair must be a list, not {'0': 1}"),
        ({"all": [{"name": "x", "share": 0.5}, {"name": 3, "share": 0.5}]}, "all[1].name must be text, not 3"),
        ({"all": [{"name": "x"}]}, "all[0].share is missing"),
        ({"all": [{"name": "x", "share": float("nan")}]}, "all[0].share must be a number, not nan"),
        ({"names": ["n", None]}, "names[1] must be text, not None"),
        ({"kind": "c"}, "kind must be one of a, b, not 'c'"),
        ({"by_name": {"k": "2"}}, "by_name.k must be an integer, not '2'"),
        ({"maybe": {"name": "z", "share": 0, "more": 1}}, "maybe.more is unknown"),
        ({"more": 1}, "more is unknown"),
    ],
)
def test_the_first_value_that_does_not_fit_is_named_with_its_path(change, says):
    assert mismatch(Outer, {**GOOD, **change}) == says


def test_what_may_be_missing_or_null_fits():
    assert mismatch(Outer, {key: GOOD[key] for key in ("count", "pair", "all", "names", "kind")}) is None
    assert mismatch(Outer, {**GOOD, "maybe": None}) is None
    assert mismatch(Outer, [GOOD]).startswith("the document must be an object")
