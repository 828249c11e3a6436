"""The command, ``compress`` or ``python -m compress``: catches signals before anything else is imported."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    # Nothing but the handlers is imported first, so that an interrupt is met wherever it comes.
    from compress.cli import interrupts

    # OpenMP threads that spin for long stall every other process on a busy machine; libgomp reads this once.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        interrupts.install()
        from compress.allocator import keep_freed_memory

        keep_freed_memory()
        from compress.cli.shell import run

        status = run(sys.argv[1:])
        interrupts.ignore()
    except KeyboardInterrupt:
        interrupts.ignore()
        sys.stderr.write("error: interrupted\n")
        status = 130
    _end(status)


def _end(status: int) -> NoReturn:
    """End at once: to free what PyTorch, TVM and ONNX Runtime hold, piece by piece, takes a second and more.

    Nor does CPython get to end with a signal in place of the status, as it does after an interrupt that passed through
    exec() of a string, as in the making of a dataclass.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
