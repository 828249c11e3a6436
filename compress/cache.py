"""What earlier runs made, kept by what it was made of: folders in the user's cache.

An entry lies under the digest of everything that shaped it, so that it is never out of date: other weights, data,
options or versions have other digests. Its files are listed with their hashes, and a copy of them is checked before it
is used; an entry that is damaged in any way is dropped. Nothing in it is executed or unpickled. The cache holds a
bounded number of bytes, what was used longest ago goes first.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import BadInput
from compress.serial import write_json
from compress.types import Progress

SCHEMA = 1
ENTRY, FILES = "entry.json", "files"
LIMIT_BYTES = 2 * 1024**3
"""Unless ``$COMPRESS_CACHE_BYTES`` says otherwise; 0 keeps nothing and finds nothing."""
_PARTIAL = ".partial-"
_STALE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that is kept.

    Attributes:
        key: the digest of what it was made of.
        kind: ``"candidate"``, ``"network"``, ``"sensitivity"`` or ``"forecasts"``.
        about: of what, for people: model, target, id.
        bytes: of all its files.
        used: when it was made or used last, seconds since 1970.
    """

    key: str
    kind: str
    about: Mapping[str, str]
    bytes: int
    used: float


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of entries that holds at most ``limit`` bytes."""

    path: Path
    limit: int

    def take(self, key: str, destination: Path, progress: Progress) -> bool:
        """Copy the files of an entry into the empty folder ``destination``; False if there is none.

        A damaged one is dropped, and ``progress`` is told.
        """
        folder = self.path / key
        if not folder.is_dir():
            return False
        wrong = _copied(folder, destination)
        if wrong is None:
            os.utime(folder / ENTRY)
            return True
        shutil.rmtree(destination, ignore_errors=True)
        destination.mkdir(parents=True)
        if folder.is_dir():  # another process may have dropped it, for want of room
            shutil.rmtree(folder, ignore_errors=True)
            progress(f"the cache's entry {key[:12]} was damaged ({wrong}): dropped, and made anew")
        return False

    def keep(self, key: str, kind: str, about: Mapping[str, str], source: Path, progress: Progress) -> None:
        """Keep a copy of the files below ``source``, unless they alone are more than the limit.

        A disk that is full or can't be written costs the entry and a word to ``progress``, no more.
        """
        names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
        if (self.path / key).is_dir() or sum((source / name).stat().st_size for name in names) > self.limit:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.path))
        except OSError as error:
            progress(f"nothing is cached: {self.path} can't be written ({error.strerror})")
            return
        try:
            for name in names:
                (partial / FILES / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, partial / FILES / name)
            hashes = {name: _sha256(partial / FILES / name) for name in names}
            write_json(
                partial / ENTRY, {"schema": SCHEMA, "key": key, "kind": kind, "about": dict(about), "files": hashes}
            )
            partial.rename(self.path / key)
        except OSError as error:
            # Where the name is taken, another process has kept the same thing at the same time.
            shutil.rmtree(partial, ignore_errors=True)
            if not (self.path / key).is_dir():
                progress(f"not cached: {error.strerror}")
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._make_room(key)

    def entries(self) -> tuple[Entry, ...]:
        """What is kept, that which was used last first; what can't be read is left out."""
        found = (_entry(folder) for folder in self._folders())
        return tuple(sorted((each for each in found if each is not None), key=lambda each: (-each.used, each.key)))

    def clear(self) -> int:
        """Drop all entries, the unreadable ones too; how many there were."""
        folders = self._folders()
        for folder in (*folders, *self.path.glob(f"{_PARTIAL}*")):
            shutil.rmtree(folder, ignore_errors=True)
        return len(folders)

    def _folders(self) -> list[Path]:
        if not self.path.is_dir():
            return []
        return sorted(path for path in self.path.iterdir() if path.is_dir() and not path.name.startswith("."))

    def _make_room(self, newest: str) -> None:
        """Drop what was used longest ago until the rest fits, and what a killed process left half made."""
        entries = [each for each in reversed(self.entries()) if each.key != newest]
        total = sum(each.bytes for each in self.entries())
        for each in entries:
            if total <= self.limit:
                break
            shutil.rmtree(self.path / each.key, ignore_errors=True)
            total -= each.bytes
        for partial in self.path.glob(f"{_PARTIAL}*"):
            try:
                old = time.time() - partial.stat().st_mtime > _STALE_S
            except OSError:
                continue
            if old:
                shutil.rmtree(partial, ignore_errors=True)


def location() -> Path:
    """The folder of the user's cache: ``$XDG_CACHE_HOME/compress/results``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "compress" / "results"


def limit_bytes() -> int:
    """How much the user's cache holds.

    Raises:
        BadInput: ``$COMPRESS_CACHE_BYTES`` isn't a whole number.
    """
    given = os.environ.get("COMPRESS_CACHE_BYTES")
    if given is None:
        return LIMIT_BYTES
    if not given.strip().isdigit():
        raise BadInput(f"COMPRESS_CACHE_BYTES is {given!r}; set it to a whole number of bytes, 0 for no cache")
    return int(given)


def users() -> Cache | None:
    """The user's cache; None where it is set to hold nothing."""
    limit = limit_bytes()
    return Cache(location(), limit) if limit else None


def digest(document: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _copied(folder: Path, destination: Path) -> str | None:
    """Copy an entry's files and check the copies; what is wrong, None if nothing is."""
    document = _document(folder)
    if document is None:
        return f"its {ENTRY} can't be read"
    try:
        for name, expected in document["files"].items():
            source, copy = folder / FILES / name, destination / name
            if not copy.resolve().is_relative_to(destination.resolve()) or source.is_symlink():
                return f"{name} lies outside"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
            if _sha256(copy) != expected:
                return f"{name} has been changed"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _document(folder: Path) -> dict[str, Any] | None:
    try:
        document = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA or document.get("key") != folder.name:
        return None
    files, about = document.get("files"), document.get("about")
    named = isinstance(document.get("kind"), str) and isinstance(about, dict) and isinstance(files, dict)
    return document if named else None


def _entry(folder: Path) -> Entry | None:
    document = _document(folder)
    if document is None:
        return None
    try:
        used = (folder / ENTRY).stat().st_mtime
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except OSError:
        return None  # another process has just dropped it
    about = {str(name): str(value) for name, value in document["about"].items()}
    return Entry(folder.name, document["kind"], about, size, used)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["LIMIT_BYTES", "Cache", "Entry", "digest", "limit_bytes", "location", "users"]
