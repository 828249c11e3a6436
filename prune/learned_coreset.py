"""Pruning by a learned coreset: which units stay, and their weights, for the whole network at once.

Maalouf, Eini, Mussay, Feldman, Osadchy, *A Unified Approach to Coreset Learning* (2021; TNNLS 2022). A coreset
``(C, u)`` of a weighted set ``(P, w)`` is learned from training queries ``Q`` by gradient descent on

    1/|Q| sum_q |F(C, u, q) - F(P, w, q)| + lambda |sum_{p in C} u(p) - sum_{p in P} w(p)|

Here ``P`` holds the units of all groups of the network, ``Q`` the training inputs, ``F`` what the network returns, and
``w(p)`` the norm of the weights with which the next layers read unit ``p``. A weight ``u(p) = v(p) w(p)`` multiplies
those weights by ``v(p) >= 0``. All ``v`` of all layers are learned together from the network's output, so that layers
make up for one another's errors; nothing is done layer by layer.

Departures from the paper:

- The points stay the network's own units, and only their weights are learned: what the paper does further, moving
  the points themselves, is fine-tuning, and a stage of its own.
- The support is learned too, instead of being drawn at the start: projected gradient descent (iterative hard
  thresholding, Blumensath and Davies 2009). Every few steps the units of each group with the least
  ``v(p)^2 E_q |dF/dv(p)|^2`` get ``v = 0``: the nearest point with so many units in the Gauss-Newton metric of the
  query error, its diagonal estimated by random signs. How many stay falls from all to the goal; a unit at 0 has a
  gradient still and may come back.
- The error of a query is squared, in units of the variance of the network's outputs, and the largest of a batch has a
  weight beside the mean: a mean alone lets single queries go wrong.
- ``lambda``'s term is taken group by group, relative to the group's sum, and squared.

No bound is promised: the paper's speaks of unseen queries from the distribution of the training queries, in the mean.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compress.errors import BadInput
from compress.graph.groups import Dependencies, Group
from compress.graph.traces import traced
from compress.prune.amounts import undershoot, uniform
from compress.prune.coreset import UnitCoreset, reduced
from compress.prune.counter import Counter
from compress.prune.goal import Goal
from compress.prune.prunable import prunable
from compress.prune.recalibrate import as_in_training, recalibrate
from compress.prune.reweight import columns
from compress.types import Context, State


@dataclass(frozen=True, slots=True)
class LearnedCoreset:
    """Keep the units, with weights, that a joint descent on the training queries finds.

    Attributes:
        goal: what to reach.
        steps: of gradient descent, 1 or more; the first two thirds choose, the last learns weights alone.
        batch: queries a step.
        lr: learning rate of the weights, which start at 1.
        largest: weight of the largest query error of a batch, in [0, 1]; the mean has the rest.
        balance: ``lambda``, 0 or more.
    """

    goal: Goal
    steps: int = 300
    batch: int = 128
    lr: float = 0.02
    largest: float = 0.1
    balance: float = 0.01
    label: ClassVar[str] = "prune by learned coreset"

    def __call__(self, state: State, context: Context) -> State:
        """The state with a smaller network, its plan, and a note on each group.

        Batch norms are recalibrated on inputs as in training where ``goal`` says that these are data.

        Raises:
            NoPrunableAxis: nothing can be pruned.
            BadInput: the goal is out of reach, or a setting outside its range.
        """
        if self.steps < 1 or self.batch < 1 or self.lr <= 0 or not 0 <= self.largest <= 1 or self.balance < 0:
            raise BadInput(
                f"steps={self.steps}, batch={self.batch}, lr={self.lr:g}, largest={self.largest:g}, balance="
                f"{self.balance:g}: steps and batch are 1 or more, lr above 0, largest in [0, 1], balance 0 or more"
            )
        inputs = context.data.train.inputs(context.samples, context.generator)
        network = traced(state.model, (inputs[:2],), context.shared)
        dependencies = prunable(state.model, network, self.goal.skip)
        counter = Counter.of(network, dependencies, context.target, self.goal)
        kept = uniform(counter, self.goal, context.target.channel_multiple)
        batch = min(self.batch, len(inputs)) if network.dynamic_batch else 1
        weights = learn(self, state.model, dependencies, kept, inputs, batch, context)
        reason = f"it is learned from {len(inputs)} queries, and the paper's bound is one of their distribution"
        found = [
            UnitCoreset(group.name, len(each), tuple(torch.nonzero(each).flatten().tolist()), each, None, reason)
            for group, each in zip(dependencies.groups, weights, strict=True)
        ]
        missed = undershoot(counter, self.goal, kept, context.target.channel_multiple)
        state = replace(state, notes=state.notes + missed)
        smaller = reduced(state, network, dependencies, found)
        if self.goal.sees_data and network.dynamic_batch and kept != counter.all_units:
            recalibrate(smaller.model, as_in_training(context.data, inputs, context.generator))
        return smaller


def learn(
    settings: LearnedCoreset,
    model: nn.Module,
    dependencies: Dependencies,
    kept: Sequence[int],
    inputs: Tensor,
    batch: int,
    context: Context,
) -> list[Tensor]:
    """The weights ``v`` of the units of each group, (units,) float64: above 0 for ``kept[i]`` units, 0 for the others.

    Args:
        settings: hyperparameters.
        model: in evaluation mode; it isn't changed.
        dependencies: of its trace.
        kept: how many units each group keeps.
        inputs: the queries, (N, ...).
        batch: queries a step.
        context: device, generator and progress.
    """
    groups = dependencies.groups
    if all(k == len(group.units) for k, group in zip(kept, groups, strict=True)):
        return [torch.ones(len(group.units), dtype=torch.float64) for group in groups]
    weighted = Weighted(model, dependencies, context.device)
    with torch.no_grad():
        wanted = torch.cat([weighted.plain(x) for x in inputs.split(batch)])
        scale = (wanted - wanted.mean(0)).square().flatten(1).sum(1).mean().clamp_min(1e-12)
    v = [torch.ones(len(group.units), device=context.device, requires_grad=True) for group in groups]
    masses = [reading_norms(weighted.model, group).to(context.device) for group in groups]
    optimizer = torch.optim.Adam(v, lr=settings.lr, betas=(0.9, 0.99))
    order = _batches(len(inputs), batch, context.generator)
    choosing = max(1, 2 * settings.steps // 3)
    every = max(1, choosing // 20)
    stays = [torch.ones_like(each, dtype=torch.bool) for each in v]
    for step in range(settings.steps):
        if step < choosing and step % every == 0:
            share = min(1.0, (step + every) / choosing)
            _threshold(weighted, v, stays, kept, share, inputs[next(order)], context.generator)
        chosen = next(order)
        errors = (weighted(inputs[chosen], v) - wanted[chosen]).square().flatten(1).sum(1) / scale
        loss = (1 - settings.largest) * errors.mean() + settings.largest * errors.max()
        loss = loss + settings.balance * torch.stack([imbalance(*pair) for pair in zip(v, masses, strict=True)]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for each, mask in zip(v, stays, strict=True):
                each.clamp_(min=1e-3)  # a unit that stays isn't lost to the sign
                if step >= choosing - 1:
                    each.mul_(mask)
        if (step + 1) % 100 == 0:
            context.progress(
                f"learned coreset: step {step + 1}/{settings.steps}, error {float(errors.detach().mean()):.4f}"
            )
    return [(each.detach() * mask).double().cpu() for each, mask in zip(v, stays, strict=True)]


class Weighted:
    """A network whose layers read the units of its groups with weights."""

    def __init__(self, model: nn.Module, dependencies: Dependencies, device: str) -> None:
        self.model = copy.deepcopy(model).to(device).requires_grad_(False)
        self.dependencies, self.device = dependencies, device
        self.parameters = dict(self.model.named_parameters())

    def plain(self, inputs: Tensor) -> Tensor:
        """What the network returns."""
        output = self.model(inputs.to(self.device))
        assert isinstance(output, Tensor)
        return output

    def __call__(self, inputs: Tensor, v: Sequence[Tensor]) -> Tensor:
        """What it returns when the units of group i have the weights ``v[i]``, (units,)."""
        changed: dict[str, Tensor] = {}
        for group, each in zip(self.dependencies.groups, v, strict=True):
            for (name, _), factors in columns(group, each, self.dependencies.shapes).items():
                changed[name] = changed.get(name, self.parameters[name]) * factors
        output = functional_call(self.model, changed, (inputs.to(self.device),))
        assert isinstance(output, Tensor)
        return output


def reading_norms(model: nn.Module, group: Group) -> Tensor:
    """``w(p)``: the norm of all weights with which layers read each unit, (units,)."""
    total = torch.zeros(len(group.units))
    for name, axis in group.consumers:
        squares = model.get_parameter(name).detach().cpu().movedim(axis, 0).flatten(1).square().sum(1)
        total += torch.stack([squares[list(unit.members[name, axis])].sum() for unit in group.units])
    return total.sqrt()


def imbalance(v: Tensor, masses: Tensor) -> Tensor:
    """``(sum_p v(p) w(p) / sum_p w(p) - 1)^2``."""
    return ((v * masses).sum() / masses.sum().clamp_min(1e-12) - 1).square()


def _threshold(
    weighted: Weighted,
    v: Sequence[Tensor],
    stays: list[Tensor],
    kept: Sequence[int],
    share: float,
    queries: Tensor,
    generator: torch.Generator,
) -> None:
    """Set ``v`` to 0, in place, but for the units that matter most: fewer as ``share`` goes from 0 to 1."""
    curvature = _curvature(weighted, v, queries, generator)
    for i, k in enumerate(kept):
        n = len(v[i])
        count = k if share >= 1 else max(k, round(n * (k / n) ** share))
        cost = v[i].detach().square() * curvature[i]
        stays[i] = torch.zeros_like(v[i], dtype=torch.bool)
        stays[i][torch.argsort(cost, descending=True, stable=True)[:count]] = True
        with torch.no_grad():
            v[i].mul_(stays[i])


def _curvature(
    weighted: Weighted, v: Sequence[Tensor], queries: Tensor, generator: torch.Generator, probes: int = 8
) -> list[Tensor]:
    """``sum_q |dF(q)/dv(p)|^2``, estimated: the square of the gradient of F's sum with random signs."""
    output = weighted(queries, v)
    total = [torch.zeros_like(each) for each in v]
    for probe in range(probes):
        signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
        gradients = torch.autograd.grad((output * signs).sum(), list(v), retain_graph=probe + 1 < probes)
        total = [old + gradient.square() for old, gradient in zip(total, gradients, strict=True)]
    return total


def _batches(n: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of one batch after another, without end."""
    while True:
        yield from (part for part in torch.randperm(n, generator=generator).split(batch) if len(part) == batch)
