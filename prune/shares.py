"""Ways to share out what goes over the groups, by the names that ``prune(amounts=...)`` knows them by.

Each gives one weight a group from the weights of the network alone; group i then keeps the share
``min(1, s * weight[i])`` of its units (:func:`compress.prune.amounts.proportional`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from torch import nn

from compress.errors import BadInput, UnknownName
from compress.graph.groups import Dependencies
from compress.prune import farms
from compress.types import Stage


def equal(model: nn.Module, dependencies: Dependencies) -> list[float]:
    """1 for every group: all lose the same share."""
    return [1.0] * len(dependencies.groups)


AMOUNTS: Mapping[str, Callable[[nn.Module, Dependencies], Sequence[float]]] = {
    "uniform": equal,
    "farms": farms.weights,
}
"""Allocator -> one weight above 0 a group."""


def with_amounts(stage: Stage, name: str) -> Stage:
    """``stage`` with the allocator ``name``.

    Raises:
        UnknownName: there is none of that name.
        BadInput: the stage's method decides on its own how much goes from where.
    """
    if name not in AMOUNTS:
        raise UnknownName("amounts", name, AMOUNTS)
    chosen: Any = stage
    if "amounts" not in {field.name for field in fields(chosen)}:
        raise BadInput(
            f"amounts={name!r}: {getattr(stage, 'label', 'this method')} decides itself how much goes from where; "
            "leave amounts= out, or choose a method that ranks units, such as norm or taylor"
        )
    result: Stage = replace(chosen, amounts=name)
    return result
