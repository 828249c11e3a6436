"""Freed memory stays with the process, unless the user asked for another treatment."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from compress.allocator import ASKED
from tests.rosters import some

PROGRAM = """
import resource, torch
from compress.allocator import keep_freed_memory
keep_freed_memory()
def step():
    held = [torch.ones(4 << 20, dtype=torch.uint8) for _ in range(32)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Prints the pages that the kernel had to hand out for five steps, each of which frees its 128 MiB (32,768 pages)."""


def faults() -> int:
    return int(subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="another C library than glibc")
@some(
    ("asked", "kept"),
    [(None, True), ("MALLOC_ARENA_MAX", True), ("MALLOC_TRIM_THRESHOLD_", False)],  # the second is about something else
    quick=[(None, True)],
)
def test_pages_are_kept_for_the_next_step(asked, kept, monkeypatch):
    for name in ASKED:
        monkeypatch.delenv(name, raising=False)
    if asked is not None:
        monkeypatch.setenv(asked, "131072" if asked in ASKED else "4")
    found = faults()
    assert found < 20_000 if kept else found > 100_000
