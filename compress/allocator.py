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

ASKED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
"""Variables by which a user asks glibc for thresholds of their own."""


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next block, where the environment asks for nothing else (:data:`ASKED`).

    A step of training frees all activations. By default they go back to the kernel, which hands out the same pages,
    cleared, at the next step: some percent of a small network's training. Other C libraries stay as they are.
    """
    if any(name in os.environ for name in ASKED):
        return
    with suppress(OSError, AttributeError, TypeError):  # as there is no such function elsewhere
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, ON_THE_HEAP)
        mallopt(M_TRIM_THRESHOLD, KEPT)


__all__ = ["keep_freed_memory"]
