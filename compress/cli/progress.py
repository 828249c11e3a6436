"""How a run goes on, on the error stream: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compress.cli import interrupts, screen
from compress.report import words
from compress.results import Candidate
from compress.watch import Watcher

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_ID_WIDTH = 16
_FRAME_S = 0.15


@contextlib.contextmanager
def watching(quiet: bool, verbose: bool) -> Iterator[Watcher]:
    """A watcher for one run. What libraries and users' code print meanwhile goes to the error stream."""
    with contextlib.redirect_stdout(sys.stderr):
        if quiet:
            yield Lines(None, verbose=False)
            return
        console = screen.error_console()
        if not console.is_terminal or console.is_dumb_terminal:
            yield Lines(console, verbose)
            return
        with Bars(console, verbose) as bars:
            yield bars


@dataclass
class Pace:
    """How long candidates take, to say how long the rest will.

    Attributes:
        total: candidates to make; None until it is known.
        done: those that are there, from an earlier run or this one.
    """

    begun: float = field(default_factory=lambda: time.monotonic())
    total: int | None = None
    done: int = 0
    current: float | None = None
    seconds: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Work on a candidate begins."""
        self.current = time.monotonic()

    def finish(self) -> bool:
        """A candidate is there; False if it was there from before."""
        made = self.current is not None
        if self.current is not None:
            self.seconds.append(time.monotonic() - self.current)
        self.current = None
        self.done += 1
        return made

    def elapsed(self) -> float:
        """Seconds since the command began to work."""
        return time.monotonic() - self.begun

    def remaining(self) -> float | None:
        """Estimated seconds until the last candidate is there; None while there is nothing to go by.

        The first one made may be the float network, which takes no compression: it alone says too little.
        """
        if self.total is None or len(self.seconds) < 2:
            return None
        usual = sum(self.seconds[1:]) / len(self.seconds[1:])
        spent = 0.0 if self.current is None else min(usual, time.monotonic() - self.current)
        return max(0.0, usual * (self.total - self.done) - spent)


class Lines:
    """A watcher that writes plain lines, or nothing.

    Args:
        console: where to; None for nowhere.
        verbose: every step too.
    """

    def __init__(self, console: Console | None, verbose: bool) -> None:
        self.console, self.verbose = console, verbose
        self.pace = Pace()

    def begin(self, total: int, finished: int) -> None:
        """See :class:`~compress.watch.Watcher`."""
        interrupts.check()
        self.pace.total = total
        if finished:
            self._line(f"{finished} of {total} candidates are there from before")

    def candidate(self, name: str) -> None:
        """See :class:`~compress.watch.Watcher`."""
        interrupts.check()
        self.pace.start()
        if self.verbose:
            self._line(f"{name}:")

    def message(self, text: str) -> None:
        """See :class:`~compress.watch.Watcher`."""
        interrupts.check()
        if self.verbose:
            self._line(f"  {text}")

    def finished(self, candidate: Candidate) -> None:
        """See :class:`~compress.watch.Watcher`."""
        made = self.pace.finish()
        self._line(f"{candidate_line(candidate)}{'' if made else ', from before'}")
        interrupts.check()

    def dropped(self, name: str, reason: str) -> None:
        """See :class:`~compress.watch.Watcher`."""
        self.pace.finish()
        self._line(f"{name:<{_ID_WIDTH}} dropped: {reason}", "yellow")
        interrupts.check()

    def phase(self, text: str) -> None:
        """See :class:`~compress.watch.Watcher`."""
        interrupts.check()
        self._line(text, "dim")

    def said(self, text: str) -> None:
        """See :class:`~compress.watch.Watcher`."""
        self._line(text, "yellow")
        interrupts.check()

    def _line(self, text: str, style: str = "") -> None:
        if self.console is not None:
            ascii_only = self.console.options.ascii_only
            self.console.print(words.to_ascii(text) if ascii_only else text, style=style or None, soft_wrap=True)


class Bars(Lines):
    """A watcher that draws what is done, what is being done and how long the rest takes."""

    def __init__(self, console: Console, verbose: bool) -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        super().__init__(console, verbose)
        self._name, self._step = "", "load"
        self._spinner = Spinner("line" if console.options.ascii_only else "dots")
        self._live = Live(console=console, get_renderable=self._draw, auto_refresh=False, transient=True)
        self._still, self._over = threading.Event(), threading.Event()
        self._painter = threading.Thread(target=self._paint, daemon=True)

    def __enter__(self) -> Bars:
        self._live.start(refresh=True)
        self._painter.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._painter.join()
        self._live.stop()

    def _paint(self) -> None:
        while not self._over.wait(_FRAME_S):
            if not self._still.is_set():
                self._live.refresh()

    def candidate(self, name: str) -> None:
        """See :class:`~compress.watch.Watcher`."""
        super().candidate(name)
        self._name, self._step = name, "begin"
        self._still.clear()

    def message(self, text: str) -> None:
        """See :class:`~compress.watch.Watcher`."""
        super().message(text)
        self._step = text

    def phase(self, text: str) -> None:
        """See :class:`~compress.watch.Watcher`."""
        interrupts.check()
        self._name, self._step = "", text
        if self.pace.total is not None:
            # Latencies may be about to be measured: drawing would take its share of the processor.
            self._still.set()
        self._live.refresh()

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        step = Text.assemble((f"{self._name}: " if self._name else "", "bold"), self._step)
        step.no_wrap, step.overflow = True, "ellipsis"
        line = Table.grid(padding=(0, 1))
        line.add_row(self._spinner, step)
        if self.pace.total is None:
            return line
        bar = Table.grid(padding=(0, 2, 0, 0))
        known: list[Any] = [
            ProgressBar(total=self.pace.total, completed=self.pace.done, width=24, complete_style="cyan")
        ]
        bar.add_row(*known, Text(self._status(), style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(line, bar)

    def _status(self) -> str:
        pace = self.pace
        parts = [f"{pace.done} of {pace.total} candidates", f"{clock(pace.elapsed())} elapsed"]
        remaining = pace.remaining()
        if remaining is not None and pace.done < (pace.total or 0):
            parts.append(f"about {clock(remaining)} left")
        return ", ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds: 0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def candidate_line(candidate: Candidate) -> str:
    """A candidate in one line: id, accuracy, size, MACs.

    Runtimes round differently, and which one is the fastest shows when they are timed: all their accuracies are given.
    """
    accuracy = " or ".join(dict.fromkeys(words.accuracy_text(each.accuracy) for each in candidate.considered))
    macs = f"{words.count(candidate.macs)} MACs"
    return f"{candidate.id:<{_ID_WIDTH}} {accuracy:>8}  {words.size(candidate.best.bytes):>9}  {macs}"
