"""Pruning by magnitude, group by group: the baseline that every other criterion must beat.

A unit's score is the Euclidean norm of everything that makes and reads its channels, each slot divided
by its mean over the group's units so that wide layers don't drown narrow ones (the group criterion of
Fang et al., *DepGraph: Towards Any Structural Pruning*, CVPR 2023, section 3.3; for a plain chain it is
Li et al., *Pruning Filters for Efficient ConvNets*, ICLR 2017, with the 2-norm). Every group loses the
same share. Afterwards batch norms are recalibrated on training inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from compress.errors import NoPrunableAxis
from compress.graph.groups import Dependencies, Group, Unit, find
from compress.graph.surgery import planned, proven, remove
from compress.graph.trace import Network, trace
from compress.prune.amounts import Counter, uniform
from compress.types import Context, Note, State


@dataclass(frozen=True, slots=True)
class Norm:
    """Keep the fractions ``macs`` and ``params`` (each in (0, 1], None for no limit).

    ``skip`` names layers (module paths) whose channels stay; ``recalibrates`` says whether batch norms are
    estimated anew on training inputs.
    """

    macs: float | None = 0.5
    params: float | None = None
    skip: tuple[str, ...] = ()
    recalibrates: bool = True
    label: ClassVar[str] = "prune by norm"

    def __call__(self, state: State, context: Context) -> State:
        """The state with a smaller network and the plan that says which channels stay."""
        inputs = context.data.train.inputs(context.samples, context.generator)
        network = trace(state.model, (inputs[:2],))
        dependencies = prunable(state.model, network, self.skip)
        kept = uniform(Counter.of(network, dependencies), self.macs, self.params, context.target.channel_multiple)
        units = least(state.model, dependencies.groups, kept)
        model = remove(state.model, dependencies, units)
        if self.recalibrates:
            recalibrate(model, inputs, network)
        plan = planned(state.plan, dependencies, units)
        notes = state.notes + dependencies.left_alone + network.notes
        return replace(state, model=model, plan=plan, notes=tuple(dict.fromkeys(notes)))


def prunable(model: nn.Module, network: Network, skip: Sequence[str] = ()) -> Dependencies:
    """The dependencies of ``model``, which ``network`` traces, that can go.

    Groups that touch a layer in ``skip``, or that the network's own code holds on to, are left out and noted.

    Raises:
        NoPrunableAxis: nothing is left.
    """
    dependencies = proven(model, find(network), network.example_inputs[0])
    wanted = set(skip)
    stays = [group for group in dependencies.groups if wanted & set(group.name.split("+"))]
    groups = tuple(group for group in dependencies.groups if group not in stays)
    if not groups:
        raise NoPrunableAxis([f"{note.where}: {note.why}" for note in dependencies.left_alone])
    notes = tuple(Note(group.name, "channels", "you asked to skip them") for group in stays)
    return replace(dependencies, groups=groups, left_alone=dependencies.left_alone + notes)


def scores(model: nn.Module, group: Group) -> torch.Tensor:
    """The magnitude of each unit of a group, shape (units,), float64."""
    total = torch.zeros(len(group.units), dtype=torch.float64)
    for slot in (*group.producers, *group.consumers):
        name, axis = slot
        rows = model.get_parameter(name).detach().double().movedim(axis, 0).flatten(1).square().sum(1).cpu()
        each = torch.stack([rows[list(unit.members[slot])].sum() for unit in group.units])
        total += each / each.mean().clamp_min(1e-30)
    return total.sqrt()


def least(model: nn.Module, groups: Sequence[Group], kept: Sequence[int]) -> list[Unit]:
    """The units with the least magnitude, as many of each group as it doesn't keep."""
    gone: list[Unit] = []
    for group, stays in zip(groups, kept, strict=True):
        order = torch.argsort(scores(model, group), stable=True).tolist()
        gone += [group.units[i] for i in order[: len(group.units) - stays]]
    return gone


def recalibrate(model: nn.Module, inputs: torch.Tensor, network: Network, batch: int = 128) -> None:
    """Estimate the statistics of every batch norm of ``model`` anew on ``inputs``, in place."""
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    if not norms or not network.dynamic_batch:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    device = next(model.parameters()).device
    with torch.no_grad():
        for x in inputs.split(batch):
            if len(x) > 1:
                model(x.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


__all__ = ["Norm", "least", "prunable", "recalibrate", "scores"]
