"""Ctrl-C and SIGTERM: both end a run in order, wherever they come."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_came = False
_deferred = False


def install() -> None:
    """Let both signals raise ``KeyboardInterrupt``; one that the shell has set to be ignored stays so."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def ignore() -> None:
    """Let nothing disturb what is done last."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def came() -> bool:
    """True if one of them came, also where a library swallowed the exception or made another one of it."""
    return _came


def check() -> None:
    """Raise again what a library may have swallowed."""
    if _came:
        raise KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[None]:
    """Raise what comes inside only at the end: a library that is being loaded may swallow it there, or abort."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
    check()


def _stop(_number: int, _frame: FrameType | None) -> None:
    global _came
    _came = True
    if not _deferred:
        raise KeyboardInterrupt
