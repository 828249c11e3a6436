"""Run stages one after the other and write down what each did."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from compress.serial import to_json
from compress.types import Context, Record, Size, Stage, State


def run(stages: Sequence[Stage], state: State, context: Context, measure: Callable[[State], Size]) -> State:
    """``state`` after every stage, each of which adds a record.

    Args:
        stages: called in order.
        state: where to start.
        context: what every stage may read; its ``progress`` is told each stage's name.
        measure: the size of a state's network.
    """
    before = measure(state)
    for stage in stages:
        context.progress(label(stage))
        start = time.perf_counter()
        known = len(state.notes)
        after_stage = stage(state, context)
        after = measure(after_stage)
        notes = tuple(dict.fromkeys(after_stage.notes[known:]))
        record = Record(label(stage), settings(stage), time.perf_counter() - start, before, after, notes)
        state, before = replace(after_stage, records=(*state.records, record)), after
    return state


def label(stage: Stage) -> str:
    """A stage's name: its ``label`` if it has one, else its class's."""
    return str(getattr(stage, "label", type(stage).__name__))


def settings(stage: Stage) -> dict[str, Any]:
    """A stage's hyperparameters as JSON values."""
    return dict(to_json(stage)) if is_dataclass(stage) else {}
