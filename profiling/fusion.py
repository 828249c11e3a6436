"""Which operators a runtime computes together, as both models see it."""

from __future__ import annotations

from collections.abc import Sequence

from compress.graph.operators import Operator

MOVES_NOTHING = frozenset(
    {"flatten", "view", "reshape", "_unsafe_view", "unflatten", "squeeze", "unsqueeze"}
    | {"dropout", "feature_dropout", "alpha_dropout", "identity", "alias", "detach", "detach_copy", "contiguous"}
)
"""Kinds that only give a tensor another shape or name: no runtime spends time on them at inference."""


def heads(operators: Sequence[Operator]) -> dict[str, str]:
    """Operator -> the operator that it is computed with: itself, unless ``fused_into`` leads on.

    A name in ``fused_into`` that isn't among ``operators`` fuses nothing.
    """
    head: dict[str, str] = {}
    into = {operator.name: operator.fused_into for operator in operators}
    for operator in operators:
        name, seen = operator.name, {operator.name}
        while (following := into[name]) is not None and following in into and following not in seen:
            name = following
            seen.add(name)
        head[operator.name] = name
    return head
