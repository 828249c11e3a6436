"""The least of a linear objective over selections within caps: HiGHS, checked and kept small by exact arithmetic.

HiGHS computes in floating point with absolute tolerances of 1e-6. What guards the result against them:

- The least of every quantity in every class is subtracted from it beforehand, so that large constants cancel.
- A row's cap stands half a unit above the last integer allowed.
- What HiGHS returns is summed in integers. Should it be above a cap after all, it is cut off and the programme
  solved again. Only where that happens more than twenty times, as with seconds of many equal layers that are
  above the limit in the last place, the optimum is that of a limit which is lower in the eleventh digit.
- Options that the optimum can't hold are left out, by lower bounds in integers: the relaxation in which the duals
  of the linear programme price the rows, against the best selection known.
- The objective is scaled by that selection (its excess over the unlimited optimum becomes 1e6), again and again
  while the excess falls tenfold. The absolute gap is then 1e-12 of the excess, whatever the perturbations span.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

from compress.quantize.selections import Program, Reduced, Selection, filled, possible, reduced, relaxed

EXCESS = 10**6
"""What the excess of the best allocation known is scaled to."""

LARGEST = 10**5
"""Rows with larger coefficients are scaled down to it, so that HiGHS sees no more than eleven digits."""

FALLS = 10
"""The objective is scaled again where a solution's excess is this many times smaller than the one it was scaled by."""

CUTS = 20
"""Selections above a cap that are cut off one by one. Equal layers make many that are above it by equally little."""

CLEARANCE = 4e-6
"""By how much a row's cap is lowered after that, each time: beyond HiGHS's tolerance, 4e-11 of the largest number."""

RAISED = tuple(Fraction(n, 100) for n in (100, 101, 103, 110, 130, 200, 500))
"""Factors on the prices at which a selection that holds is looked for, the nearest to the optimum first."""


def minimize(program: Program, incumbent: Selection | None = None) -> Selection | None:
    """An optimal selection, or None where no selection holds.

    Args:
        program: what to solve.
        incumbent: a selection that holds, if one is known: the optimum is found faster.
    """
    small, was = program.undominated()
    now = {i: k for k, i in enumerate(was)}
    start = None
    if incumbent is not None and all(i in now for i in incumbent.items):
        start = Selection(incumbent.cells, tuple(now[i] for i in incumbent.items))
    best = _minimum(small, start)
    return None if best is None else Selection(best.cells, tuple(was[i] for i in best.items))


def _minimum(program: Program, incumbent: Selection | None) -> Selection | None:
    least = reduced(program.shape, program.objective)
    if program.holds(least.chosen):
        return least.chosen
    bases = [reduced(program.shape, row) for row, _ in program.rows]
    if any(base.least > cap for base, (_, cap) in zip(bases, program.rows, strict=True)):
        return None
    cells, items = tuple(range(len(program.shape.cells))), tuple(range(len(program.shape.items)))
    system = _system(program, least, bases, cells, items, None)
    prices = _prices(system)
    incumbent = _better(program, incumbent, _priced_out(program, prices))
    while True:
        known = None
        if incumbent is not None:
            total = program.objective.total(incumbent)
            known = total - least.least
            if known == 0:
                return incumbent
            system = _system(program, least, bases, *possible(program, prices, total), known)
        found = _solved(program, system)
        if found is None:
            return incumbent
        excess = program.objective.total(found) - least.least
        if known is not None and excess >= known:
            return incumbent
        incumbent = found
        if known is not None and known < FALLS * excess:
            return incumbent


def _better(program: Program, one: Selection | None, other: Selection | None) -> Selection | None:
    if one is None or other is None:
        return one or other
    return other if program.objective.total(other) < program.objective.total(one) else one


@dataclass(frozen=True, slots=True)
class _System:
    """The programme in floating point, over the cells and items that are left.

    Attributes:
        cells, items: what the columns stand for, cells first.
        costs: of each column, scaled by ``unit``.
        rows: coefficients by column, lower and upper bound; those of ``program.rows`` come last.
        unit, scales: what the objective and each of ``program.rows`` are multiplied by.
    """

    cells: tuple[int, ...]
    items: tuple[int, ...]
    costs: np.ndarray
    rows: list[tuple[dict[int, float], float, float]]
    unit: Fraction
    scales: tuple[Fraction, ...]


