"""What a training run needs to know before it prunes: which units can go, and how many of each group."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from compress.errors import UnknownName
from compress.graph import costs
from compress.graph.groups import Unit
from compress.graph.trace import Network, trace
from compress.prune.amounts import uniform
from compress.prune.counter import Counter
from compress.prune.dhspg import Blocks, Part
from compress.prune.goal import Goal
from compress.prune.otov2 import ZeroInvariant, zero_invariant
from compress.prune.prunable import prunable
from compress.types import Note, Size


@dataclass(frozen=True)
class Prepared:
    """The zero-invariant groups of a network that is trained, its units numbered from 0 across groups.

    Attributes:
        network: the trace.
        example: the batch it was made with.
        zero: the zero-invariant groups.
        slices: for each group its units' numbers.
        goes: how many units of each group are redundant.
        blocks: the parameters of all units.
        size: of the network as it is.
    """

    network: Network
    example: torch.Tensor
    zero: ZeroInvariant
    slices: tuple[slice, ...]
    goes: tuple[int, ...]
    blocks: Blocks
    size: Size

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        example: torch.Tensor,
        goal: Goal,
        multiple: int,
        seed: int,
    ) -> Prepared:
        """Trace ``model``, prove its zero-invariant groups and count what has to go.

        Raises:
            Untraceable, NoPrunableAxis, BadInput: as :func:`compress.prune.prune`.
        """
        network = trace(model, (example,))
        layers = {operator.path for operator in costs.layer_operators(network)}
        for layer in goal.skip:
            if layer not in layers:
                near = difflib.get_close_matches(layer, layers, 3)
                hint = "skip= takes paths of convolutions and linear layers"
                raise UnknownName("layer", layer, near or layers, hint)
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad} & trained
        with evaluating(model):
            dependencies = prunable(model, network, goal.skip)
            zero = zero_invariant(model, dependencies, network.example_inputs[0], trained, seed)
        groups = zero.dependencies.groups
        kept = uniform(Counter.of(network, zero.dependencies), goal, multiple)
        starts = [sum(len(group.units) for group in groups[:i]) for i in range(len(groups) + 1)]
        slices = tuple(slice(a, b) for a, b in itertools.pairwise(starts))
        goes = tuple(len(group.units) - stays for group, stays in zip(groups, kept, strict=True))
        blocks = _blocks(model, zero, starts)
        return cls(network, example, zero, slices, goes, blocks, costs.size(network))

    @property
    def notes(self) -> tuple[Note, ...]:
        """What was left alone or treated in another way, and why."""
        found = (*self.zero.dependencies.left_alone, *self.zero.notes, *self.network.notes)
        return tuple(dict.fromkeys(found))

    @property
    def units(self) -> tuple[Unit, ...]:
        """All units by their numbers."""
        return tuple(unit for group in self.zero.dependencies.groups for unit in group.units)

    def some(self, numbers: Sequence[int]) -> Blocks:
        """The parameters of some units, numbered from 0 in the order given."""
        place = torch.full((self.blocks.units,), -1, dtype=torch.int64)
        place[torch.tensor(numbers, dtype=torch.int64)] = torch.arange(len(numbers))
        place = place.to(self.blocks.device)
        parts = []
        for part in self.blocks.parts:
            owners = place[part.owners]
            wanted = owners >= 0
            if bool(wanted.any()):
                parts.append(Part(part.parameter, part.axis, part.indices[wanted], owners[wanted]))
        return Blocks(tuple(parts), len(numbers))


def _blocks(model: nn.Module, zero: ZeroInvariant, starts: Sequence[int]) -> Blocks:
    parts = []
    for group, slots, start in zip(zero.dependencies.groups, zero.slots, starts, strict=False):
        for slot in slots:
            pairs = [(i, start + n) for n, unit in enumerate(group.units) for i in unit.members[slot]]
            parameter = model.get_parameter(slot[0])
            indices, owners = torch.tensor(pairs, dtype=torch.int64, device=parameter.device).unbind(1)
            parts.append(Part(parameter, slot[1], indices, owners))
    return Blocks(tuple(parts), starts[-1])


class evaluating:  # noqa: N801  # a context manager, used like a function
    """``model`` in evaluation mode for a while; each module gets its own mode back."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()

    def __exit__(self, *details: object) -> None:
        for module, mode in self._modes:
            module.training = mode
