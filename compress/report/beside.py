"""Candidates side by side, a column each: their figures, and what each layer became."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compress.report import rows as tables
from compress.report import words
from compress.report.points import ENERGY, ordered, unit
from compress.results import Candidate, Front

SHOWN = 4
"""So many columns are shown at first: the float network, the best, and the next on the front."""


@dataclass(frozen=True)
class Column:
    """One candidate: ``key`` tells its cells, ``shown`` whether it is among those shown at first."""

    key: str
    name: str
    label: str
    best: bool
    shown: bool


@dataclass(frozen=True)
class Cell:
    """A figure, what qualifies it, and how it is known: ``"measured"``, ``"predicted"`` or empty."""

    text: str
    detail: str = ""
    known: str = ""


@dataclass(frozen=True)
class Line:
    """One figure of every candidate."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """All candidates; ``timed`` if layers have shares of the time."""

    columns: tuple[Column, ...]
    rows: tuple[Line, ...]
    layers: tuple[Line, ...]
    timed: bool


def candidates(front: Front) -> Table | None:
    """The table of a front; None where there is nothing to compare."""
    everyone, listed = ordered(front), tables.rows(front)
    if len(everyone) < 2:
        return None
    first = sorted(listed, key=lambda row: (not row.baseline, not row.best, not row.on_front, row.index))[:SHOWN]
    shown = {row.index for row in first}
    columns = tuple(
        Column(f"k{row.index}", row.id, words.shorten(row.id, 24), row.best, row.index in shown) for row in listed
    )
    lines = [
        Line(front.metric.heading, tuple(_accuracy(row) for row in listed)),
        Line("Measured latency", tuple(Cell(row.measured, row.measured_detail, "measured") for row in listed)),
        Line("Predicted latency", tuple(Cell(row.predicted, row.error, "predicted") for row in listed)),
        Line("File", tuple(Cell(row.size, "" if row.baseline else f"{row.size_share} of float") for row in listed)),
        Line("RAM", tuple(Cell(row.ram) for row in listed)),
        Line("Energy", tuple(_energy(front, c) for c in everyone)),
        Line("Instructions", tuple(Cell(words.count(c.best.instructions)) for c in everyone)),
        Line("MACs", tuple(Cell(row.macs, "" if row.baseline else f"{row.macs_share} of float") for row in listed)),
        Line("Parameters", tuple(Cell(row.params, "" if row.baseline else row.params_share) for row in listed)),
        Line("Bits, weights / activations", tuple(Cell(f"{r.weight_bits} / {r.activation_bits}") for r in listed)),
        Line("Runs by", tuple(Cell(words.runtime(c.best.runtime)) for c in everyone)),
    ]
    shares = [_shares(c) for c in everyone]
    named: dict[str, None] = {}
    for candidate in everyone:
        named.update(dict.fromkeys(fact.name for fact in candidate.layers))
    layers = tuple(
        Line(name, tuple(_layer(c, name, share) for c, share in zip(everyone, shares, strict=True))) for name in named
    )
    return Table(
        columns,
        tuple(line for line in lines if any(cell.text != words.DASH for cell in line.cells)),
        layers,
        any(shares),
    )


def _accuracy(row: tables.Row) -> Cell:
    return Cell(row.accuracy, row.accuracy_detail)


def _energy(front: Front, candidate: Candidate) -> Cell:
    told = candidate.best.measurement.conditions.get(ENERGY) if candidate.best.measurement is not None else None
    return Cell(unit(front, "energy").text(told if isinstance(told, (int, float)) else None), known="measured")


def _shares(candidate: Candidate) -> Mapping[str, float]:
    """Each layer's share of the time, by name; empty where nobody recorded it."""
    found = candidate.explanation
    if found is None or not found.total_s:
        return {}
    return {layer.name: layer.time_s / found.total_s for layer in found.layers}


def _layer(candidate: Candidate, name: str, shares: Mapping[str, float]) -> Cell:
    fact = next((fact for fact in candidate.layers if fact.name == name), None)
    if fact is None:
        return Cell("removed")
    share = shares.get(name)
    return Cell(
        f"{fact.channels} · W{fact.weight_bits} A{fact.activation_bits}",
        words.percent(share, 1 if share < 0.1 else 0) if share is not None else "",
    )


__all__ = ["Cell", "Column", "Line", "Table", "candidates"]
