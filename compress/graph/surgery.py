"""Surgery, its proof, and what a plan says about both: units and blocks to a plan and back."""

from __future__ import annotations

from collections.abc import Iterable

from compress.graph.blocks import Block
from compress.graph.cut import keep_indices, remove, remove_blocks
from compress.graph.groups import Dependencies, Unit, removed_indices
from compress.graph.proof import proven
from compress.types import LayerPlan, Plan


def planned(plan: Plan, dependencies: Dependencies, units: Iterable[Unit], blocks: Iterable[Block] = ()) -> Plan:
    """``plan`` with the channels that stay when ``units`` go, for every layer that loses outputs.

    A layer inside one of ``blocks`` keeps none.
    """
    kept = keep_indices(dependencies, removed_indices(units))
    making = {slot for group in dependencies.groups for slot in group.producers}
    layers = {}
    for (name, axis), indices in sorted(kept.items()):
        if (name, axis) in making:
            layer = name.removesuffix(".weight")
            layers[layer] = LayerPlan(layer, tuple(indices), plan.layer(layer).precision)
    for block in blocks:
        for layer in block.layers:
            layers[layer] = LayerPlan(layer, (), plan.layer(layer).precision)
    return plan.updated(*layers.values())


def units_of(plan: Plan, dependencies: Dependencies) -> tuple[Unit, ...]:
    """The units that ``plan`` removes: those of which a producing layer doesn't keep an index.

    Layers of which nothing is kept belong to whole blocks (:func:`blocks_of`) and say nothing about units.
    """
    keep = {layer.name: set(layer.keep) for layer in plan.layers if layer.keep}
    gone = []
    for group in dependencies.groups:
        for unit in group.units:
            for slot in group.producers:
                kept = keep.get(slot[0].removesuffix(".weight"))
                if kept is not None and not kept.issuperset(unit.members[slot]):
                    gone.append(unit)
                    break
    return tuple(gone)


def blocks_of(plan: Plan, dependencies: Dependencies) -> tuple[Block, ...]:
    """The blocks that ``plan`` removes: those of which no layer keeps anything."""
    empty = {layer.name for layer in plan.layers if layer.keep == ()}
    return tuple(block for block in dependencies.blocks if empty.issuperset(block.layers))


__all__ = ["blocks_of", "keep_indices", "planned", "proven", "remove", "remove_blocks", "units_of"]