def _system(
    program: Program,
    least: Reduced,
    bases: Sequence[Reduced],
    cells: tuple[int, ...],
    items: tuple[int, ...],
    known: int | None,
) -> _System:
    shape = program.shape
    of_cell = {cell: k for k, cell in enumerate(cells)}
    of_item = {i: len(cells) + k for k, i in enumerate(items)}
    classes: dict[int, dict[int, float]] = {group: {} for group in shape.cells}
    for cell in cells:
        classes[shape.cells[cell]][of_cell[cell]] = 1.0
    members = {place: {of_cell[place[1]]: -1.0} for place in shape.items if place[1] in of_cell}
    for i in items:
        members[shape.items[i]][of_item[i]] = 1.0
    rows = [(terms, 1.0, 1.0) for terms in classes.values()] + [(terms, 0.0, 0.0) for terms in members.values()]
    scales = []
    for base, (_, cap) in zip(bases, program.rows, strict=True):
        numbers = [base.cells[cell] for cell in cells] + [base.items[i] for i in items]
        scale = Fraction(LARGEST, max(LARGEST, *numbers))
        terms = {k: float(number * scale) for k, number in enumerate(numbers) if number}
        rows.append((terms, -np.inf, float((cap - base.least + Fraction(1, 2)) * scale)))
        scales.append(scale)
    objective = [least.cells[cell] for cell in cells] + [least.items[i] for i in items]
    unit = Fraction(EXCESS) / (known or max(*objective, 1))
    return _System(cells, items, np.array([float(n * unit) for n in objective]), rows, unit, tuple(scales))


def _solved(program: Program, system: _System) -> Selection | None:
    """What HiGHS finds; its rows are checked exactly, that nothing is better is HiGHS's word."""
    rows, own = list(system.rows), len(system.rows) - len(system.scales)
    for attempt in itertools.count():
        x = _highs(system.costs, rows)
        if x is None:
            break
        taken = [k for k, number in enumerate(x) if number > 0.5]
        split = len(system.cells)
        found = Selection(
            tuple(system.cells[k] for k in taken if k < split),
            tuple(system.items[k - split] for k in taken if k >= split),
        )
        if program.holds(found):
            return found
        rows.append((dict.fromkeys(taken, 1.0), -np.inf, len(taken) - 1.0))
        for r, (row, cap) in enumerate(program.rows, own):
            if attempt >= CUTS and row.total(found) > cap:
                terms, low, high = rows[r]
                rows[r] = (terms, low, high - CLEARANCE)
    return None


def _prices(system: _System) -> tuple[Fraction, ...]:
    """What a unit of each row is worth in units of the objective: the linear relaxation's duals, at least 0."""
    own = len(system.rows) - len(system.scales)
    matrix, lows, highs = _matrix(system.costs, system.rows)
    result = linprog(system.costs, matrix[own:], highs[own:], matrix[:own], lows[:own], (0, 1), method="highs-ds")
    if result.status != 0:
        return (Fraction(0),) * len(system.scales)
    worth = (max(0.0, -float(number)) for number in result.ineqlin.marginals)
    return tuple(Fraction(w) * scale / system.unit for w, scale in zip(worth, system.scales, strict=True))


def _priced_out(program: Program, prices: Sequence[Fraction]) -> Selection | None:
    """A selection that holds, from prices raised until the relaxation's optimum does; None if none does."""
    for factor in RAISED:
        chosen = relaxed(program, [price * factor for price in prices])[0].chosen
        if program.holds(chosen):
            return filled(program, chosen)
    return None


def _highs(costs: np.ndarray, rows: Sequence[tuple[dict[int, float], float, float]]) -> np.ndarray | None:
    """The binary optimum, None where there is none."""
    within = LinearConstraint(*_matrix(costs, rows))
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


def _matrix(
    costs: np.ndarray, rows: Sequence[tuple[dict[int, float], float, float]]
) -> tuple[csr_array, np.ndarray, np.ndarray]:
    """The rows as a sparse matrix with their lower and upper bounds."""
    numbers = np.array([number for terms, _, _ in rows for number in terms.values()])
    columns = np.array([k for terms, _, _ in rows for k in terms], dtype=np.int32)
    starts = np.cumsum([0, *(len(terms) for terms, _, _ in rows)], dtype=np.int32)
    matrix = csr_array((numbers, columns, starts), shape=(len(rows), len(costs)))
    return matrix, np.array([low for _, low, _ in rows]), np.array([high for _, _, high in rows])


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
