"""Integers that follow a group's size: operators' arguments, and the attributes of modules that may hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx, nn

from compress.graph.labels import Indices
from compress.graph.layout import Layout
from compress.graph.trace import module_path
from compress.graph.walk import Walk


@dataclass(frozen=True, slots=True, order=True)
class Resize:
    """In the module at ``path`` an operator takes a size that falls by ``step`` with each unit that goes."""

    path: str
    size: int
    step: int


@dataclass(frozen=True, slots=True)
class Rewrite:
    """An integer that a module holds, which falls by ``step`` with each unit that goes.

    Attributes:
        path: of the module.
        attribute: its name there.
        item: position where the attribute is a tuple or list of integers.
        step: by how much it falls.
    """

    path: str
    attribute: str
    item: int | None
    step: int


def resizes(
    walk: Walk, nodes: Iterable[fx.Node], classes: Indices, group_of: Mapping[int, int]
) -> dict[int, set[Resize]]:
    """For each group, the sizes among the axes of operators that take integers."""
    lookup = np.full(int(classes.max(initial=-1)) + 1, -1)
    for each, group in group_of.items():
        lookup[each] = group
    found: dict[int, set[Resize]] = {}
    for node in nodes:
        if not _takes_sizes(node):
            continue
        path = module_path(node).partition("@")[0]
        for operand in (node, *node.all_input_nodes):
            if operand in walk.constants:
                continue
            layouts = walk.layouts.get(operand, ())
            for layout in layouts if isinstance(layouts, list) else [layouts]:
                for group, size, step in _axes(layout, classes, lookup):
                    whole = {Resize(path, size // step, 1)} if size % step == 0 else set()
                    found.setdefault(group, set()).update({Resize(path, size, step)} | whole)
    return found


def _takes_sizes(node: fx.Node) -> bool:
    def size(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return any(size(each) for each in value)
        return isinstance(value, int) and not isinstance(value, bool) and value > 1

    return any(size(value) for value in (*node.args, *node.kwargs.values()))


def _axes(layout: Layout, classes: Indices, lookup: Indices) -> Iterator[tuple[int, int, int]]:
    """(group, size of the axis, indices a unit) for every axis along which a group's units lie."""
    for factor in layout:
        seen = classes[factor.labels]
        for position, size in enumerate(seen.shape):
            along = np.moveaxis(seen, position, 0).reshape(size, -1)[:, 0]
            if size > 1 and bool(np.all(along == along[0])):
                continue
            groups = lookup[along]
            for group in np.unique(groups[groups >= 0]):
                _, counts = np.unique(along[groups == group], return_counts=True)
                yield int(group), size, int(counts[0])


def candidates(model: nn.Module, resizes: Iterable[Resize]) -> list[Rewrite]:
    """Integers in the attributes of modules in which the operators stand that equal the sizes, innermost first."""
    found: dict[Rewrite, int] = {}
    for resize in resizes:
        path = resize.path
        while True:
            module = model.get_submodule(path) if has(model, path) else None
            for attribute, item, value in _integers(module) if module is not None else ():
                if value == resize.size:
                    found.setdefault(Rewrite(path, attribute, item, resize.step), path.count(".") + bool(path))
            if not path:
                break
            path = path.rpartition(".")[0]
    return sorted(
        found, key=lambda rewrite: (-found[rewrite], rewrite.path, rewrite.attribute, rewrite.item or 0, rewrite.step)
    )


def has(model: nn.Module, path: str) -> bool:
    """True if ``model`` has a module there."""
    for part in path.split(".") if path else ():
        child = model._modules.get(part)
        if child is None:
            return False
        model = child
    return True


FOLLOWED = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear),
    *(nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.Embedding, nn.PReLU),
    nn.MultiheadAttention,
)
"""Torch's own layers, whose sizes follow from their tensors."""


def _integers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    if isinstance(module, FOLLOWED):
        return
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int):
            yield name, None, value
        elif isinstance(value, (tuple, list)):
            for item, each in enumerate(value):
                if isinstance(each, int) and not isinstance(each, bool):
                    yield name, item, each


def lower(model: nn.Module, rewrite: Rewrite, units: int) -> None:
    """Lower the integer for ``units`` that went, in place; ``model`` keeps it where the module is gone."""
    if not has(model, rewrite.path):
        return
    module = model.get_submodule(rewrite.path)
    value = getattr(module, rewrite.attribute)
    if rewrite.item is None:
        setattr(module, rewrite.attribute, value - units * rewrite.step)
        return
    items = list(value)
    items[rewrite.item] -= units * rewrite.step
    # A torch.Size or a named tuple comes back as what it was.
    same = type(value)._make(items) if hasattr(value, "_make") else type(value)(items)
    setattr(module, rewrite.attribute, same)
