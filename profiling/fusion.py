"""Which operators a runtime computes together, as both models see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.graph.operators import Operator

MOVES_NOTHING = frozenset(
    {"flatten", "view", "reshape", "_unsafe_view", "unflatten", "squeeze", "unsqueeze"}
    | {"dropout", "feature_dropout", "alpha_dropout", "identity", "alias", "detach", "detach_copy", "contiguous"}
)
"""Kinds that only give a tensor another shape or name: no runtime spends time on them at inference."""
PADS = frozenset({"pad", "constant_pad_nd"})
"""Kinds that put zeros around an image; in front of convolutions alone files have them as padding of those."""


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


@dataclass(frozen=True, slots=True)
class Group:
    """Operators that run as one.

    Attributes:
        operator: the one that gives the group its name.
        fused: the others, in the order of execution.
        reads: the tensors that it reads from outside, each once: names of other groups or of network inputs.
        read: their elements.
        written: elements that it makes.
        moves_nothing: whether no runtime spends time on it.
    """

    operator: Operator
    fused: tuple[Operator, ...]
    reads: tuple[str, ...]
    read: int
    written: int
    moves_nothing: bool = False

    @property
    def name(self) -> str:
        """Of its operator."""
        return self.operator.name


def groups(operators: Sequence[Operator], inputs: Mapping[str, int]) -> tuple[Group, ...]:
    """The operators as they run together, in the order of their first ones.

    Args:
        operators: in the order of execution.
        inputs: elements of each of the network's inputs by name.

    Raises:
        ValueError: an operator reads a tensor that is neither made before nor a network input.
    """
    head = heads(operators)
    members: dict[str, list[Operator]] = {}
    for operator in operators:
        members.setdefault(head[operator.name], []).append(operator)
    elements = dict(inputs) | {name: max(o.output_elements for o in group) for name, group in members.items()}
    readers: dict[str, list[Operator]] = {}
    for operator in operators:
        for tensor in operator.inputs:
            readers.setdefault(tensor, []).append(operator)
    found = []
    for name, group in members.items():
        reads = _read_from_outside(group, head, elements)
        operator = next(o for o in group if o.name == name)
        found.append(
            Group(
                operator,
                tuple(o for o in group if o.name != name),
                reads,
                sum(elements[tensor] for tensor in reads),
                elements[name],
                operator.kind in MOVES_NOTHING or _is_padding(operator, readers.get(name, [])),
            )
        )
    return tuple(found)


def is_convolution(operator: Operator) -> bool:
    """Whether an operator is a convolution."""
    return bool(operator.weights and operator.in_channels) and operator.kind != "linear"


def _is_padding(operator: Operator, readers: Sequence[Operator]) -> bool:
    """Whether an operator is part of the convolutions behind it."""
    return operator.kind in PADS and bool(readers) and all(map(is_convolution, readers))


def _read_from_outside(
    group: Sequence[Operator], head: Mapping[str, str], elements: Mapping[str, int]
) -> tuple[str, ...]:
    own = head[group[0].name]
    read: dict[str, None] = {}
    for operator in group:
        for name in operator.inputs:
            tensor = head.get(name, name)
            if tensor not in elements:
                raise ValueError(f"operator {operator.name!r} reads {name!r}, neither an operator nor a network input")
            if tensor != own:
                read[tensor] = None
    return tuple(read)
