"""The integer programme behind an allocation: one cell a class, one item a layer, solved by HiGHS, checked exactly.

A **class** is a set of tensors of equal width with the layers that read them (or one layer that reads none). It
takes one **cell**, a width; each of its layers takes one **item** of that cell, an option of that width. Every
quantity is linear in these choices and is held in integers, over a common denominator where it was given in
floating point (which is exact: doubles are dyadic fractions).

HiGHS computes in floating point with absolute tolerances of 1e-6. What guards the result against them:

- The least of every quantity in every class is subtracted from it beforehand, so that large constants cancel.
- A row's cap stands half a unit above the last integer allowed.
- What HiGHS returns is summed in integers. Should it be above a cap after all, it is cut off and the programme
  solved again.
- The objective is scaled by the best allocation known so far (its excess over the unlimited optimum becomes
  1e6), and items that no better allocation can hold are left out; this repeats while the excess falls tenfold.
  The absolute gap is then 1e-12 of the excess, whatever the span of the perturbations.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

EXCESS = 10**6
"""What the excess of the best allocation known is scaled to."""

LARGEST = 10**5
"""Rows with larger coefficients are scaled down to it, so that HiGHS sees no more than eleven digits."""

FALLS = 10
"""The objective is scaled again where a solution's excess is this many times smaller than the one it was scaled by."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Which choices exclude each other: the class of each cell, the (layer, cell) of each item."""

    cells: tuple[int, ...]
    items: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Linear:
    """``(constant + sum of the chosen cells' and items' numbers) / unit``, all integers."""

    cells: tuple[int, ...]
    items: tuple[int, ...]
    constant: int = 0
    unit: int = 1

    def total(self, chosen: Selection) -> int:
        """The numerator for a selection."""
        return self.constant + sum(self.cells[i] for i in chosen.cells) + sum(self.items[i] for i in chosen.items)

    def value(self, total: int) -> float:
        """The quantity for a numerator: an integer where ``unit`` is 1, else the nearest double."""
        return total if self.unit == 1 else total / self.unit

    def cap(self, limit: float) -> int:
        """The largest numerator whose value isn't above ``limit``: a double stands for all that rounds to it."""
        if self.unit == 1:
            return int(limit // 1)
        # Above the double's own fraction by up to half a place, as a limit of 2.3 means 23/10.
        top = int((Fraction(limit) + Fraction(float(np.nextafter(limit, np.inf)))) / 2 * self.unit)
        return top if top / self.unit <= limit else top - 1


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen cell of each class and the chosen item of each layer, each ascending."""

    cells: tuple[int, ...]
    items: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reduced:
    """A quantity less its least in each layer and cell, and less the least of each class: none is below 0.

    Attributes:
        cells, items: what is left of each.
        least: the sum of what was subtracted: the least possible numerator.
        chosen: a selection that takes it, the first cells and items where several do.
    """

    cells: tuple[int, ...]
    items: tuple[int, ...]
    least: int
    chosen: Selection


@dataclass(frozen=True, slots=True)
class Program:
    """Minimize ``objective`` over the selections whose ``rows`` are within their caps."""

    shape: Shape
    objective: Linear
    rows: tuple[tuple[Linear, int], ...]

    def holds(self, chosen: Selection) -> bool:
        """Whether every row is within its cap, in integers."""
        return all(row.total(chosen) <= cap for row, cap in self.rows)


def linear(cells: Sequence[int | Fraction], items: Sequence[int | Fraction], constant: int | Fraction = 0) -> Linear:
    """The linear quantity of fractions, over their common denominator."""
    exact = [Fraction(number) for number in (*cells, *items, constant)]
    unit = math.lcm(*(fraction.denominator for fraction in exact))
    whole = [int(fraction * unit) for fraction in exact]
    return Linear(tuple(whole[: len(cells)]), tuple(whole[len(cells) : -1]), whole[-1], unit)


def reduced(shape: Shape, quantity: Linear) -> Reduced:
    """The quantity without what every selection takes of it."""
    best: dict[tuple[int, int], int] = {}
    for i, place in enumerate(shape.items):
        if place not in best or quantity.items[i] < quantity.items[best[place]]:
            best[place] = i
    cells = list(quantity.cells)
    for (_, cell), i in best.items():
        cells[cell] += quantity.items[i]
    first: dict[int, int] = {}
    for cell, group in enumerate(shape.cells):
        if group not in first or cells[cell] < cells[first[group]]:
            first[group] = cell
    chosen = set(first.values())
    return Reduced(
        tuple(number - cells[first[group]] for number, group in zip(cells, shape.cells, strict=True)),
        tuple(quantity.items[i] - quantity.items[best[place]] for i, place in enumerate(shape.items)),
        quantity.constant + sum(cells[cell] for cell in chosen),
        Selection(tuple(sorted(chosen)), tuple(sorted(i for (_, cell), i in best.items() if cell in chosen))),
    )


def minimize(program: Program, incumbent: Selection | None = None) -> Selection | None:
    """An optimal selection, or None where no selection holds.

    Args:
        program: what to solve.
        incumbent: a selection that holds, if one is known: the optimum is found faster.
    """
    least = reduced(program.shape, program.objective)
    if program.holds(least.chosen):
        return least.chosen
    while True:
        known = None if incumbent is None else program.objective.total(incumbent) - least.least
        if known == 0:
            return incumbent
        found = _solved(program, least, known)
        if found is None:
            return incumbent
        excess = program.objective.total(found) - least.least
        if known is not None and excess >= known:
            return incumbent
        incumbent = found
        if known is not None and known < FALLS * excess:
            return incumbent


def _solved(program: Program, least: Reduced, known: int | None) -> Selection | None:
    """What HiGHS finds among the selections whose excess is ``known`` at most; checked, not proven, optimal."""
    shape = program.shape
    cell_of = [cell for _, cell in shape.items]
    bounds = [least.items[i] + least.cells[cell] for i, cell in enumerate(cell_of)]
    items = [i for i, bound in enumerate(bounds) if known is None or bound <= known]
    items = _undominated(program, items)
    cells = [cell for cell, number in enumerate(least.cells) if known is None or number <= known]
    column = {("cell", cell): k for k, cell in enumerate(cells)}
    column |= {("item", i): len(cells) + k for k, i in enumerate(items)}

    rows: list[tuple[dict[int, float], float, float]] = []
    for group in dict.fromkeys(shape.cells):
        rows.append(({column["cell", c]: 1.0 for c in cells if shape.cells[c] == group}, 1.0, 1.0))
    members: dict[tuple[int, int], dict[int, float]] = {}
    for place in dict.fromkeys(shape.items):
        if ("cell", place[1]) in column:
            members[place] = {column["cell", place[1]]: -1.0}
    for i in items:
        if shape.items[i] in members:
            members[shape.items[i]][column["item", i]] = 1.0
    rows += [(terms, 0.0, 0.0) for terms in members.values()]
    for row, cap in program.rows:
        small = reduced(shape, row)
        if small.least > cap:
            return None
        numbers = {column["cell", c]: small.cells[c] for c in cells} | {
            column["item", i]: small.items[i] for i in items
        }
        scale = Fraction(LARGEST, max(LARGEST, *numbers.values()))
        terms = {k: float(number * scale) for k, number in numbers.items() if number}
        rows.append((terms, -np.inf, float((cap - small.least + Fraction(1, 2)) * scale)))
    objective = [least.cells[c] for c in cells] + [least.items[i] for i in items]
    unit = Fraction(EXCESS) / (known or max(*objective, 1))
    costs = np.array([float(number * unit) for number in objective])

    while True:
        x = _highs(costs, rows)
        if x is None:
            return None
        found = Selection(
            tuple(cell for cell in cells if x[column["cell", cell]] > 0.5),
            tuple(i for i in items if x[column["item", i]] > 0.5),
        )
        if program.holds(found):
            return found
        taken = {column["cell", c]: 1.0 for c in found.cells} | {column["item", i]: 1.0 for i in found.items}
        rows.append((taken, -np.inf, len(taken) - 1.0))


def _undominated(program: Program, items: Sequence[int]) -> list[int]:
    """The items that no other of the same layer and cell beats or equals in the objective and in every row.

    Of items that are equal in everything the first stays.
    """
    quantities = dict.fromkeys([program.objective.items, *(row.items for row, _ in program.rows)])
    by_place: dict[tuple[int, int], list[int]] = {}
    for i in items:
        by_place.setdefault(program.shape.items[i], []).append(i)
    costs = {i: tuple(numbers[i] for numbers in quantities) for i in items}
    kept: list[int] = []
    for group in by_place.values():
        for i in group:
            better = (
                j
                for j in group
                if j != i
                and all(a <= b for a, b in zip(costs[j], costs[i], strict=True))
                and (costs[j] != costs[i] or j < i)
            )
            if next(better, None) is None:
                kept.append(i)
    return sorted(kept)


def _highs(costs: np.ndarray, rows: Sequence[tuple[dict[int, float], float, float]]) -> np.ndarray | None:
    """The binary optimum, None where there is none."""
    starts = [0]
    for terms, _, _ in rows:
        starts.append(starts[-1] + len(terms))
    row_of = np.concatenate([np.full(b - a, r) for r, (a, b) in enumerate(pairwise(starts))])
    columns = np.array([k for terms, _, _ in rows for k in terms], dtype=np.int64)
    numbers = np.array([number for terms, _, _ in rows for number in terms.values()])
    matrix = coo_array((numbers, (row_of, columns)), shape=(len(rows), len(costs))).tocsc()
    within = LinearConstraint(matrix, [low for _, low, _ in rows], [high for _, _, high in rows])
    with _silenced():
        result = milp(
            costs,
            integrality=np.ones(len(costs)),
            bounds=Bounds(0, 1),
            constraints=within,
            options={"mip_rel_gap": 0.0},
        )
    if result.status == 2:
        return None
    if result.status != 0:
        raise RuntimeError(f"HiGHS gave up on the allocation: {result.message}")
    return np.asarray(result.x)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Nothing reaches the process's standard output: HiGHS prints there from C, whatever its options say."""
    try:
        sys.stdout.flush()
        saved = os.dup(1)
    except (OSError, ValueError):  # there is no standard output
        yield
        return
    _flush_c()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    try:
        yield
    finally:
        _flush_c()
        os.dup2(saved, 1)
        os.close(saved)


def _flush_c() -> None:
    """Empty C's own buffers into the descriptor that stands there at the time."""
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).fflush(None)
