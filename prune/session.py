"""A session: what ``compress.attach`` returns, between a user's optimizer and the pruning mathematics.

The session listens to the optimizer's steps. In the warm-up it does nothing. Then, in rounds, it chooses the
units of the lowest saliency and brings each, step by step, to zero (:mod:`compress.prune.dhspg`); units that are zero
stay so. What the optimizer does is not touched otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress import data as datasets
from compress.errors import BadInput
from compress.graph import costs
from compress.graph.surgery import planned, remove
from compress.graph.trace import trace
from compress.prune.ap import Activating
from compress.prune.api import Pruned
from compress.prune.dhspg import Blocks, half_space_step
from compress.prune.goal import Goal
from compress.prune.prepared import Prepared, evaluating
from compress.prune.ranking import Criterion, Scores
from compress.prune.saliency import SEEN, Gradients
from compress.prune.schedule import Schedule
from compress.types import Budget, Context, Note, Plan, Record, State, Target

LABEL = "prune while training"


class Session:
    """A training run that prunes; a context manager, made by :func:`compress.attach`.

    Inside the ``with`` block, :meth:`step` takes the place of ``optimizer.step()`` (which does the same, so that
    what calls the optimizer itself may go on to). With ``torch.amp.GradScaler`` use ``scaler.step(session)`` and
    ``scaler.unscale_(session)``, or the optimizer in both. Schedulers, clipping and accumulation need nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        goal: Goal,
        target: Target,
        criterion: str | Criterion,
        schedule: Schedule,
        seed: int,
    ) -> None:
        self.model, self.optimizer, self.goal, self.schedule = model, optimizer, goal, schedule
        self._target, self._criterion, self._seed = target, criterion, seed
        self._named = criterion.criterion if isinstance(criterion, Activating) else criterion
        self._ready: Prepared | None = None
        self._caught: Any = None
        self._hooks: list[Any] = []
        self._loaded: Mapping[str, Any] | None = None
        self._steps, self._seconds = 0, 0.0
        self._settled: list[int] = []
        self._shrinking: list[int] = []
        self._before: list[Tensor] | None = None
        self._alive = torch.zeros(0, dtype=torch.bool)

    # --- the training loop's side -------------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        self._hooks.append(self.optimizer.register_step_pre_hook(self._entering))
        self._hooks.append(self.optimizer.register_step_post_hook(self._leaving))
        if self._ready is None:
            self._hooks.append(self.model.register_forward_pre_hook(self._catch))
        return self

    def __exit__(self, *details: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._before = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The optimizer's step and ours. Returns what the optimizer's does.

        Raises:
            BadInput: outside the ``with`` block; and at the first step, where no example inputs were given, what
                :func:`compress.prune.prune` raises.
        """
        if not self._hooks:
            raise BadInput("the session isn't open: with compress.attach(...) as session, and step inside the block")
        return self.optimizer.step() if closure is None else self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The optimizer's."""
        self.optimizer.zero_grad(set_to_none)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's."""
        return self.optimizer.param_groups

    # --- what is known so far -----------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far."""
        return self._steps

    @property
    def redundant_units(self) -> int:
        """How many units will be zero in the end; 0 before the network has been looked at."""
        return sum(self._ready.goes) if self._ready is not None else 0

    @property
    def zero_units(self) -> int:
        """How many of them are exactly zero now."""
        return len(self._settled) + len(self._shrinking) - int(self._alive.sum())

    @property
    def notes(self) -> tuple[Note, ...]:
        """What is left alone or treated in another way, and why; empty before the network has been looked at."""
        return self._ready.notes if self._ready is not None else ()

    # --- the optimizer's side -----------------------------------------------------------------------------------------

    def prepare(self, example: Tensor) -> None:
        """Look at the network: groups, amounts, and the proof that they are zero-invariant.

        Raises:
            Untraceable, NoPrunableAxis, BadInput: as :func:`compress.prune.prune`.
        """
        home = next(self.model.parameters()).device
        multiple = self._target.channel_multiple
        self._ready = Prepared.of(
            self.model, self.optimizer, example.detach().to(home), self.goal, multiple, self._seed
        )
        self._gradients = Gradients(self._ready.blocks)
        self._start = torch.zeros(self._ready.blocks.units, dtype=torch.float64, device=home)
        self._cut = torch.zeros_like(self._start)
        if self._loaded is not None:
            self._restore(self._ready, self._loaded)
            self._loaded = None

    def _catch(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if self._caught is None and arguments and isinstance(arguments[0], Tensor):
            self._caught = arguments[0].detach().clone()

    def _prepared(self) -> Prepared:
        if self._ready is None:
            if self._caught is None:
                raise BadInput(
                    "the model has not been called with a tensor before the first step; give example_inputs="
                )
            self.prepare(self._caught)
            self._caught = None
        assert self._ready is not None
        return self._ready

    @torch.no_grad()
    def _entering(self, optimizer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        closure = named.get("closure", arguments[1] if len(arguments) > 1 else None)
        if self._ready is None and self._caught is None and closure is not None:
            return  # the closure is about to call the model for the first time
        ready, clock = self._prepared(), time.perf_counter()
        bounds = self.schedule.bounds
        coming = next((bound for bound in bounds[:-1] if bound >= self._steps), None)
        if coming is not None and coming - self._steps < SEEN and isinstance(self._named, str):
            self._gradients.see()
        number = self.schedule.round_of(self._steps)
        if number is not None and self._steps == bounds[number]:
            self._choose(ready, [round(self.schedule.share(number) * n) for n in ready.goes])
        self._before = self._blocks.gather() if self._shrinking else None
        self._seconds += time.perf_counter() - clock

    @torch.no_grad()
    def _leaving(self, *unused: Any) -> None:
        clock = time.perf_counter()
        if self._before is not None:
            number = self.schedule.round_of(self._steps)
            assert number is not None
            first, end = self.schedule.bounds[number : number + 2]
            bounded = self._steps - first < self.schedule.bounded * (end - first)
            was, epsilon = self._alive, self.schedule.epsilon
            self._alive, norm = half_space_step(self._blocks, self._before, was, end - self._steps, epsilon, bounded)
            where = torch.tensor(self._shrinking, device=norm.device)
            share = norm / self._start[where].clamp_min(torch.finfo(norm.dtype).tiny)
            self._cut[where] = torch.where(was & ~self._alive, share, self._cut[where])
            self._before = None
        if self._settled:
            # Momentum, or Adam, would move on from zero.
            self._zero.put([torch.zeros_like(value) for value in self._zero.gather()])
        self._steps += 1
        if self._steps in self.schedule.bounds[1:]:
            self._settle()
        self._seconds += time.perf_counter() - clock

    def _settle(self) -> None:
        """The round is over: its units are zero and stay so."""
        if self._shrinking:
            assert self._ready is not None
            self._settled, self._shrinking = sorted(self._settled + self._shrinking), []
            self._alive = self._alive[:0]
            self._zero = self._ready.some(self._settled)

    def _choose(self, ready: Prepared, totals: list[int]) -> None:
        """Let the units with the lowest scores shrink until each group has ``totals`` redundant ones."""
        self._shrinking = self._lowest(ready, totals)
        self._gradients.forget()
        if self._shrinking:
            self._follow(ready)
            x = self._blocks.gather()
            self._start[torch.tensor(self._shrinking, device=self._start.device)] = self._blocks.dot(x, x).sqrt()

    def _follow(self, ready: Prepared) -> None:
        self._blocks: Blocks = ready.some(self._shrinking)
        self._alive = torch.ones(len(self._shrinking), dtype=torch.bool, device=self._blocks.device)

    def _lowest(self, ready: Prepared, totals: list[int]) -> list[int]:
        taken = {*self._settled, *self._shrinking}
        chosen: list[int] = []
        if len(taken) == sum(totals):
            return chosen
        for each, score, total in zip(ready.slices, self._scores(ready), totals, strict=True):
            order = [each.start + i for i in torch.argsort(score.double().cpu(), stable=True).tolist()]
            free = [number for number in order if number not in taken]
            chosen += free[: max(0, total - (len(order) - len(free)))]
        return sorted(chosen)

    def _scores(self, ready: Prepared) -> Scores:
        dependencies = ready.zero.dependencies
        inputs = datasets.from_python(ready.example.cpu(), divisible=False)
        context = Context(self._target, Budget(), inputs, torch.Generator().manual_seed(self._seed))
        with evaluating(self.model), torch.enable_grad():
            if not isinstance(self._named, str):
                return self._criterion(self.model, ready.network, dependencies, context)  # type: ignore[operator]
            scores = self._gradients.scores(self._named, ready.slices)
            if isinstance(self._criterion, Activating):
                return self._criterion.weighed(scores, self.model, dependencies, self._criterion.batch(context))
            return scores

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the model's and the optimizer's own ``state_dict``; tensors on the CPU."""
        if self._ready is None:
            return dict(self._loaded) if self._loaded is not None else {"steps": 0}
        return {
            "steps": self._steps,
            "schedule": list(self.schedule.bounds),
            "goes": self._goes(self._ready),
            "settled": list(self._settled),
            "shrinking": list(self._shrinking),
            "alive": self._alive.cpu().clone(),
            "start": self._start.cpu().clone(),
            "cut": self._cut.cpu().clone(),
            "gradients": self._gradients.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, after the model's and the optimizer's own ``load_state_dict``.

        Raises:
            BadInput: it is of another network, another goal or another schedule.
        """
        if self._ready is not None:
            self._restore(self._ready, state)
        else:
            self._loaded = dict(state)

    def _restore(self, ready: Prepared, state: Mapping[str, Any]) -> None:
        if state["steps"] == 0:
            return
        if state["goes"] != self._goes(ready) or state["schedule"] != list(self.schedule.bounds):
            raise BadInput(
                "the session's checkpoint is of another network, goal or schedule; attach with the arguments it had"
            )
        self._steps, self._settled = int(state["steps"]), list(state["settled"])
        self._shrinking = list(state["shrinking"])
        home = ready.blocks.device
        self._start, self._cut = state["start"].to(home, copy=True), state["cut"].to(home, copy=True)
        self._gradients.load_state_dict(state["gradients"])
        if self._settled:
            self._zero = ready.some(self._settled)
        if self._shrinking:
            self._follow(ready)
            self._alive = state["alive"].to(home, copy=True)

    def _goes(self, ready: Prepared) -> list[list[Any]]:
        return [[group.name, n] for group, n in zip(ready.zero.dependencies.groups, ready.goes, strict=True)]

    # --- the result ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def result(self) -> Pruned:
        """The smaller network, of the user's own class, in evaluation mode; the trained one is not changed.

        After the schedule's last round its outputs are those of the trained network, to float tolerance. Before,
        the units that aren't zero yet are cut all the same (the ones that would be chosen now); the report says how
        many, and how far the outputs are apart.

        Raises:
            BadInput: not one step was taken.
        """
        if self._ready is None or not self._steps:
            raise BadInput("no step was taken, so nothing is pruned; call session.step() in the training loop")
        ready = self._ready
        missing = self._lowest(ready, list(ready.goes))
        numbers = sorted({*self._settled, *self._shrinking, *missing})
        early = len(numbers) - self.zero_units
        units = [ready.units[number] for number in numbers]
        dependencies = ready.zero.dependencies
        small = remove(self.model, dependencies, units).eval()
        for parameter in small.parameters():
            parameter.grad = None
        with evaluating(self.model):
            trained, cut = self.model(ready.example), small(ready.example)
        scale = float(trained.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
        difference = float((trained - cut).abs().max()) / scale
        after = costs.size(trace(small, (ready.example,)))
        notes = ready.notes
        if early:
            needs = self.schedule.bounds[-1]
            why = f"not zero after {self._steps} steps, removed all the same; the schedule needs {needs}"
            notes = (*notes, Note("", f"{early} of {len(numbers)} units", why))
        settings = {
            "macs": self.goal.macs,
            "params": self.goal.params,
            "skip": list(self.goal.skip),
            "steps": self._steps,
            "units": len(numbers),
            "units_not_zero": early,
            "largest_norm_cut": float(self._cut.max()),
            "output_difference": difference,
        }
        plan = planned(Plan(seed=self._seed), dependencies, units)
        report = Record(LABEL, settings, self._seconds, ready.size, after, notes)
        return Pruned(small, plan, report, State(small, plan, (report,), notes=notes))
