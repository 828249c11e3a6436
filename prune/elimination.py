"""Backward elimination of a group's units with the exact increase of the reconstruction error.

With ``P = G^-1`` and ``W`` the least-squares weights, removing the columns ``S`` of a unit and refitting
the others raises the squared error by

    e(S) = tr(L W_S (P_SS)^-1 W_S^T),

``L`` the weights of the outputs, and leaves ``W - W_S P_SS^-1 P_S:`` and ``P - P_:S P_SS^-1 P_S:``
(the block form of Hassibi and Stork, *Optimal Brain Surgeon*, 1993). The unit with the least sum of
``e`` over its readers goes first; one factorization of ``G`` serves selection and refit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compress.graph.moments import damped


@dataclass(frozen=True)
class Problem:
    """One reader of a group.

    Attributes:
        weight: float64 (groups, out, K + 1), the bias as the last column.
        moments: ``G``, float64 (groups, K + 1, K + 1).
        importance: ``L``, float64 (groups, out).
        columns: the columns of each unit, int64 (units, s).
    """

    weight: Tensor
    moments: Tensor
    importance: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Elimination:
    """What elimination found.

    Attributes:
        order: the units in the order in which they go.
        errors: the error when 0, 1, ... all units are gone, shape (units + 1,).
        refitted: count of units kept -> the least-squares weights for each reader, at ``checkpoints``.
    """

    order: tuple[int, ...]
    errors: np.ndarray
    refitted: dict[int, list[Tensor]]


def eliminate(problems: Sequence[Problem], units: int, checkpoints: Sequence[int]) -> Elimination:
    """Remove a group's units one after the other.

    Groups of more than 64 units lose several at a time while many are left: a 32nd of them, in turn out of
    twice as many with the least cost; all others' costs are computed anew afterwards.

    Args:
        problems: one a reader, at least one.
        units: how many there are.
        checkpoints: counts of units kept for which refitted weights are wanted.
    """
    inverses = [torch.linalg.inv(damped(problem.moments)) for problem in problems]
    weights = [problem.weight.clone() for problem in problems]
    roots = [problem.importance.sqrt()[..., None] for problem in problems]
    alive = list(range(units))
    order: list[int] = []
    errors = [0.0]
    wanted = set(checkpoints)
    refitted: dict[int, list[Tensor]] = {}
    while alive:
        if len(alive) in wanted:
            refitted[len(alive)] = [w.float() for w in weights]
        columns = [problem.columns[alive] for problem in problems]
        cost = _costs(columns, inverses, weights, roots)
        step = 1
        if units > 64:
            following = max((k for k in wanted if k < len(alive)), default=0)
            step = max(1, min(len(alive) // 32, len(alive) - following))
        if step == 1:
            chosen = [int(cost.argmin())]
            rises = [float(cost[chosen[0]])]
        else:
            near = torch.argsort(cost, stable=True)[: 2 * step]
            first, rises = _sequence([each[near] for each in columns], inverses, weights, roots, step)
            chosen = [int(near[i]) for i in first]
        gone = [alive[position] for position in chosen]
        order += gone
        errors += (errors[-1] + np.cumsum(rises)).tolist()
        alive = [unit for unit in alive if unit not in set(gone)]
        for i, problem in enumerate(problems):
            _take_out(problem.columns[gone].flatten(), inverses, weights, i)
    return Elimination(tuple(order), np.array(errors), refitted)


def _costs(
    columns: Sequence[Tensor], inverses: Sequence[Tensor], weights: Sequence[Tensor], roots: Sequence[Tensor]
) -> Tensor:
    """What removing each unit costs over all readers, (n,); ``columns`` (n, s) of each reader."""
    cost = torch.zeros(len(columns[0]), dtype=torch.float64)
    for index, inverse, weight, root in zip(columns, inverses, weights, roots, strict=True):
        block = inverse[:, index[:, :, None], index[:, None, :]]  # (groups, n, s, s)
        lost = (root * weight)[:, :, index].permute(0, 2, 3, 1)  # (groups, n, s, out)
        solved = torch.linalg.solve(block, lost)
        cost += (lost * solved).sum((0, 2, 3)).clamp_min(0).cpu()
    return cost


def _take_out(index: Tensor, inverses: list[Tensor], weights: list[Tensor], i: int) -> None:
    """Reader ``i`` without the columns ``index``, the others refitted."""
    share = torch.linalg.solve(inverses[i][:, index][:, :, index], inverses[i][:, index])
    weights[i] = weights[i] - weights[i][:, :, index] @ share
    inverses[i] = inverses[i] - inverses[i][:, :, index] @ share
    weights[i][:, :, index] = 0.0


def _sequence(
    columns: Sequence[Tensor],
    inverses: Sequence[Tensor],
    weights: Sequence[Tensor],
    roots: Sequence[Tensor],
    count: int,
) -> tuple[list[int], list[float]]:
    """``count`` of a few units, one after the other, and what each costs when those before it are gone.

    Only the units' own columns are brought up to date, all that their costs depend on; two units that stand
    in for one another don't go together.
    """
    flat = [index.flatten() for index in columns]
    small = [inverse[:, at][:, :, at] for inverse, at in zip(inverses, flat, strict=True)]
    own = [weight[:, :, at] for weight, at in zip(weights, flat, strict=True)]
    places = [torch.arange(index.numel()).view_as(index) for index in columns]
    left, chosen, rises = list(range(len(columns[0]))), list[int](), list[float]()
    for _ in range(count):
        cost = _costs([place[left] for place in places], small, own, roots)
        at = int(cost.argmin())
        chosen.append(left[at])
        rises.append(float(cost[at]))
        for i, place in enumerate(places):
            _take_out(place[left[at]], small, own, i)
        del left[at]
    return chosen, rises
