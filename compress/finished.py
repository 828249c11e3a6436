"""A finished run read back from its folder, and its candidates by name."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress import runfolder
from compress.errors import RunFolderError, UnknownName
from compress.report.facts import RunFacts
from compress.results import Candidate, Front
from compress.serial import from_json

FRONT = "front.json"


def read(path: Path) -> tuple[Front, RunFacts]:
    """The front and the facts of a finished run.

    Raises:
        RunFolderError: it isn't the folder of a finished run of this version, or a file is missing or damaged.
    """
    document = runfolder.read_run(path)
    if document.get("status") == "running":
        raise RunFolderError(
            str(path),
            "its run isn't finished",
            f"go on with it: {shlex.join(['compress', '--resume', '--out', str(path)])}",
        )
    return read_finished(path, document)


def read_finished(path: Path, document: Mapping[str, Any]) -> tuple[Front, RunFacts]:
    """The front and the facts of a finished run.

    Args:
        path: its folder.
        document: what its run.json says.

    Raises:
        RunFolderError: a file is missing or damaged.
    """
    name = FRONT
    try:
        front = Front.from_document(json.loads((path / name).read_text(encoding="utf-8")))
        name = runfolder.RUN
        facts = from_json(RunFacts, document["facts"])
    except OSError as error:
        raise RunFolderError(
            str(path), f"{name} can't be read ({error.strerror})", "run again with another --out"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise RunFolderError(str(path), f"{name} is damaged ({said})", "run again with another --out") from None
    return front, facts


def candidate_of(front: Front, name: str) -> Candidate:
    """A front's candidate, or the float network, by its id.

    Raises:
        UnknownName: there is none of that id; the nearest are named.
    """
    everyone = {each.id: each for each in (front.baseline, *front.candidates)}
    if name not in everyone:
        raise UnknownName("candidate", name, everyone, hint="see the table of compress report RUN")
    return everyone[name]


def replaced(front: Front, candidate: Candidate) -> Front:
    """The front with ``candidate`` in the place of its namesake, which may be the float network."""
    if candidate.id == front.baseline.id:
        return replace(front, baseline=candidate)
    return replace(front, candidates=tuple(candidate if c.id == candidate.id else c for c in front.candidates))


__all__ = ["FRONT", "candidate_of", "read", "read_finished", "replaced"]
