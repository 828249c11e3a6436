"""The folder of one run: what was asked for, what is finished, and how to go on.

``run.json`` says what was asked for and whether the run is finished. A candidate is made in a folder of its own
under ``.making`` and moved to its place when it is finished. So a run that is killed at any moment loses the
candidates that it was working on and nothing else, and what a process left behind goes on writing is never taken for
a candidate. One process at a time works in a run folder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import RunFolderError
from compress.serial import to_json, write_json

SCHEMA = 1
RUN, CANDIDATE = "run.json", "candidate.json"
MAKING = ".making"
"""Of the candidates that are being made, in the run folder."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder that exists and is ours to write."""

    path: Path

    def candidate(self, name: str) -> Path:
        """The folder of one candidate."""
        return self.path / "candidates" / name

    def finished(self, name: str) -> dict[str, Any] | None:
        """What ``candidate.json`` says, None if that candidate isn't finished or its file is damaged."""
        document = _read(self.candidate(name) / CANDIDATE)
        return document if document is not None and document.get("schema") == SCHEMA else None

    def names(self) -> tuple[str, ...]:
        """The candidates that have a folder."""
        return tuple(sorted(path.name for path in (self.path / "candidates").iterdir() if path.is_dir()))

    def begin(self, name: str) -> Path:
        """An empty folder to make a candidate in, called ``name``."""
        (self.path / MAKING).mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.path / MAKING)) / name
        folder.mkdir()
        return folder

    def adopt(self, made: Path) -> Path:
        """Move a folder of :meth:`begin` to its candidate's place, over what was there; where that is."""
        place = self.candidate(made.name)
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)
        shutil.rmtree(made.parent, ignore_errors=True)
        return place

    def tidy(self) -> None:
        """Remove what was begun and not finished."""
        shutil.rmtree(self.path / MAKING, ignore_errors=True)

    @contextmanager
    def building(self, name: str) -> Iterator[Path]:
        """An empty folder to make a candidate in; it comes to its place only if nothing was raised."""
        folder = self.begin(name)
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder.parent, ignore_errors=True)
            raise
        self.adopt(folder)

    def write_run(self, configuration: Mapping[str, Any], status: str, **more: Any) -> None:
        """Write ``run.json``: status is ``"running"`` or ``"finished"``."""
        write_json(
            self.path / RUN, {"schema": SCHEMA, "status": status, "configuration": to_json(configuration), **more}
        )


def default_path(model: str, target: str) -> Path:
    """``runs/MODEL-TARGET``, with the first number behind it that isn't taken."""
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{Path(model).stem or model}-{target}").strip("-.")
    base = Path("runs") / (stem or "run")
    path, n = base, 1
    while path.exists():
        n += 1
        path = base.with_name(f"{base.name}-{n}")
    return path


def latest_unfinished(model: str, target: str) -> Path | None:
    """The newest run of that model and target under ``runs/`` that can be resumed."""
    found = []
    for path in Path("runs").glob(f"*/{RUN}"):
        document = _read(path) or {}
        asked = document.get("configuration", {})
        if document.get("status") == "running" and (asked.get("model"), asked.get("target")) == (model, target):
            found.append((path.stat().st_mtime, path.parent))
    return max(found)[1] if found else None


def read_run(path: Path) -> dict[str, Any]:
    """``run.json`` of a run folder.

    Raises:
        RunFolderError: there is none, or it is damaged or of another version.
    """
    document = _read(path / RUN)
    if document is None:
        raise RunFolderError(str(path), f"it holds no readable {RUN}", "give the folder of a run")
    if document.get("schema") != SCHEMA:
        raise RunFolderError(
            str(path),
            f"{RUN} has schema {document.get('schema')!r}, this version reads {SCHEMA}",
            "run again with --out elsewhere",
        )
    return document


def check_writable(path: Path, resume: bool) -> None:
    """See that ``path`` can become a run folder, without writing anything that stays.

    Raises:
        RunFolderError: it is taken, or can't be written.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(str(path), "it is a file", "choose another --out")
    if path.is_dir() and any(path.iterdir()) and not resume:
        status = (_read(path / RUN) or {}).get("status")
        if status == "running":
            raise RunFolderError(
                str(path), "it holds an unfinished run", "add --resume to go on with it, or choose another --out"
            )
        what = "a finished run" if status == "finished" else "other files"
        raise RunFolderError(str(path), f"it already holds {what}", "choose another --out")
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise RunFolderError(str(path), f"{parent} is a file", "choose another --out")
    if not _writable(parent):
        raise RunFolderError(str(path), f"{parent} can't be written", "choose another --out, or change its permissions")


def _writable(folder: Path) -> bool:
    # os.access answers from permissions alone; a read-only file system or root's powers show only when one tries.
    probe = folder / f".compress-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return True


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a full or vanished disk raises into a sentence; finished candidates stay and the run resumes."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFolderError(str(path), "the disk is full", "free some space, then go on with --resume") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise RunFolderError(
                str(path), f"it can't be written ({error.strerror})", "change its permissions, then go on with --resume"
            ) from error
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only process that works in a run folder; a process that is killed lets go of it.

    Raises:
        RunFolderError: another one does.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise RunFolderError(
                    str(path), "another process is working in it", "wait until that has ended, or choose another --out"
                ) from None
            # Some network file systems have no locks: there it's up to the user.
        yield
    finally:
        os.close(descriptor)


def create(path: Path) -> RunFolder:
    """Make the folder."""
    with disk_errors(path):
        (path / "candidates").mkdir(parents=True, exist_ok=True)
    return RunFolder(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
