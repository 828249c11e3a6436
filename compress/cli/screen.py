"""What reaches standard output: JSON, or rich's tables without control codes where nobody looks."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPED_WIDTH = 120
"""Columns where the output goes to a file or a pipe: enough for the widest layout of the tables."""


def emit(document: Any) -> None:
    """Print a JSON document."""
    click.echo(json.dumps(document, indent=2, allow_nan=False))


def console() -> Console:
    """Standard output for rich."""
    return _console(sys.stdout)


def error_console() -> Console:
    """The error stream for rich; the stream of this moment, also while it is redirected."""
    return _console(sys.stderr)


def _console(stream: Any) -> Console:
    from rich.console import Console

    class Quiet(Console):
        """Leaves a broken pipe to the command."""

        def on_broken_pipe(self) -> None:
            """Raise what came."""
            self.quiet = True
            raise BrokenPipeError

    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    # Names of users may hold brackets and colons: no markup, no emoji, no guesses at what to colour.
    return Quiet(file=stream, width=width, highlight=False, markup=False, emoji=False)


def show(*blocks: RenderableType) -> None:
    """Print blocks with a blank line between them."""
    out = console()
    for index, block in enumerate(blocks):
        if index:
            out.print()
        out.print(block)
