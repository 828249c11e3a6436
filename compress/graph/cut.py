"""Cut units and blocks out of a network: the user's own module comes back, of its own class, smaller."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from compress.graph.attention import PrunedMultiheadAttention
from compress.graph.blocks import Block, without_blocks
from compress.graph.copies import copied
from compress.graph.groups import Dependencies, Slot, Unit, removed_indices
from compress.graph.sizes import has, lower


def remove(model: nn.Module, dependencies: Dependencies, units: Iterable[Unit]) -> nn.Module:
    """A copy of ``model`` without ``units``.

    Every parameter and buffer that they touch is cut along the right axis; the sizes that torch's own
    layers keep in attributes (``out_channels``, ``num_features``...) follow, and so do the integers in the
    user's modules that :func:`compress.graph.surgery.proven` found to have to.

    Args:
        model: the network of ``dependencies``, or what :func:`remove_blocks` left of it; not changed.
        dependencies: of its trace.
        units: of its groups.
    """
    smaller = copied(model)
    gone = removed_indices(units)
    _cut(smaller, keep_indices(dependencies, gone))
    for group in dependencies.groups:
        if group.rewrites:
            slot = group.slots[0]
            lost = sum(gone.get(slot, set()).issuperset(unit.members[slot]) for unit in group.units)
            for rewrite in group.rewrites:
                lower(smaller, rewrite, lost)
    return smaller


def remove_blocks(model: nn.Module, blocks: Iterable[Block]) -> nn.Module:
    """A copy of ``model`` with ``nn.Identity()`` in the place of each block."""
    smaller = copied(model)
    without_blocks(smaller, blocks)
    return smaller


def keep_indices(dependencies: Dependencies, gone: Mapping[Slot, set[int]]) -> dict[Slot, list[int]]:
    """For each slot that loses something, the indices that stay, ascending."""
    return {
        (name, axis): [i for i in range(dependencies.shapes[name][axis]) if i not in indices]
        for (name, axis), indices in gone.items()
    }


def _cut(model: nn.Module, kept: Mapping[Slot, list[int]]) -> None:
    by_name: dict[str, list[tuple[int, list[int]]]] = {}
    for (name, axis), indices in kept.items():
        by_name.setdefault(name, []).append((axis, indices))
    names: dict[int, list[str]] = {}
    for name in by_name:
        tensor = _tensor(model, name)
        if tensor is not None:
            names.setdefault(id(tensor), []).append(name)
    # Two names of one tensor stay two names of one tensor.
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and id(tensor) in names:
                holders.setdefault(id(tensor), []).append((module, attribute))
    touched = set()
    for key, (name, *_) in names.items():
        old = _tensor(model, name)
        assert old is not None
        new = old.detach()
        for axis, indices in by_name[name]:
            new = new.index_select(axis, torch.tensor(indices, device=old.device))
        new = new.clone()
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        for module, attribute in holders[key]:
            setattr(module, attribute, new)
        touched |= set(names[key])
    paths = {name.rsplit(".", depth)[0] for name in touched for depth in range(1, name.count(".") + 1)} | {""}
    for path in paths:
        if has(model, path):
            _follow(model.get_submodule(path))


def _tensor(model: nn.Module, name: str) -> torch.Tensor | None:
    """A parameter or buffer; None where its module is gone."""
    path, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(path), attribute, None) if has(model, path) else None


def _follow(module: Any) -> None:
    """Set the sizes that torch's own layers hold from the tensors that they now have."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        outputs, inner = module.weight.shape[:2]
        if module.groups > 1 and inner == 1 and module.groups == module.in_channels:
            # Depthwise: as many groups as channels; a multiplier stays what it was.
            module.groups = outputs // (module.out_channels // module.in_channels)
        module.out_channels, module.in_channels = outputs, inner * module.groups
    elif isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        if module.groups > 1:
            module.groups = module.weight.shape[0]  # only depthwise ones are cut
        module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        vector = module.weight if module.weight is not None else module.running_mean
        if vector is not None:
            module.num_features = vector.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        if module.weight is not None:
            module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        if module.weight is not None:
            # Whole groups went; a single one has lost channels.
            if module.num_groups > 1:
                module.num_groups = module.weight.shape[0] // (module.num_channels // module.num_groups)
            module.num_channels = module.weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
    elif isinstance(module, nn.MultiheadAttention):
        PrunedMultiheadAttention.follow(module)
