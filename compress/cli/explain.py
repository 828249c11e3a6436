"""``compress explain RUN [CANDIDATE]``: where a candidate's time goes, why it isn't less, and what would help."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.cli import screen
from compress.errors import RunFolderError
from compress.explaining import runs
from compress.finished import FRONT, read
from compress.report import explanation, words
from compress.report.facts import RunFacts
from compress.results import Candidate, Front, candidate_document
from compress.runfolder import CANDIDATE, SCHEMA, disk_errors
from compress.serial import write_json


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
        front = _with(_with(front, base), candidate)
        home = _bring(folder, front, facts, (base, candidate))
    if as_json:
        screen.emit({**explanation.document(front, candidate), "not_measured": why, "home": home})
        return 0
    _show(front, candidate, why, home)
    return 0


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


def _bring(folder: Path, front: Front, facts: RunFacts, changed: tuple[Candidate, ...]) -> str:
    """Put the measured times into the run's front, the candidates' files and the report, and say so."""
    from compress.execution import write_documents

    try:
        with disk_errors(folder):
            write_json(folder / FRONT, front.document())
            for each in changed:
                document: dict[str, Any] = {"schema": SCHEMA, "candidate": candidate_document(each, on_front=False)}
                write_json(folder / "candidates" / each.id / CANDIDATE, document)
            write_documents(folder, front, facts)
    except RunFolderError as error:
        return f"printed only: {error.sentence}"
    return f"in {folder / FRONT} and {folder / 'report.html'}"


def _with(front: Front, candidate: Candidate) -> Front:
    if candidate.id == front.baseline.id:
        return replace(front, baseline=candidate)
    return replace(front, candidates=tuple(candidate if c.id == candidate.id else c for c in front.candidates))


__all__ = ["run"]
