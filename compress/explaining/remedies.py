"""Changes that would make a network faster on a device: those of which the latency model says so, and by how much.

Only what follows from a reason is tried: other bits where a layer has no fast kernel, is a float island or waits for
memory; channels down to a full multiple where kernels fill them up, or where a layer holds up all others; a residual
block less where starting operators takes the time. What a change does to accuracy isn't predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from compress.explanation import Change, LayerWork, Reason, Remedy, Why
from compress.graph.blocks import Block
from compress.graph.groups import PRODUCES, Dependencies
from compress.graph.operators import Operator
from compress.prune.counter import Counter
from compress.types import Precision

MOST = 6
"""So many are listed."""
WORTH = 0.01
"""Share of the network's predicted time that a change has to save."""

CHANNELS_OR_BLOCKS: tuple[Why, Why, Why] = ("misaligned", "dominated", "launch-bound")
"""Reasons for which channels that are no full multiple are cut, any channels, and whole blocks."""

Predict = Callable[[Sequence[Operator], Mapping[str, Precision]], float]
"""Seconds that the latency model predicts for operators and the precisions of layers."""


def remedies(
    operators: Sequence[Operator],
    precisions: Mapping[str, Precision],
    layers: Sequence[LayerWork],
    found: Sequence[Reason],
    available: Sequence[Precision],
    multiple: int,
    predict: Predict,
    counter: Callable[[], Counter | None],
) -> tuple[Remedy, ...]:
    """The changes that save :data:`WORTH` of the time or more, largest saving first, :data:`MOST` at most.

    Args:
        operators, precisions: of the network as it is.
        layers, found: its layers and their reasons.
        available: the precisions that the device has kernels for.
        multiple: of channels, as its kernels like them.
        predict: the latency model.
        counter: the network's dependency groups; asked for only where channels or blocks are tried. None where they
            aren't known.
    """
    now = predict(operators, precisions)
    if now <= 0:
        return ()
    of = {layer.name: layer for layer in layers}
    about = {why: [of[r.layer] for r in found if r.why == why and r.layer in of] for why in {r.why for r in found}}
    tried = [
        attempt
        for why in ("no fast kernel", "float island", "memory-bound")
        for layer in about.get(why, [])
        for attempt in _other_bits(layer, operators, precisions, available, predict)
    ]
    odd, wide, launched = (about.get(why, []) for why in CHANNELS_OR_BLOCKS)
    counted = counter() if odd or wide or launched else None
    if counted is not None:
        tried += _fewer_channels(odd, wide, counted, precisions, multiple, predict)
        tried += _fewer_blocks(launched, counted.dependencies, operators, precisions, predict)
    best: dict[tuple[str, Change], Remedy] = {}
    for layer, change, text, seconds in tried:
        saves = now - seconds
        known = best.get((layer, change))
        if saves >= WORTH * now and (known is None or saves > known.saves_s * (1 + 1e-9)):
            best[layer, change] = Remedy(layer, change, text, saves, saves / now)
    return tuple(sorted(best.values(), key=lambda remedy: (-remedy.saves_s, remedy.layer))[:MOST])


Attempt = tuple[str, Change, str, float]


def _other_bits(
    layer: LayerWork,
    operators: Sequence[Operator],
    precisions: Mapping[str, Precision],
    available: Sequence[Precision],
    predict: Predict,
) -> list[Attempt]:
    path = next((o.path for o in operators if o.name == layer.operator), "")
    if path not in precisions:
        return []
    # Of equally fast ones the widest is named, which costs the least accuracy.
    wanted = sorted((p for p in available if p.kind != "float" and p != precisions[path]), reverse=True)
    return [
        (layer.name, "bits", f"{other} in place of {precisions[path]}", predict(operators, {**precisions, path: other}))
        for other in wanted
    ]


def _fewer_channels(
    odd: Sequence[LayerWork],
    wide: Sequence[LayerWork],
    counter: Counter,
    precisions: Mapping[str, Precision],
    multiple: int,
    predict: Predict,
) -> list[Attempt]:
    """Each group of channels that one of the layers makes or reads, cut to the next full multiple below.

    Of the layers in ``odd`` only groups that are no full multiple: those that are don't fill anything up.
    """

    def weights_of(layers: Sequence[LayerWork]) -> set[str]:
        named = {layer.operator for layer in layers}
        return {name for operator, name in counter.weight_of.items() if operator in named}

    misaligned, dominating = weights_of(odd), weights_of(wide)
    kinds = {counter.weight_of[o.name]: o.kind for o in counter.operators if o.name in counter.weight_of}
    attempts: list[Attempt] = []
    for index, group in enumerate(counter.dependencies.groups):
        touched = {name for name, _ in (*group.producers, *group.consumers)}
        if not (misaligned | dominating) & touched:
            continue
        slot = next(((n, a) for n, a in group.producers if n in kinds and PRODUCES[kinds[n]] == a), None)
        if slot is None:
            continue
        each = len(group.units[0].members[slot])
        channels = len(group.units) * each
        if channels % multiple == 0 and not dominating & touched:
            continue
        fewer = (channels - 1) // multiple * multiple
        units = fewer // each
        if units < 1 or units * each != fewer:
            continue
        kept = list(counter.all_units)
        kept[index] = units
        text = f"{fewer} channels in place of {channels}"
        attempts.append((group.name, "channels", text, predict(counter.shrunk(kept), precisions)))
    return attempts


def _fewer_blocks(
    layers: Sequence[LayerWork],
    dependencies: Dependencies,
    operators: Sequence[Operator],
    precisions: Mapping[str, Precision],
    predict: Predict,
) -> list[Attempt]:
    """Each residual block that holds one of the layers, left out."""
    paths = {o.path for o in operators if o.name in {layer.operator for layer in layers}}
    attempts: list[Attempt] = []
    for block in dependencies.blocks:
        if paths & set(block.layers):
            rest = without(operators, block)
            if rest is not None:
                text = "leave the whole residual block out (--prune blocks)"
                attempts.append((block.path, "block", text, predict(rest, precisions)))
    return attempts


def without(operators: Sequence[Operator], block: Block) -> tuple[Operator, ...] | None:
    """The operators of the network without a residual block; None where it has more than one entry or exit."""
    inside = {o.name for o in operators if o.path == block.path or o.path.startswith(f"{block.path}.")}
    entries = {name for o in operators if o.name in inside for name in o.inputs} - inside
    exits = {name for o in operators if o.name not in inside for name in o.inputs} & inside
    if len(entries) != 1 or len(exits) > 1:
        return None
    (entry,) = entries
    return tuple(
        replace(o, inputs=tuple(entry if name in exits else name for name in o.inputs))
        for o in operators
        if o.name not in inside
    )


__all__ = ["MOST", "WORTH", "remedies", "without"]
