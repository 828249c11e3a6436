"""Run stages one after the other and write down what each did."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, Protocol

from compress.serial import to_json
from compress.types import Context, Record, Size, Stage, State


class Known(Protocol):
    """Where states are kept that other candidates may go on from."""

    def find(self, stages: Sequence[Stage], /) -> State | None:
        """The state after ``stages``; None if it isn't known."""

    def keep(self, stages: Sequence[Stage], state: State, /) -> None:
        """``state`` has just been made by the last of ``stages``."""


class Nothing:
    """Keeps nothing."""

    def find(self, stages: Sequence[Stage], /) -> State | None:
        """Nothing."""
        return None

    def keep(self, stages: Sequence[Stage], state: State, /) -> None:
        """Nothing."""


def run(
    stages: Sequence[Stage],
    state: State,
    context: Context,
    measure: Callable[[State], Size],
    known: Known | None = None,
) -> State:
    """``state`` after every stage, each of which adds a record.

    The randomness of a stage depends on the seed, the stage and those before it. So what they give is the same for
    every candidate that begins with them, in whatever order and wherever candidates are made.

    Args:
        stages: called in order.
        state: where to start.
        context: what every stage may read; its ``progress`` is told each stage's name. Its generator isn't used.
        measure: the size of a state's network.
        known: where to look for the state after the first stages, the longest such beginning first.
    """
    known = known or Nothing()
    begin = 0
    for count in range(len(stages), 0, -1):
        found = known.find(stages[:count])
        if found is not None:
            state, begin = found, count
            break
    before = state.records[-1].after if begin else measure(state)
    for count, stage in enumerate(stages[begin:], start=begin + 1):
        context.progress(label(stage))
        start = time.perf_counter()
        noted = len(state.notes)
        after_stage = stage(state, seeded(context, stages[:count]))
        after = measure(after_stage)
        notes = tuple(dict.fromkeys(after_stage.notes[noted:]))
        record = Record(label(stage), settings(stage), time.perf_counter() - start, before, after, notes)
        state, before = replace(after_stage, records=(*state.records, record)), after
        known.keep(stages[:count], state)
    return state


def seeded(context: Context, stages: Sequence[Stage]) -> Context:
    """The context for the last of ``stages``, whose generator depends on the seed and on them alone."""
    import torch

    digest = hashlib.sha256(json.dumps([context.seed, described(stages)]).encode()).digest()
    return replace(context, generator=torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1))


def described(stages: Sequence[Stage]) -> list[list[Any]]:
    """Each stage by its class and its hyperparameters, as JSON values."""
    return [[f"{type(stage).__module__}.{type(stage).__qualname__}", settings(stage)] for stage in stages]


def label(stage: Stage) -> str:
    """A stage's name: its ``label`` if it has one, else its class's."""
    return str(getattr(stage, "label", type(stage).__name__))


def settings(stage: Stage) -> dict[str, Any]:
    """A stage's hyperparameters as JSON values."""
    return dict(to_json(stage)) if is_dataclass(stage) else {}
