"""Who is told how a run goes on: the command line draws it, scripts may listen too."""

from __future__ import annotations

from typing import Protocol

from compress.results import Candidate


class Watcher(Protocol):
    """Called as a run goes on, from the thread that runs it."""

    def begin(self, total: int, finished: int) -> None:
        """``total`` candidates will be made, the baseline among them; ``finished`` are there from before."""

    def candidate(self, name: str) -> None:
        """Work on this candidate begins."""

    def message(self, text: str) -> None:
        """What is happening, in a short line."""

    def finished(self, candidate: Candidate) -> None:
        """This candidate is made (its latency isn't measured yet)."""

    def dropped(self, name: str, reason: str) -> None:
        """This candidate can't run on the target."""

    def phase(self, text: str) -> None:
        """Something that concerns all candidates begins."""

    def said(self, text: str) -> None:
        """Something out of the ordinary that changes no result, such as a damaged entry of the cache."""


class Silent:
    """A watcher that does nothing."""

    def begin(self, total: int, finished: int) -> None:
        """Nothing."""

    def candidate(self, name: str) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def finished(self, candidate: Candidate) -> None:
        """Nothing."""

    def dropped(self, name: str, reason: str) -> None:
        """Nothing."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def said(self, text: str) -> None:
        """Nothing."""
