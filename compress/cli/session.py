"""One call of the command: what was typed, and what to type to go on from here."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "compress"


@dataclass
class Session:
    """One call of the command.

    Attributes:
        arguments: as they were typed.
        verbose: ``-v`` was among them.
        folder: the run folder, once it is known.
    """

    arguments: tuple[str, ...]
    verbose: bool = False
    folder: Path | None = None

    @property
    def command(self) -> str:
        """What was typed, to be typed again."""
        return shlex.join([PROGRAM, *self.arguments])

    @property
    def resume(self) -> str:
        """The command that goes on from here: the same one as long as nothing has been written."""
        if self.folder is None or not self.folder.exists():
            return self.command
        if (self.folder / "run.json").exists():
            return resume_command(self.folder)
        return self.command if "--resume" in self.arguments else f"{self.command} --resume"


def resume_command(folder: Path) -> str:
    """The command that goes on with the run in ``folder``."""
    return shlex.join([PROGRAM, "--resume", "--out", str(folder)])
