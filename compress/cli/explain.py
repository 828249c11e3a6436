"""``compress explain RUN [CANDIDATE]``: where a candidate's time goes, why it isn't less, and what would help."""

from __future__ import annotations

from pathlib import Path

from compress.cli import homecoming, screen
from compress.errors import RunFolderError
from compress.explaining import runs
from compress.finished import read, replaced
from compress.report import explanation, words
from compress.report.facts import RunFacts
from compress.results import Candidate, Front


def run(path: str, name: str | None, predicted: bool, as_json: bool) -> int:
    """Explain one candidate and print it. Where the run's target is this machine its layers are measured.

    Args:
        path: the folder of a finished run.
        name: the candidate's id; None for the one that the report is about.
        predicted: measure nothing.
        as_json: print JSON.

    Raises:
        BadInput: there is no such run or candidate.
        CheckFailed: the file to be measured has been changed.
    """
    folder = Path(path)
    front, facts = read(folder)
    candidate = runs.pick(folder, front, name)
    why = None if predicted else runs.unmeasurable(front, candidate)
    home = None
    if not predicted and why is None:
        base, candidate = runs.measured(folder, front, candidate)
        front = replaced(replaced(front, base), candidate)
        home = _home(folder, front, facts, (base, candidate))
    if as_json:
        screen.emit({**explanation.document(front, candidate), "not_measured": why, "home": home})
        return 0
    _show(front, candidate, why, home)
    return 0


def _home(folder: Path, front: Front, facts: RunFacts, changed: tuple[Candidate, ...]) -> str:
    """Bring measured times into the run, if its latencies were measured on this machine too, and say where they are."""
    known, here = changed[-1].best.measurement, changed[-1].explanation
    if known is not None and here is not None and here.measured is not None and known.device != here.measured.device:
        return f"printed only: the run's latencies were measured on another machine, {known.device}"
    try:
        return homecoming.keep(folder, front, facts, changed)
    except RunFolderError as error:  # what was measured is printed all the same
        return f"printed only: {error.sentence}"


def _show(front: Front, candidate: Candidate, why: str | None, home: str | None) -> None:
    from compress.report.terminal import explanation_blocks

    found = explanation.view(front, candidate)
    assert found is not None
    screen.show(*explanation_blocks(front, candidate, found, screen.console().width))
    closing = [f"Not measured here: {why}."] if why else []
    closing += [f"Home: {home}."] if home else []
    if closing:
        out = screen.console()
        out.print()
        for line in closing:
            out.print(words.to_ascii(line) if out.options.ascii_only else line)


__all__ = ["run"]
