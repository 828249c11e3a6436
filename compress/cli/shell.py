"""From arguments to an exit status: what ends a command, and the one line that says so.

0 done, 1 a bug, 2 bad input, 3 the budget can't be met, 4 a check failed, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from compress.cli import interrupts
from compress.cli.session import PROGRAM, Session
from compress.errors import CompressError, Interrupted

BROKEN_PIPE = 141
"""What a shell shows of a program that SIGPIPE ended."""


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit status; nothing is raised."""
    session = Session(tuple(arguments))
    try:
        status = _invoke(session)
        sys.stdout.flush()
    except BaseException as error:  # the outermost frame: whatever comes ends in a status and a sentence
        return _end(error, session)
    return status


def _invoke(session: Session) -> int:
    from compress.cli.app import cli

    _hush()
    with cli.make_context(PROGRAM, list(session.arguments), obj=session) as context:
        return int(cli.invoke(context) or 0)


def _hush() -> None:
    """What libraries warn of concerns their developers; a user would read it as the command's own words."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def _end(error: BaseException, session: Session) -> int:
    if isinstance(error, KeyboardInterrupt) or interrupts.came():
        interrupts.ignore()
        error = Interrupted(session.resume)
    if isinstance(error, BrokenPipeError):
        return _abandon_output()
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, CompressError):
        return _say(error.sentence, error.exit_code)
    return _click(error, session)


def _click(error: BaseException, session: Session) -> int:
    from click import Context
    from click.exceptions import Abort, ClickException, Exit

    from compress.cli.app import cli
    from compress.cli.usage import sentence

    if isinstance(error, Exit):
        return error.exit_code
    if isinstance(error, Abort):
        return _say(Interrupted(session.resume).sentence, Interrupted.exit_code)
    if isinstance(error, ClickException):
        return _say(sentence(error, Context(cli, info_name=PROGRAM)), 2)
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if not session.verbose:
        return _say(f"internal: {said}; please report this: run again with -v for the traceback", 1)
    _say(f"internal: {said}; please report this with the traceback below", 1)
    traceback.print_exception(error)
    return 1


def _say(text: str, status: int) -> int:
    from compress.report.words import to_ascii

    try:
        try:
            text.encode(sys.stderr.encoding or "utf-8")
        except UnicodeEncodeError:
            text = to_ascii(text)
        sys.stderr.write(f"error: {text}\n")
        sys.stderr.flush()
    except BrokenPipeError:
        _abandon_output()
    return status


def _abandon_output() -> int:
    """The reader of our output has left: be quiet, also when Python flushes at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    return BROKEN_PIPE
