"""The report of a search: each candidate's expected accuracy beside the measured one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from compress.report import searching
from compress.report.facts import RunFacts
from compress.report.html import render
from compress.results import Front

Facts = Callable[[Front], RunFacts]


def test_what_was_expected_stands_beside_what_was_found(fronts: dict[str, Front], facts: Facts) -> None:
    front = fronts["measured"]
    found = searching.section(front, facts(front).search)
    assert [row.id for row in found["search_rows"]] == [c.id for c in front.candidates if c.accuracy is not None]
    first, of = found["search_rows"][0], front.candidates[0].accuracy
    assert of is not None
    assert (first.round, first.expected, first.deviation) == (1, f"{of.value + 0.5:.1f}%", "± 0.8")
    assert (first.found, first.off) == (f"{of.value:.1f}%", "-0.5")


def test_the_rank_correlation_is_said_where_it_is_known(fronts: dict[str, Front], facts: Facts) -> None:
    front = fronts["measured"]
    account = facts(front).search
    assert account is not None
    assert "0.88 over all" in searching.sentence(account)
    assert "unknown, of fewer than three over the" in searching.sentence(account)
    known = replace(account, informed_rank_correlation=-0.5)
    assert "-0.50 over the" in searching.sentence(known)


@pytest.mark.parametrize("name", ["measured", "psnr", "long"])
def test_the_page_shows_it_only_where_there_was_a_search(fronts: dict[str, Front], facts: Facts, name: str) -> None:
    front = fronts[name]
    page = render(front, facts(front))
    assert 'id="search"' in page
    assert searching.section(front, facts(front).search)["search_rows"][0].expected in page
    assert 'id="search"' not in render(front, replace(facts(front), search=None))


def test_candidates_that_are_not_in_the_front_are_left_out(fronts: dict[str, Front], facts: Facts) -> None:
    front = fronts["measured"]
    fewer = replace(front, candidates=front.candidates[1:])
    rows = searching.section(fewer, facts(front).search)["search_rows"]
    assert front.candidates[0].id not in {row.id for row in rows}
