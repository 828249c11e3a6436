"""When a training run prunes: plain steps, then the redundant units go in rounds, then the rest recovers."""

from __future__ import annotations

from dataclasses import dataclass

from compress.errors import BadInput


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a run of ``steps`` optimizer steps is divided.

    Attributes:
        steps: of the whole run, 1 or more.
        warmup: share of plain steps at the start, in [0, 1).
        done: share after which the asked-for sparsity is reached, in (warmup, 1].
        rounds: in how many rounds the redundant units are chosen and driven to zero; the paper has one.
        epsilon: of the half-space projection, in [0, 1): larger sets units to zero from further away.
        bounded: share of each round, in [0, 1], in which a unit shrinks only as far as the objective falls too.
    """

    steps: int
    warmup: float = 0.1
    done: float = 0.6
    rounds: int = 1
    epsilon: float = 0.0
    bounded: float = 0.5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise BadInput(f"steps={self.steps}: the training run has at least one optimizer step")
        if not 0 <= self.warmup < self.done <= 1:
            raise BadInput(f"warmup={self.warmup:g}, done={self.done:g}: they need 0 <= warmup < done <= 1")
        if self.rounds < 1:
            raise BadInput(f"rounds={self.rounds}: pruning takes at least one round")
        if not 0 <= self.epsilon < 1:
            raise BadInput(f"epsilon={self.epsilon:g}: the half-space's epsilon lies in [0, 1)")
        if not 0 <= self.bounded <= 1:
            raise BadInput(f"bounded={self.bounded:g}: a share of each round lies in [0, 1]")

    @property
    def bounds(self) -> tuple[int, ...]:
        """The steps (from 0) at which each round begins, and the one at which the last has ended."""
        end = max(1, round(self.done * self.steps))
        rounds = min(self.rounds, end)
        start = min(round(self.warmup * self.steps), end - rounds)
        return tuple(start + (end - start) * i // rounds for i in range(rounds + 1))

    def round_of(self, step: int) -> int | None:
        """The round (from 0) that ``step`` lies in; None before the first and after the last."""
        bounds = self.bounds
        return next((i for i in range(len(bounds) - 1) if bounds[i] <= step < bounds[i + 1]), None)

    def share(self, number: int) -> float:
        """The share of the redundant units that are chosen by round ``number`` (from 0), that round included."""
        return (number + 1) / (len(self.bounds) - 1)
