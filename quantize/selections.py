"""Exact arithmetic for choices that exclude each other: one cell a class, one item a layer, all sums in integers.

A **class** is a set of tensors of equal width with the layers that read them (or one layer that reads none). It
takes one **cell**, a width; each of its layers takes one **item** of that cell, an option of that width. Every
quantity is linear in these choices and is held in integers, over a common denominator where it was given in
floating point (which is exact: doubles are dyadic fractions). The least of a single quantity, and of any
weighted sum of quantities, is then found class by class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np


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

    def undominated(self) -> tuple[Program, tuple[int, ...]]:
        """The programme without items that another of the same layer and cell beats or equals in everything.

        Of items that are equal in the objective and in every row the first stays. Beside the programme: what each
        of its items was.
        """
        quantities = [self.objective.items, *dict.fromkeys(row.items for row, _ in self.rows)]
        costs = list(zip(*quantities, strict=True))
        by_place: dict[tuple[int, int], list[int]] = {}
        for i, place in enumerate(self.shape.items):
            by_place.setdefault(place, []).append(i)
        kept = [
            i
            for i, place in enumerate(self.shape.items)
            if not any(
                all(a <= b for a, b in zip(costs[j], costs[i], strict=True)) and (costs[j] != costs[i] or j < i)
                for j in by_place[place]
            )
        ]

        def only(quantity: Linear) -> Linear:
            return replace(quantity, items=tuple(quantity.items[i] for i in kept))

        shape = Shape(self.shape.cells, tuple(self.shape.items[i] for i in kept))
        return Program(shape, only(self.objective), tuple((only(row), cap) for row, cap in self.rows)), tuple(kept)


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


def relaxed(program: Program, prices: Sequence[Fraction]) -> tuple[Reduced, int, int]:
    """The Lagrangian relaxation, objective plus priced rows, in integers; what the objective and the caps count in it.

    Whatever the prices, a selection that holds and whose objective is at most ``F`` is at most ``F`` times the
    first plus the second number.
    """
    common = math.lcm(*(price.denominator for price in prices))
    terms = [(program.objective, common)]
    terms += [(row, int(price * common)) for (row, _), price in zip(program.rows, prices, strict=True) if price]
    total = Linear(
        tuple(sum(q.cells[c] * n for q, n in terms) for c in range(len(program.shape.cells))),
        tuple(sum(q.items[i] * n for q, n in terms) for i in range(len(program.shape.items))),
        sum(q.constant * n for q, n in terms),
    )
    caps = sum(cap * int(price * common) for (_, cap), price in zip(program.rows, prices, strict=True))
    return reduced(program.shape, total), common, caps


def possible(program: Program, prices: Sequence[Fraction], known: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The cells and items that a selection whose objective is ``known`` at most can hold, by two lower bounds."""
    cells, items = list(range(len(program.shape.cells))), list(range(len(program.shape.items)))
    for values in ([Fraction(0)] * len(prices), prices):
        bound, objective, caps = relaxed(program, values)
        room = known * objective + caps - bound.least
        cells = [cell for cell in cells if bound.cells[cell] <= room]
        items = [i for i in items if bound.items[i] + bound.cells[program.shape.items[i][1]] <= room]
    return tuple(cells), tuple(items)


def filled(program: Program, chosen: Selection) -> Selection:
    """The selection with items exchanged for others of their cells, while the objective falls and the rows hold."""
    taken = {program.shape.items[i]: i for i in chosen.items}
    gains = sorted(
        (program.objective.items[i] - program.objective.items[taken[place]], i)
        for i, place in enumerate(program.shape.items)
        if place in taken
    )
    room = [cap - row.total(chosen) for row, cap in program.rows]
    moved: set[tuple[int, int]] = set()
    for gain, i in gains:
        place = program.shape.items[i]
        more = [row.items[i] - row.items[taken[place]] for row, _ in program.rows]
        if gain < 0 and place not in moved and all(a <= b for a, b in zip(more, room, strict=True)):
            room = [b - a for a, b in zip(more, room, strict=True)]
            taken[place] = i
            moved.add(place)
    return Selection(chosen.cells, tuple(sorted(taken.values())))
