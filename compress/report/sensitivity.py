"""The report's table of sensitivities: what each layer's rounding costs, and which bits it was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compress.report import words
from compress.results import Candidate, Front
from compress.types import LayerSensitivity


@dataclass(frozen=True)
class Row:
    """One layer as text; ``share`` is the percentage of all layers' cost at the narrowest width."""

    name: str
    weights: str
    trace: str
    eigenvalue: str
    costs: tuple[str, ...]
    share: str
    share_text: str
    chosen: str


def section(front: Front, found: Sequence[LayerSensitivity]) -> dict[str, Any]:
    """What the template needs; ``sensitivities`` is empty where there are none."""
    widths = tuple(sorted({bits for layer in found for bits, _ in layer.perturbations}))
    shown = _shown(front)
    bits = {layer.name: layer.weight_bits for layer in shown.layers} if shown else {}
    costs = {layer.name: dict(layer.perturbations) for layer in found}
    total = sum(each.get(widths[0], 0.0) for each in costs.values()) if widths else 0.0
    rows = []
    for layer in found:
        mine = costs[layer.name]
        share = mine.get(widths[0], 0.0) / total if total else 0.0
        rows.append(
            Row(
                layer.name,
                words.count(layer.weights),
                f"{layer.trace:.3g} ± {layer.trace_error:.1g}" if layer.trace_error else f"{layer.trace:.3g}",
                f"{layer.eigenvalue:.3g}",
                tuple(f"{mine[width]:.2g}" if width in mine else words.DASH for width in widths),
                f"{100 * share:.1f}",
                f"{100 * share:.0f}%",
                str(bits.get(layer.name, words.DASH)),
            )
        )
    return {"sensitivities": tuple(rows), "sensitivity_widths": widths, "mixed": shown.id if shown else ""}


def _shown(front: Front) -> Candidate | None:
    """The largest candidate whose layers differ in bits: that one has the uncompressed network's layers, or most."""
    mixed = [c for c in front.candidates if len({layer.weight_bits for layer in c.layers}) > 1]
    return max(mixed, key=lambda c: (c.macs, c.id), default=None)
