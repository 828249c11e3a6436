"""Weighted channels: the layers that read a group take its units with weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.graph.groups import Group, Slot


def columns(group: Group, weights: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[Slot, Tensor]:
    """For each slot that reads the group, a factor for each index along it, shaped to broadcast over the parameter.

    Args:
        group: of a network.
        weights: (units,) floating point; gradients flow through.
        shapes: of the network's parameters.
    """
    found = {}
    for name, axis in group.consumers:
        shape = shapes[name]
        index = torch.tensor([i for unit in group.units for i in unit.members[name, axis]], device=weights.device)
        times = torch.tensor([len(unit.members[name, axis]) for unit in group.units], device=weights.device)
        factors = torch.ones(shape[axis], dtype=weights.dtype, device=weights.device)
        factors = factors.index_put((index,), weights.repeat_interleave(times))
        found[name, axis] = factors.view([-1 if i == axis else 1 for i in range(len(shape))])
    return found


def reweigh(
    model: nn.Module, groups: Sequence[Group], weights: Sequence[Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Multiply, in place, the weights with which layers read each unit of ``groups`` by ``weights``, (units,) each."""
    with torch.no_grad():
        for group, each in zip(groups, weights, strict=True):
            for (name, _), factors in columns(group, each, shapes).items():
                parameter = model.get_parameter(name)
                parameter.mul_(factors.to(parameter))
