"""Pruning by the first-order Taylor expansion of the loss.

Molchanov et al., *Importance Estimation for Neural Network Pruning*, CVPR 2019. With a gate ``z = 1`` on a unit,
the squared change of the loss E that its removal makes is, to first order, ``I = (dE/dz)^2`` (their equation 9),
estimated over batches and averaged.

Here the gate of a unit of a dependency group stands on everything that *reads* its channels, over all branches
that share them: ``dE/dz = sum over the reading layers of sum_s (dE/dw_s) w_s``, the sum over the weights that
multiply the unit. As these layers are linear in their weights, ``z = 0`` is exactly the network without the
unit, batch norm, residual sums and repeated indices behind a flatten included. Departures: the paper removes a
few units at a time during training, this removes all at once, on calibration inputs.

The loss E, by what the inputs bring:

* class labels: cross-entropy.
* targets of the output's shape: mean squared error.
* neither: the distance to the network's own output, perturbed: ``E = |f(x) - t|^2 / 2`` with the constant
  ``t = f(x) + e``, e standard normal. Without e the gradient would be zero; with it the expectation of
  ``(dE/dz)^2`` over e is ``|df/dz|^2``, the squared distance that the output moves, to leading order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from compress.graph.groups import Dependencies, Slot
from compress.graph.trace import Network
from compress.prune.goal import Goal
from compress.prune.ranking import remove_lowest
from compress.types import Context, State

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From the network's outputs and the labels (or targets) of a batch, a scalar."""


@dataclass(frozen=True, slots=True)
class Taylor:
    """Remove the units whose removal changes the loss least, to first order, until ``goal`` is met.

    ``amounts`` is one of :data:`compress.prune.shares.AMOUNTS`; ``batch`` is how many inputs share one
    gradient, 1 or more: fewer are slower and see what larger batches average away.
    """

    goal: Goal
    amounts: str = "uniform"
    batch: int = 32
    label: ClassVar[str] = "prune by Taylor expansion"

    def __call__(self, state: State, context: Context) -> State:
        """The state with a smaller network and the plan that says which channels stay."""

        def scores(
            model: nn.Module, network: Network, dependencies: Dependencies, context: Context
        ) -> list[torch.Tensor]:
            # A network whose code fixes the batch size takes one input at a time.
            batch = self.batch if network.dynamic_batch else 1
            return importances(model, dependencies, context, task_loss(self.goal, context), batch)

        return remove_lowest(state, context, self.goal, scores, self.amounts)


def task_loss(goal: Goal, context: Context) -> Loss:
    """The loss that the context's data allow."""

    def loss(outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if goal.sees_data and context.data.task == "classification" and outputs.dim() == 2:
            return F.cross_entropy(outputs, wanted)
        if goal.sees_data and context.data.task == "reconstruction":
            # One target an input comes as (N,), and the network's one output as (N, 1).
            if outputs.shape == (*wanted.shape, 1):
                wanted = wanted[..., None]
            if outputs.shape == wanted.shape:
                return F.mse_loss(outputs, wanted)
        noise = torch.randn(outputs.shape, generator=context.generator).to(outputs.device)
        return (outputs - (outputs.detach() + noise)).square().sum() / (2 * len(outputs))

    return loss


def importances(
    model: nn.Module, dependencies: Dependencies, context: Context, loss: Loss, batch: int
) -> list[torch.Tensor]:
    """The mean over batches of ``(dE/dz)^2`` for the units of each group, shape (units,), float64.

    Args:
        model: in evaluation mode; it is not changed.
        dependencies: of its trace.
        context: at most ``samples`` inputs of its training split are read.
        loss: E.
        batch: inputs a gradient.
    """
    copied = copy.deepcopy(model).to(context.device).eval()
    slots = list(dict.fromkeys(slot for group in dependencies.groups for slot in group.consumers))
    names = list(dict.fromkeys(name for name, _ in slots))
    read = [copied.get_parameter(name).requires_grad_(True) for name in names]
    totals = [torch.zeros(len(group.units), dtype=torch.float64) for group in dependencies.groups]
    seen, batches = 0, 0
    for inputs, wanted in context.data.train.batches(batch, context.generator, context.device):
        if seen >= context.samples:
            break
        with torch.enable_grad():
            value = loss(copied(inputs), wanted)
        slopes = torch.autograd.grad(value, read, allow_unused=True)
        products = {
            name: (torch.zeros_like(weight) if slope is None else slope * weight.detach()).double().cpu()
            for name, weight, slope in zip(names, read, slopes, strict=True)
        }
        for total, each in zip(totals, gate_slopes(dependencies, products), strict=True):
            total += each.square()
        seen, batches = seen + len(inputs), batches + 1
    return [total / max(1, batches) for total in totals]


def gate_slopes(dependencies: Dependencies, products: dict[str, torch.Tensor]) -> Sequence[torch.Tensor]:
    """``dE/dz`` of each group's units from ``(dE/dw) w`` of the weights that read them, by parameter name."""
    sums: dict[Slot, torch.Tensor] = {}
    found = []
    for group in dependencies.groups:
        total = torch.zeros(len(group.units), dtype=torch.float64)
        for slot in group.consumers:
            name, axis = slot
            if slot not in sums:
                sums[slot] = products[name].movedim(axis, 0).flatten(1).sum(1)
            total += torch.stack([sums[slot][list(unit.members[slot])].sum() for unit in group.units])
        found.append(total)
    return found
