"""Geometry of the picture of what each layer became: channels kept, bits, and where the MACs went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.report import words
from compress.results import LayerFact

WIDTH = 1000
GUTTER = 122
PER_LINE = 48
"""Columns in one line of the wide picture; a deeper network takes several."""
TRACKS = {"names": 0, "kept": 26, "weights": 138, "activations": 166, "macs": 200}
KEPT_HEIGHT, CELL_HEIGHT, MACS_HEIGHT = 100, 22, 40
TIME_TOP, TIME_HEIGHT = TRACKS["macs"] + MACS_HEIGHT + 14, 40
Times = Mapping[str, tuple[float, float]]
"""Seconds of a layer by name: the float network's, and this one's."""


@dataclass(frozen=True)
class Column:
    """One layer of the wide picture, in pixels. Heights are of the outline and of what is left; 0 where no time is
    known."""

    x: float
    width: float
    kept_height: float
    macs_before: float
    macs_after: float
    time_before: float
    time_after: float
    weight_class: str
    activation_class: str
    fact: LayerFact
    name: str
    channels: str
    text: str


@dataclass(frozen=True)
class Line:
    """One line of the wide picture: its columns, its height, where names begin, and whether there is room for text."""

    columns: tuple[Column, ...]
    height: int
    names_top: int
    cell_text: bool
    name_every: int


@dataclass(frozen=True)
class Row:
    """One layer of the narrow picture."""

    y: int
    kept: float
    weight_class: str
    name: str
    figures: str
    text: str


@dataclass(frozen=True)
class Picture:
    """Both pictures of one candidate, the bits that occur in it, and whether times by layer are drawn."""

    lines: tuple[Line, ...]
    rows: tuple[Row, ...]
    rows_height: int
    legend: tuple[tuple[str, str], ...]
    timed: bool


def bit_class(bits: int) -> str:
    """The colour class of a number of bits: the classes are the steps at which kernels and files differ."""
    return f"b{next(step for step in (1, 2, 4, 8, 16, 32) if bits <= step or step == 32)}"


def picture(facts: Sequence[LayerFact], times: Times | None = None) -> Picture | None:
    """The pictures of a candidate's layers in the order in which they run; None where none are known.

    Args:
        facts: the layers.
        times: where their time goes, if that is known.
    """
    if not facts:
        return None
    known = times or {}
    lines_needed = math.ceil(len(facts) / PER_LINE)
    per_line = math.ceil(len(facts) / lines_needed)
    lines = tuple(
        _line(facts[start : start + per_line], per_line, facts, known) for start in range(0, len(facts), per_line)
    )
    total = sum(after for _, after in known.values())
    rows = tuple(
        Row(
            y=40 * i,
            kept=_kept(fact),
            weight_class=bit_class(fact.weight_bits),
            name=words.shorten(fact.name, 22 if known else 26),
            figures=" · ".join(
                [
                    _channels(fact),
                    f"W{fact.weight_bits} A{fact.activation_bits}",
                    *([f"{words.share(known[fact.name][1], total)} of time"] if fact.name in known else []),
                ]
            ),
            text=_text(fact, known),
        )
        for i, fact in enumerate(facts)
    )
    return Picture(lines, rows, 40 * len(rows), _legend(facts), bool(known))


def _legend(facts: Sequence[LayerFact]) -> tuple[tuple[str, str], ...]:
    used = sorted({b for fact in facts for b in (fact.weight_bits, fact.activation_bits)})
    by_class: dict[str, list[int]] = {}
    for bits in used:
        by_class.setdefault(bit_class(bits), []).append(bits)
    return tuple(
        (name, f"{values[0]} bit" if len(values) == 1 else f"{values[0]}{words.TO}{values[-1]} bit")
        for name, values in by_class.items()
    )


def _line(facts: Sequence[LayerFact], per_line: int, everyone: Sequence[LayerFact], times: Times) -> Line:
    most_macs = max(1, *(fact.macs_before for fact in everyone))
    longest_s = max((seconds for pair in times.values() for seconds in pair), default=0.0) or 1.0
    step = min(60.0, (WIDTH - GUTTER) / per_line)
    width = step - (3 if step >= 14 else 1)
    columns = tuple(
        Column(
            x=GUTTER + step * i,
            width=width,
            kept_height=KEPT_HEIGHT * _kept(fact),
            macs_before=MACS_HEIGHT * fact.macs_before / most_macs,
            macs_after=MACS_HEIGHT * fact.macs / most_macs,
            time_before=TIME_HEIGHT * times.get(fact.name, (0.0, 0.0))[0] / longest_s,
            time_after=TIME_HEIGHT * times.get(fact.name, (0.0, 0.0))[1] / longest_s,
            weight_class=bit_class(fact.weight_bits),
            activation_class=bit_class(fact.activation_bits),
            fact=fact,
            name=words.shorten(fact.name, 20),
            channels=_channels(fact) if 6.2 * len(_channels(fact)) <= step else str(fact.channels),
            text=_text(fact, times),
        )
        for i, fact in enumerate(facts)
    )
    longest = max(len(column.name) for column in columns)
    names_top = (TIME_TOP + TIME_HEIGHT if times else TRACKS["macs"] + MACS_HEIGHT) + 14
    # Names hang down at 45 degrees: their height is about 0.7 of their length.
    height = names_top + 4 + round(0.71 * 6.2 * longest)
    return Line(columns, height, names_top, width >= 15, 1 if step >= 15 else math.ceil(15 / step))


def _kept(fact: LayerFact) -> float:
    return fact.channels / fact.channels_before if fact.channels_before else 1.0


def _channels(fact: LayerFact) -> str:
    return f"{fact.channels}/{fact.channels_before}" if fact.channels != fact.channels_before else str(fact.channels)


def _text(fact: LayerFact, times: Times) -> str:
    macs = f"{words.count(fact.macs)} of {words.count(fact.macs_before)} MACs"
    return "\n".join(
        [
            f"{fact.name} · {fact.kind}",
            f"{fact.channels} of {fact.channels_before} channels ({words.share(fact.channels, fact.channels_before)})",
            f"weights {fact.weight_bits} bit, activations {fact.activation_bits} bit",
            f"{macs}, {words.count(fact.params)} parameters",
            *_time_text(times.get(fact.name)),
        ]
    )


def _time_text(pair: tuple[float, float] | None) -> list[str]:
    return [f"{words.seconds(pair[1])}, float {words.seconds(pair[0])}"] if pair is not None else []
