"""How the process's memory allocator treats what is freed."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers (``malloc.h``)."""

KEPT = 1 << 30
"""Bytes that may lie free at the heap's end."""

ON_THE_HEAP = 32 << 20
"""Bytes of the largest block that comes from the heap: the most that glibc takes."""


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next block, where nothing else is asked for by ``MALLOC_*_THRESHOLD_``.

    A step of training frees all activations. By default they go back to the kernel, which hands out the same pages,
    cleared, at the next step: some percent of a small network's training. Other C libraries stay as they are.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, ON_THE_HEAP)
        mallopt(M_TRIM_THRESHOLD, KEPT)


__all__ = ["keep_freed_memory"]
