"""Independent slow versions of what pruning with reconstruction computes: columns by one-hot weights, lstsq."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
"""From a weight to what a layer without a bias makes of some fixed inputs."""


def designs(operator: Operator, shape: tuple[int, ...], groups: int = 1) -> list[Tensor]:
    """For each group of a layer the matrix (positions, K + 1) that its weights are multiplied with.

    Column k is what the layer makes with a one at place k of its first output's weights and zeros elsewhere;
    the last column, of ones, is the bias's. ``shape`` is the weight's.
    """
    outputs = shape[0] // groups
    width = torch.Size(shape[1:]).numel()
    found = []
    for group in range(groups):
        columns = []
        for k in range(width):
            weight = torch.zeros(shape, dtype=torch.float64)
            weight[group * outputs].view(-1)[k] = 1.0
            columns.append(_channel(operator(weight), group * outputs, len(shape)))
        found.append(torch.stack([*columns, torch.ones_like(columns[0])], 1))
    return found


def targets(y: Tensor, dimensions: int, groups: int = 1) -> list[Tensor]:
    """A layer's output as (positions, out) for each group; ``dimensions`` are those of its weight."""
    rows = torch.stack([_channel(y, i, dimensions) for i in range(y.shape[-1 if dimensions == 2 else 1])], 1)
    return list(rows.chunk(groups, 1))


def least_squares(design: Tensor, target: Tensor, keep: list[int]) -> Tensor:
    """The best weights (out, K + 1) with zeros but in the columns ``keep`` and the last."""
    place = [*keep, design.shape[1] - 1]
    solution = torch.zeros(target.shape[1], design.shape[1], dtype=torch.float64)
    solution[:, place] = torch.linalg.lstsq(design[:, place], target, driver="gelsd").solution.T
    return solution


def squared_error(design: Tensor, target: Tensor, weight: Tensor, importance: Tensor) -> float:
    """The mean over positions of the weighted squared error."""
    return float(((design @ weight.T - target).square().mean(0) * importance).sum())


def _channel(y: Tensor, i: int, dimensions: int) -> Tensor:
    return y[..., i].flatten() if dimensions == 2 else y[:, i].flatten()
