"""Remove units from a network: the user's own module comes back, of its own class, smaller."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from compress.graph.groups import Dependencies, Group, Slot, Unit, removed_indices
from compress.types import LayerPlan, Note, Plan


def remove(model: nn.Module, dependencies: Dependencies, units: Iterable[Unit]) -> nn.Module:
    """A copy of ``model`` without ``units``.

    Every parameter and buffer that they touch is cut along the right axis; the sizes that torch's own
    layers keep in attributes (``out_channels``, ``num_features``...) follow.
    """
    smaller = copy.deepcopy(model)
    kept = keep_indices(dependencies, removed_indices(units))
    for (name, axis), indices in kept.items():
        owner, attribute = _owner(smaller, name)
        old = getattr(owner, attribute)
        new = old.detach().index_select(axis, torch.tensor(indices, device=old.device)).clone()
        if isinstance(old, nn.Parameter):
            setattr(owner, attribute, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            setattr(owner, attribute, new)
    for name in {name.rpartition(".")[0] for name, _ in kept}:
        _follow(smaller.get_submodule(name))
    return smaller


def proven(model: nn.Module, dependencies: Dependencies, example: torch.Tensor) -> Dependencies:
    """The dependencies without the groups that the network's own code holds on to.

    A size that is a literal in the source (``x.view(-1, 512)``, ``groups=8``) looks in the trace like one
    that follows from a shape. So it is tried: a unit of every group is removed and the network run; if that
    fails, group by group, and a group with which it fails is left alone and noted.

    Args:
        model: in evaluation mode; it is not changed.
        dependencies: of its trace.
        example: a batch of its inputs.
    """
    with torch.no_grad():
        shape = model(example).shape

    def obstacle(groups: Iterable[Group]) -> str | None:
        units = [group.units[-1] for group in groups if len(group.units) > 1]
        try:
            with torch.no_grad():
                after = remove(model, dependencies, units)(example).shape
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            return str(error).splitlines()[0][:160]
        return None if after == shape else f"the output becomes {tuple(after)}"

    if obstacle(dependencies.groups) is None:
        return dependencies
    reasons = {group.name: obstacle([group]) for group in dependencies.groups}
    notes = tuple(
        Note(layer, "output channels", f"the network's code fixes their number: {reason}")
        for name, reason in reasons.items()
        if reason is not None
        for layer in name.split("+")
    )
    free = tuple(group for group in dependencies.groups if reasons[group.name] is None)
    return replace(dependencies, groups=free, left_alone=dependencies.left_alone + notes)


def keep_indices(dependencies: Dependencies, gone: Mapping[Slot, set[int]]) -> dict[Slot, list[int]]:
    """For each slot that loses something, the indices that stay, ascending."""
    return {
        (name, axis): [i for i in range(dependencies.shapes[name][axis]) if i not in indices]
        for (name, axis), indices in gone.items()
    }


def planned(plan: Plan, dependencies: Dependencies, units: Iterable[Unit]) -> Plan:
    """``plan`` with the channels that stay when ``units`` go, for every layer that loses outputs."""
    kept = keep_indices(dependencies, removed_indices(units))
    making = {slot for group in dependencies.groups for slot in group.producers}
    layers = []
    for (name, axis), indices in sorted(kept.items()):
        if (name, axis) in making:
            layer = name.removesuffix(".weight")
            layers.append(LayerPlan(layer, tuple(indices), plan.layer(layer).precision))
    return plan.updated(*layers)


def units_of(plan: Plan, dependencies: Dependencies) -> tuple[Unit, ...]:
    """The units that ``plan`` removes: those of which a producing layer doesn't keep an index."""
    keep = {layer.name: set(layer.keep) for layer in plan.layers if layer.keep is not None}
    gone = []
    for group in dependencies.groups:
        for unit in group.units:
            for slot in group.producers:
                kept = keep.get(slot[0].removesuffix(".weight"))
                if kept is not None and not kept.issuperset(unit.members[slot]):
                    gone.append(unit)
                    break
    return tuple(gone)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _follow(module: Any) -> None:
    """Set the sizes that torch's own layers hold from the tensors that they now have."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        outputs, inner = module.weight.shape[:2]
        if module.groups > 1 and inner == 1 and module.groups == module.in_channels:
            # Depthwise: as many groups as channels; a multiplier stays what it was.
            module.groups = outputs // (module.out_channels // module.in_channels)
        module.out_channels, module.in_channels = outputs, inner * module.groups
    elif isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        vector = module.weight if module.weight is not None else module.running_mean
        if vector is not None:
            module.num_features = vector.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
