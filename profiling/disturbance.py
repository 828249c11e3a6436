"""What disturbs a measurement on this machine: other programs, a host that takes the processor, a clock that falls.

Each is told from what the system says, as far as it does: involuntary context switches of our own process, the time
that others had of the cores (``/proc/stat``, stolen time too), the processor's own count of thermal throttling. Where
a clock's frequency isn't told, as in a virtual machine, a loop of a fixed number of steps says how fast the core is.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

QUIET_PERCENT = 5.0
"""Of the cores: what other programs may use before it is said."""
SLOWER = 0.05
"""How much longer the fixed loop may take at the end than at the beginning before it is said."""
STEPS, TRIES = 4000, 5
THROTTLED = "devices/system/cpu/cpu*/thermal_throttle/*_throttle_count"


class Watch:
    """Looks on while something is measured.

    Args:
        system: where the kernel's files lie.
    """

    def __init__(self, system: Path = Path("/")) -> None:
        self.system = system
        self.loops: list[float] = []

    def __enter__(self) -> Watch:
        self.loops = []
        self.clock()
        self._start = time.perf_counter(), _busy_s(self.system), self._throttled()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clock()
        begun, busy, throttled = self._start
        now, after = time.perf_counter(), _busy_s(self.system)
        self.others_percent: float | None = None
        if busy is not None and after is not None:
            self.others_percent = max(0.0, 100 * (after - busy) / ((now - begun) * (os.cpu_count() or 1)))
        self.throttled = self._throttled() - throttled

    def interruptions(self) -> int:
        """How often the system has taken the processor from this process, all its threads together."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw

    def clock(self) -> None:
        """Time the fixed loop; the quickest of a few, which nobody interrupted."""
        self.loops.append(min(_loop() for _ in range(TRIES)))

    def conditions(self) -> dict[str, Any]:
        """What was noticed, once it is over; nothing where nothing was."""
        found: dict[str, Any] = {}
        if self.others_percent is not None and self.others_percent > QUIET_PERCENT:
            found["other_programs"] = f"{self.others_percent:.0f}% of the cores"
        fallen = slowing(self.loops)
        if self.throttled:
            found["throttled"] = f"{self.throttled} times, as the processor counted"
        elif fallen > SLOWER:
            found["throttled"] = f"the clock fell: the same loop took {100 * fallen:.0f}% longer at the end"
        return found

    def _throttled(self) -> int:
        total = 0
        for path in (self.system / "sys").glob(THROTTLED):
            try:
                total += int(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
        return total


def slowing(loops: list[float]) -> float:
    """How much longer the loop takes in the last third than in the first, relative; by the quickest of each."""
    third = max(1, len(loops) // 3)
    return min(loops[-third:]) / min(loops[:third]) - 1


def _loop() -> float:
    total, start = 0, time.perf_counter()
    for step in range(STEPS):
        total += step & 7
    return time.perf_counter() - start


def _busy_s(system: Path) -> float | None:
    """Seconds of all cores that weren't idle and weren't ours: other programs', and what a host took."""
    try:
        first = (system / "proc" / "stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
        user, nice, kernel, _idle, _waiting, hard, soft, stolen = (int(field) for field in first[1:9])
    except (OSError, ValueError):
        return None
    own = os.times()
    mine = own.user + own.system + own.children_user + own.children_system
    return (user + nice + kernel + hard + soft + stolen) / os.sysconf("SC_CLK_TCK") - mine


@contextmanager
def pinned() -> Iterator[int | None]:
    """Keep the calling thread on one core; which, or None where the system doesn't allow it.

    The first of those that it may use: ONNX Runtime keeps the threads of its own away from that one. Threads that are
    there already go on where they are; none may be started meanwhile, as it would stay on the same core.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
    except OSError:
        yield None
        return
    try:
        yield min(before)
    finally:
        os.sched_setaffinity(0, before)


__all__ = ["Watch", "pinned", "slowing"]
