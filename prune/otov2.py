"""Zero-invariant groups: what has to be zero so that a channel may be cut without a trace.

Chen et al., *OTOv2: Automatic, Generic, User-Friendly*, ICLR 2023, section 3.1. The zero-invariant group of a
unit holds the parameters that make its channels: the rows of the layers that produce it, their biases, batch
norm's scale and shift. Where all of them are zero the channel is zero whatever comes in, so removing it, and
what reads it, changes no output.

The paper derives the groups from a list of operators that map zero to zero. Here each is *proven* on a copy of
the network with random parameters: half of its units are set to zero in one copy and removed from another,
and the outputs have to agree. Channels that don't vanish with what makes them (a sigmoid or a normalization
without scale behind the layer) get a wider group, which holds what reads them too; what even then disagrees
is left alone. Both are noted.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from compress.errors import NoPrunableAxis
from compress.graph.groups import Dependencies, Group, Slot, Unit
from compress.graph.surgery import remove
from compress.types import Note

AGREE = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest difference of two outputs, relative to the largest output, that counts as equal."""


_Pair = tuple[Group, tuple[Slot, ...]]


@dataclass(frozen=True)
class ZeroInvariant:
    """The zero-invariant groups of a network.

    Attributes:
        dependencies: the dependency groups whose units can be driven to zero.
        slots: for each of them, the parameters and axes whose indices form a unit's zero-invariant group.
        notes: groups that had to be widened, and groups that were left out, with the reason.
    """

    dependencies: Dependencies
    slots: tuple[tuple[Slot, ...], ...]
    notes: tuple[Note, ...]


def zero_invariant(
    model: nn.Module, dependencies: Dependencies, example: torch.Tensor, trained: Container[int], seed: int = 0
) -> ZeroInvariant:
    """The zero-invariant groups of ``model``.

    Args:
        model: any module with one input; it is not changed.
        dependencies: of its trace, those that may go.
        example: one batch, (N, ...); of floating-point inputs only the shape matters.
        trained: ``id`` of every parameter that the optimizer holds; a group with another one is left alone.
        seed: of the random parameters and inputs of the proof.

    Raises:
        NoPrunableAxis: no group is left.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    notes: list[Note] = []
    candidates: list[_Pair] = []
    for group in dependencies.groups:
        makers = making(group, parameters)
        frozen = _frozen(makers, parameters, trained)
        if frozen is not None:
            notes.append(Note(group.name, "channels", f"the optimizer doesn't train {frozen}"))
        elif len(group.units) > 1:
            candidates.append((group, makers))
    prove = _Proof(model, dependencies, example, seed)
    found = candidates if prove(candidates) else []
    for group, makers in candidates if not found else ():
        if prove([(group, makers)]):
            found.append((group, makers))
            continue
        readers = tuple(slot for slot in group.consumers if slot[0] in parameters)
        wider = group, tuple(dict.fromkeys((*makers, *readers)))
        if _frozen(readers, parameters, trained) is None and prove([wider]):
            found.append(wider)
            why = "they don't vanish with what makes them; the weights that read them are driven to zero too"
        else:
            why = "zeroing them isn't the same as removing them; they stay"
        notes.append(Note(group.name, "channels", why))
    if not found:
        raise NoPrunableAxis([f"{note.where}: {note.why}" for note in (*dependencies.left_alone, *notes)])
    groups, slots = zip(*found, strict=True)
    return ZeroInvariant(replace(dependencies, groups=groups), slots, tuple(notes))


def making(group: Group, parameters: Container[str]) -> tuple[Slot, ...]:
    """The slots of a group that make its channels: its parameters without the weights that only read them."""
    reads = set(group.consumers) - set(group.producers)
    return tuple(slot for slot in group.slots if slot not in reads and slot[0] in parameters)


def _frozen(slots: Iterable[Slot], parameters: Mapping[str, nn.Parameter], trained: Container[int]) -> str | None:
    return next((name for name, _ in slots if id(parameters[name]) not in trained), None)


def zeroed(model: nn.Module, units: Iterable[Unit], slots: Sequence[Slot]) -> None:
    """Set the indices of ``units`` along ``slots`` to zero, in place."""
    chosen = tuple(units)
    with torch.no_grad():
        for name, axis in slots:
            indices = [index for unit in chosen for index in unit.members[name, axis]]
            parameter = model.get_parameter(name)
            parameter.index_fill_(axis, torch.tensor(indices, device=parameter.device), 0.0)


class _Proof:
    """Whether groups are zero-invariant, on a copy of the network with random parameters."""

    def __init__(self, model: nn.Module, dependencies: Dependencies, example: torch.Tensor, seed: int) -> None:
        self._dependencies = dependencies
        self._dtype = torch.float64
        self._model, self._example = _randomized(model, example, self._dtype, seed)
        try:
            with torch.no_grad():
                self._model(self._example)
        except RuntimeError:
            # A network whose code makes tensors of a type of its own doesn't run in another.
            self._dtype = torch.float32
            self._model, self._example = _randomized(model, example, self._dtype, seed)

    def __call__(self, pairs: Sequence[_Pair]) -> bool:
        model = copy.deepcopy(self._model)
        for group, slots in pairs:
            zeroed(model, self._half(group), slots)
        with torch.no_grad():
            units = [unit for group, _ in pairs for unit in self._half(group)]
            smaller = remove(self._model, self._dependencies, units)
            one, two = model(self._example), smaller(self._example)
        scale = max(float(one.abs().max()), 1e-30)
        return one.shape == two.shape and float((one - two).abs().max()) <= AGREE[self._dtype] * scale

    def _half(self, group: Group) -> tuple[Unit, ...]:
        return group.units[1::2]


def _randomized(
    model: nn.Module, example: torch.Tensor, dtype: torch.dtype, seed: int
) -> tuple[nn.Module, torch.Tensor]:
    # Trained or initial weights may hide a dependence: a batch norm that starts at zero, a unit that is zero already.
    generator = torch.Generator().manual_seed(seed)
    found = copy.deepcopy(model).to(dtype).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim > 1:
                values = values / max(1, parameter[0].numel()) ** 0.5
            parameter.copy_(values)
            parameter.grad = None
        for module in found.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for buffer, low in ((module.running_mean, -0.5), (module.running_var, 0.5)):
                    if buffer is not None:
                        buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + low)
    if example.is_floating_point():
        example = torch.randn(example.shape, generator=generator, dtype=torch.float64).to(example.device, dtype)
    return found, example
