"""What a report knows about the run besides its front. No clock is read here: dates arrive as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compress.search import Account
from compress.types import LayerSensitivity, Note


@dataclass(frozen=True)
class RunFacts:
    """The circumstances of one run.

    Attributes:
        command: the command line, as the user could type it again.
        versions: version of every package that shaped the result, by name.
        seed: the seed that the run's randomness came from.
        started: when the run began, as text to be printed as it is.
        seconds: wall time by phase, in the order in which the phases ran, each (name, seconds). A run's own
            report ends before its drawing, which ``run.json`` counts too.
        machine: the machine that the run took place on.
        target_title: the target device's full name.
        model: the network as the user named it.
        notes: what was left alone or approximated outside any stage of a candidate.
        next_commands: what to type next, most useful first.
        sensitivity: of the uncompressed network's layers, where widths were chosen by it.
        search: what was expected of the candidates before they were made, where something was.
    """

    command: str
    versions: Mapping[str, str]
    seed: int
    started: str
    seconds: tuple[tuple[str, float], ...]
    machine: str
    target_title: str
    model: str
    notes: tuple[Note, ...] = ()
    next_commands: tuple[str, ...] = ()
    sensitivity: tuple[LayerSensitivity, ...] = ()
    search: Account | None = None
