"""What an exporter made in a candidate's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.types import Note


@dataclass(frozen=True)
class Made:
    """An artifact on disk.

    Attributes:
        path: its main file.
        bytes: what it takes of the device's flash or disk.
        ram_bytes: working memory as it was planned; None where the runtime decides.
        notes: what was approximated or left in float.
        compiled: the :class:`compress.export.compiled.Compiled` it is, for what runs it.
    """

    path: Path
    bytes: int
    ram_bytes: int | None = None
    notes: tuple[Note, ...] = ()
    compiled: Any = None
