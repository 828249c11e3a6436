"""The surrogate: it rises with damage, learns its formula from what that made, and passes near what was found."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from compress.surrogate import PRIOR_MEANS, TUNED, UNTUNED, Surrogate, rank_correlation

Damage = tuple[float, float, float]
GRID: list[Damage] = [
    (p, q, r) for p in (0.0, 0.001, 0.01, 0.1, 0.4, 1.0) for q in (0.0, 0.001, 0.02, 0.3) for r in (0.0, 0.2, 1.0)
]


def drop(damage: Damage, a: float, b: float, c: float, d: float, e: float, f: float, most: float = 90.0) -> float:
    return most * (1 - math.exp(-(a * damage[0] ** c + b * damage[1] ** d + e * damage[2] ** f)))


def fitted(damages: list[Damage], drops: list[float], **more: object) -> Surrogate:
    options = {"scale": (1.0, 1.0), "most": 90.0, "tuned": False} | more
    return Surrogate.fit(damages, drops, [0.05] * len(drops), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("tuned", "usual"), [(True, TUNED), (False, UNTUNED)])
def test_without_candidates_it_is_the_usual_formula(tuned: bool, usual: float) -> None:
    surrogate = fitted([], [], tuned=tuned)
    usually = usual, *np.exp(PRIOR_MEANS[1:])
    values, deviations = surrogate.expected(GRID)
    assert values == pytest.approx([drop((max(p, 1e-9), max(q, 1e-9), max(r, 1e-9)), *usually) for p, q, r in GRID])
    assert (deviations > 0).all()


@pytest.mark.parametrize(
    "truth",
    [(2.0, 1.0, 0.8, 0.9, 0.05, 1.2), (20.0, 4.0, 0.6, 0.7, 0.3, 1.0), (0.3, 0.5, 1.2, 0.6, 0.02, 1.4)],
)
def test_it_learns_what_the_formula_made(truth: tuple[float, float, float, float, float, float]) -> None:
    seen = [(0.0, 0.0001), (0.003, 0.0001), (0.05, 0.0001), (0.2, 0.0001), (0.0, 0.05), (0.0, 0.4), (0.05, 0.1)]
    seen = [(*each, 0.0) for each in seen] + [(0.0, 0.0001, 0.3), (0.0, 0.0001, 0.8)]
    surrogate = fitted(seen, [drop(each, *truth) for each in seen])
    unseen = [(0.01, 0.0001, 0.0), (0.1, 0.0001, 0.0), (0.0, 0.2, 0.0), (0.02, 0.02, 0.0), (0.0, 0.0001, 0.5)]
    values, _ = surrogate.expected(unseen)
    for value, each in zip(values, unseen, strict=True):
        wanted = drop(each, *truth)
        assert value == pytest.approx(wanted, abs=0.3 + 0.25 * wanted)


def test_more_damage_never_costs_less_by_the_formula() -> None:
    surrogate = fitted([(0.01, 0.0, 0.0), (0.1, 0.0, 0.0), (0.0, 0.0, 0.5)], [0.5, 4.0, 0.6])
    only_formula = replace(surrogate, process=None)
    for damage, other in itertools.product(GRID, GRID):
        if all(more >= less for less, more in zip(damage, other, strict=True)):
            less, more = only_formula.expected([damage, other])[0]
            assert less <= more + 1e-12


def test_beside_a_candidate_it_expects_what_that_one_lost_and_is_sure_of_it() -> None:
    # Nothing that the formula could follow: much is lost in the middle of the range alone.
    pruned = [(0.01, 0.001), (0.1, 0.001), (1.0, 0.001), (0.01, 0.2)]
    seen, lost = [(p, q, 0.0) for p, q in pruned], [0.2, 30.0, 31.0, 0.4]
    surrogate = fitted(seen, lost)
    values, at = surrogate.expected(seen)
    assert values == pytest.approx(lost, abs=0.5)
    _, (between,) = surrogate.expected([(0.3, 0.02, 0.0)])
    assert at.max() < between


def test_damage_counts_as_a_share_of_the_largest() -> None:
    seen, unseen = [(0.1, 0.0, 0.0), (0.0, 0.0, 0.4)], [(0.4, 0.0, 0.0), (0.0, 0.0, 0.8)]

    def scaled(damages: list[Damage]) -> list[Damage]:
        return [(100 * p, q, 7 * r) for p, q, r in damages]

    one = fitted(seen, [3.0, 0.5], scale=(1.0, 1.0)).expected(unseen)
    other = fitted(scaled(seen), [3.0, 0.5], scale=(100.0, 7.0)).expected(scaled(unseen))
    assert one[0] == pytest.approx(other[0])


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [40, 30, 20, 10]) == pytest.approx(-1.0)
    # Spearman's formula without ties: 1 - 6 sum d^2 / (n (n^2 - 1)), d = (1, -1, 0).
    assert rank_correlation([1, 2, 3], [2, 1, 3]) == pytest.approx(1 - 6 * 2 / (3 * 8))
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
