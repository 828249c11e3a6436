"""From each layer's numbers to the reasons why it isn't faster: every reason has its condition here.

A layer's reasons are looked at where it takes :data:`NOTABLE` of the network's time or more. With measured times shares
and speed-ups are the measured ones; what bounds a layer stays the roofline's word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compress.explanation import LayerWork, Reason, Why
from compress.report import words

NOTABLE = 0.02
"""Share of the network's time below which a layer's reasons aren't worth a line."""
FEWER = 1.3
"""Times fewer MACs from which on a layer is expected to be faster."""
KEPT_UP = 0.75
"""A layer that got this share of the speed-up that its MACs promise, or more, isn't asked why."""
PADDED = 1.15
"""Times more MACs carried out than needed from which on channels are misaligned."""
DOMINATES = 0.25
GREW = 1.3
"""A layer that kept its MACs holds up the others with this share of the time, if it was so many times less before."""


def reasons(layers: Sequence[LayerWork], multiple: int, rest_s: float = 0.0) -> tuple[Reason, ...]:
    """The reasons of all layers, then of the network, largest share first.

    Args:
        layers: of one network.
        multiple: what the device's kernels fill channels up to.
        rest_s: time of the network that belongs to none of them.
    """
    total = sum(layer.time_s for layer in layers) + rest_s
    if total <= 0:
        return ()
    found = [
        Reason(layer.name, why, layer.time_s / total, _sentence(layer, text))
        for layer in layers
        if layer.time_s >= NOTABLE * total
        for why, text in _of_layer(layer, multiple)
    ]
    found += _dominating(layers, total)
    return tuple(sorted(found, key=lambda reason: -reason.share))


def lagging(layer: LayerWork) -> bool:
    """Whether a layer has clearly fewer MACs than before and got too little of the speed-up that they promise."""
    fewer, faster = _fewer(layer), _faster(layer)
    return fewer is not None and faster is not None and fewer >= FEWER and faster < KEPT_UP * fewer


def summary(layers: Sequence[LayerWork], found: Sequence[Reason]) -> tuple[tuple[Why, int, float], ...]:
    """Each kind of reason: for how many layers it holds and their share of the time, largest share first."""
    together: dict[Why, list[float]] = {}
    for reason in found:
        together.setdefault(reason.why, []).append(reason.share)
    listed = [(why, len(shares), min(1.0, sum(shares))) for why, shares in together.items()]
    return tuple(sorted(listed, key=lambda each: (-each[2], each[0])))


Rule = Callable[[LayerWork, int], str | None]


def _launch(layer: LayerWork, multiple: int) -> str | None:
    if layer.bound != "launch-bound":
        return None
    work = max(layer.compute_s, layer.memory_s)
    return (
        f"starting an operator takes {words.seconds(layer.launch_s)}, its work {words.seconds(work)}: "
        "that doesn't shrink with the network"
    )


def _memory(layer: LayerWork, multiple: int) -> str | None:
    if layer.bound != "memory-bound":
        return None
    return (
        f"moving {words.size(layer.bytes)} takes {words.seconds(layer.memory_s)}, computing "
        f"{words.seconds(layer.compute_s)}: {_ratio(layer.intensity)} MACs a byte, and the device computes for longer "
        f"than it moves only from {_ratio(layer.ridge)}"
    )


def _misaligned(layer: LayerWork, multiple: int) -> str | None:
    if layer.bound != "compute-bound" or layer.padded_macs < PADDED * layer.macs:
        return None
    channels = f"{layer.in_channels} input and {layer.out_channels} output channels"
    return (
        f"its kernels fill {channels} up to multiples of {multiple}: they carry out "
        f"{words.times(layer.padded_macs / layer.macs)} the MACs that it has"
    )


def _unfused(layer: LayerWork, multiple: int) -> str | None:
    if not layer.unfused:
        return None
    return f"{layer.kind} runs by itself, as more than one operator reads what comes before it"


def _kernel(layer: LayerWork, multiple: int) -> str | None:
    if layer.macs == 0 or layer.precision.kind == "float":
        return None
    if layer.computed_as != layer.precision:
        return f"the device has no kernel for {layer.precision}: it computes as {layer.computed_as}"
    wider = layer.wider_macs_per_s
    if layer.bound != "compute-bound" or wider is None or layer.macs_per_s > wider * (1 + 1e-9):
        return None
    return (
        f"the device's kernel for {layer.precision} is no faster than the next wider one's "
        f"({_rate(layer.macs_per_s)} and {_rate(wider)})"
    )


def _island(layer: LayerWork, multiple: int) -> str | None:
    if not layer.float_island:
        return None
    because = f" ({layer.float_because})" if layer.float_because else ""
    return (
        f"it stays in float32 among integer layers{because}: what it reads is made float, what it gives quantized again"
    )


LAYER_RULES: tuple[tuple[Why, Rule], ...] = (
    ("float island", _island),
    ("unfused", _unfused),
    ("no fast kernel", _kernel),
    ("misaligned", _misaligned),
    ("memory-bound", _memory),
    ("launch-bound", _launch),
)
"""What can be said of one layer, each with the rule that says it, or None."""


def _of_layer(layer: LayerWork, multiple: int) -> list[tuple[Why, str]]:
    return [(why, text) for why, rule in LAYER_RULES if (text := rule(layer, multiple)) is not None]


def _dominating(layers: Sequence[LayerWork], total: float) -> list[Reason]:
    """Layers that kept their MACs while the others lost theirs, and now hold much of the time."""
    before = sum(layer.before_s or 0.0 for layer in layers)
    macs, were = sum(layer.macs for layer in layers), sum(layer.macs_before or 0 for layer in layers)
    if before <= 0 or macs <= 0 or were < FEWER * macs:
        return []
    found = []
    for layer in layers:
        fewer, share = _fewer(layer), layer.time_s / total
        was = (layer.before_s or 0.0) / before
        if fewer is not None and fewer < FEWER and share >= DOMINATES and share >= GREW * was > 0:
            text = (
                f"it kept its MACs and takes {words.percent(share)} of the time now, {words.percent(was)} before: "
                "what the other layers gained counts for the rest alone"
            )
            found.append(Reason(layer.name, "dominated", share, f"{layer.name}: {text}"))
    return found


def _sentence(layer: LayerWork, text: str) -> str:
    fewer, faster = _fewer(layer), _faster(layer)
    if not lagging(layer) or fewer is None or faster is None:
        return f"{layer.name}: {text}"
    gained = f"{words.times(faster)} faster" if faster >= 1.05 else "no faster" if faster > 0.95 else "slower"
    return f"{layer.name}: {words.times(fewer)} fewer MACs, {gained}: {text}"


def _fewer(layer: LayerWork) -> float | None:
    return layer.macs_before / layer.macs if layer.macs_before and layer.macs else None


def _faster(layer: LayerWork) -> float | None:
    return layer.before_s / layer.time_s if layer.before_s and layer.time_s else None


def _ratio(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _rate(macs_per_s: float) -> str:
    return f"{words.count(macs_per_s)}MAC/s"


__all__ = ["DOMINATES", "FEWER", "NOTABLE", "PADDED", "lagging", "reasons", "summary"]
