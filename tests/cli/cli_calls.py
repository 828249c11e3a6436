"""How tests call the command, and what they get back."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = ("--model", "resnet", "--epochs", "0", "--samples", "64")


def environment(**more: str) -> dict[str, str]:
    """One thread, so that a busy machine stays usable; this checkout, from whatever folder."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100", **more}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "compress", *map(str, arguments)]


@dataclass(frozen=True)
class Ended:
    """How a call ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line of an error; anything else on either stream fails the test."""
        assert self.out == ""
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("error: ")
        return self.err.removeprefix("error: ").strip()


Call = Callable[..., Ended]


@dataclass(frozen=True)
class Finished:
    """A run that went through: its folder, and how the command ended."""

    path: Path
    ended: Ended

    @property
    def front(self) -> Any:
        return json.loads((self.path / "front.json").read_text())
