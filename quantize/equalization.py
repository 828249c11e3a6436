"""Cross-layer equalization: channels between layers are scaled where that leaves less error after rounding.

An activation has one scale for all its channels, and a weight's row one for all the channels that it reads, so a
channel that is much larger than the others costs them their integers. Dividing channel ``c`` by ``s_c`` where it is
made and multiplying it where it is read changes nothing in float (:mod:`compress.quantize.scalable`). Nagel et al.,
*Data-Free Quantization Through Weight Equalization and Bias Correction* (ICCV 2019), equation 11, make the ranges
``r`` of both sides' weights equal,

    s_c = r1_c^a / r2_c^(1 - a),    a = 1/2,

``r1`` being the largest weight of the row that makes channel ``c``, ``r2`` that of all columns that read it. Rows that
have scales of their own lose nothing by it, so with one scale an output channel it is the activation that suffers on
that side: Xiao et al. (*SmoothQuant*, ICML 2023) take its largest magnitude for ``r1`` instead, and other powers. All
of these are tried, beside leaving the channels as they are, and what is taken is what the layers that read them have
least error with,

    E_b = sum over readers of  ( E ||(W' - Q_b(W')) x'||^2 + sum_c E (x'_c - Q(x'_c))^2 ||W'_c||^2 ) / E ||W x||^2,

``x' = x / s`` and ``W' = W s`` measured on calibration inputs, at each precision ``b`` that can be chosen: the scaling
has to help on (geometric) average and to cost at none. Weights are rounded to the nearest integers there; what
second-order rounding leaves rises and falls with it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compress.graph.interpret import Steps
from compress.graph.moments import collect
from compress.graph.trace import kind, layer_name
from compress.quantize.ranges import activation_grid
from compress.quantize.rebuild import layers_of, matrix
from compress.quantize.rounding import nearest_error
from compress.quantize.scalable import Between, End, between
from compress.quantize.simulation import rounded
from compress.types import Note, Precision, Progress, Signedness

IMAGES = 32
"""Calibration inputs that are looked at."""

VALUES = 1 << 16
"""Values of a tensor that its range is found on."""

HELPS = 0.9
"""By which factor the error has to fall: less than that isn't told from chance."""

POWERS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Powers of the activations' ranges that are tried."""

LARGEST = 2.0**20
"""What a channel is scaled by at most, against the others: beyond that it is next to switched off."""


@dataclass(frozen=True)
class Seen:
    """What readers are given, by the node of each.

    Attributes:
        grams: second moments of the columns with a 1 behind them, (groups, K + 1, K + 1) float64.
        samples: values by channel, (channels, n) float32.
    """

    grams: Mapping[str, Tensor]
    samples: Mapping[str, Tensor]


def equalized(
    model: nn.Module,
    steps: Steps,
    precisions: Sequence[Precision],
    inputs: Tensor,
    *,
    signedness: Signedness,
    batch: int,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[nn.Module, tuple[Note, ...]]:
    """A copy of ``model`` that computes the same, channels scaled where that helps; and what was done.

    Args:
        model: its batch norms are folded.
        steps: its trace.
        precisions: that layers can be given.
        inputs: calibration inputs (N, ...), on the device of ``steps``.
        signedness: of the activations' grids.
        batch: inputs at a time.
        generator: of what is looked at, on the CPU.
        progress: told which layers are looked at.
    """
    found = between(steps, layers_of(steps).values())
    if not found:
        return model, ()
    seen = observed(steps, found, inputs[:IMAGES], batch, generator, progress)
    if not all(bool(torch.isfinite(each).all()) for each in (*seen.grams.values(), *seen.samples.values())):
        # Where ranges are found such inputs are refused, with the tensor's name.
        return model, ()
    scales: list[tuple[Between, Tensor]] = []
    notes = []
    for number, channels in enumerate(found, start=1):
        progress(f"equalize channels between layers, {number} of {len(found)}")
        scale, gain = chosen(steps, channels, seen, precisions, signedness)
        if gain < 1:
            scales.append((channels, scale))
            names = [[layer_name(end.layer.weight) for end in ends] for ends in (channels.makers, channels.readers)]
            read = ", ".join(names[1])
            notes.append(
                Note(
                    ", ".join(names[0]),
                    "channels",
                    f"equalized with {read}: error after rounding {gain:.2f} of what it was",
                )
            )
    if not scales:
        return model, ()
    made = copy.deepcopy(model)
    with torch.no_grad():
        for channels, scale in scales:
            scale_(made, channels, scale)
    return made, tuple(notes)


def scale_(model: nn.Module, channels: Between, scale: Tensor) -> None:
    """Divide what makes ``channels`` and multiply what reads them by ``scale`` (count,), in place."""
    for maker in channels.makers:
        own = _own(maker, scale)
        for name in (maker.layer.weight, maker.layer.bias):
            if name is not None:
                parameter = model.get_parameter(name)
                parameter.copy_(parameter.double() / own.view(-1, *[1] * (parameter.dim() - 1)).to(parameter.device))
    for reader in channels.readers:
        parameter = model.get_parameter(reader.layer.weight)
        parameter.copy_(_read(reader, parameter.double().cpu(), scale))


def _read(reader: End, weight: Tensor, scale: Tensor) -> Tensor:
    """The weight of a reader, its input channels multiplied."""
    assert reader.layer.reader is not None
    groups = reader.layer.reader.groups
    own = _own(reader, scale).view(groups, 1, -1, 1)
    return (weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1) * own).reshape(weight.shape)


def _own(end: End, scale: Tensor) -> Tensor:
    """The scale of each of a layer's channels: 1 of those that stay as they are."""
    return torch.where(end.ids >= 0, scale[end.ids.clamp_min(0)], 1.0)


def observed(
    steps: Steps, found: Sequence[Between], inputs: Tensor, batch: int, generator: torch.Generator, progress: Progress
) -> Seen:
    """What the readers of all channels read, in two passes over ``inputs``."""
    ends = [end for channels in found for end in channels.readers]
    readers = [end.layer.reader for end in ends if end.layer.reader is not None]
    grams = collect(steps, readers, inputs, batch, generator, progress)
    sources = {reader.node.name: _source(reader.node) for reader in readers}
    return Seen(grams, _samples(steps, sources, inputs, batch, generator))


def _source(node: fx.Node) -> tuple[str, int]:
    """The tensor that a layer reads, and the axis of its channels."""
    return node.all_input_nodes[0].name, -1 if kind(node) == "linear" else 1


def _samples(
    steps: Steps, sources: Mapping[str, tuple[str, int]], inputs: Tensor, batch: int, generator: torch.Generator
) -> dict[str, Tensor]:
    wanted: dict[str, list[str]] = {}
    for reader, (name, _) in sources.items():
        wanted.setdefault(name, []).append(reader)
    parts: dict[str, list[Tensor]] = {reader: [] for reader in sources}
    batches = inputs.split(batch)
    with torch.no_grad():
        for x in batches:
            environment = steps.start((x,))
            for at, node in enumerate(steps.nodes):
                steps.run(environment, [node])
                for reader in wanted.get(node.name, ()):
                    flat = environment[node.name].movedim(sources[reader][1], 0).flatten(1).cpu()
                    most = max(8, VALUES // (len(flat) * len(batches)))
                    # The extremes always count, as where ranges are found for good.
                    ends = torch.stack([flat.amin(1), flat.amax(1)], 1)
                    picks = torch.randint(flat.shape[1], (most,), generator=generator)
                    parts[reader].append(torch.cat([ends, flat[:, picks]], 1))
                for source in {each.name for each in node.all_input_nodes}:
                    if steps.last_use.get(source) == at:
                        environment.pop(source, None)
    return {reader: torch.cat(each, 1) for reader, each in parts.items()}


def chosen(
    steps: Steps, channels: Between, seen: Seen, precisions: Sequence[Precision], signedness: Signedness
) -> tuple[Tensor, float]:
    """The scale of each channel, (count,) float64, and the geometric mean of what is left of the errors; 1 where all
    scales are."""
    plain = torch.ones(channels.count, dtype=torch.float64)
    before = errors(steps, channels, plain, seen, precisions, signedness)
    best, gain = plain, HELPS
    for scale in candidates(steps, channels, seen):
        after = errors(steps, channels, scale, seen, precisions, signedness)
        ratios = [a / b if b > 0 else 1.0 for a, b in zip(after, before, strict=True)]
        mean = math.exp(math.fsum(math.log(max(ratio, 1e-30)) for ratio in ratios) / len(ratios))
        if max(ratios) <= 1 and mean < gain:
            best, gain = scale, mean
    return best, gain if best is not plain else 1.0


def candidates(steps: Steps, channels: Between, seen: Seen) -> list[Tensor]:
    """Scales to try."""
    rows = largest_rows(steps, channels)
    columns = largest_columns(steps, channels)
    peaks = torch.zeros(channels.count, dtype=torch.float64)
    for reader in channels.readers:
        magnitude = seen.samples[reader.layer.node].abs().amax(1).double()
        mine = reader.ids >= 0
        peaks.scatter_reduce_(0, reader.ids[mine], magnitude[mine], "amax")
    tried = [equalizing(rows, columns, 0.5)]
    tried += [equalizing(peaks, columns, power) for power in POWERS]
    return tried


def equalizing(made: Tensor, read: Tensor, power: float) -> Tensor:
    """``made^power / read^(1 - power)``, around 1; 1 where either is 0. With 1/2, ``made / s`` equals ``read * s``."""
    live = (made > 0) & (read > 0)
    exponent = torch.where(live, power * made.log() - (1 - power) * read.log(), 0.0)
    if not bool(live.any()):
        return torch.ones_like(made)
    exponent = torch.where(live, exponent - exponent[live].mean(), 0.0)
    return exponent.clamp(-math.log(LARGEST) / 2, math.log(LARGEST) / 2).exp()


def largest_rows(steps: Steps, channels: Between) -> Tensor:
    """The largest weight by which each channel is made."""
    found = torch.zeros(channels.count, dtype=torch.float64)
    for maker in channels.makers:
        largest = steps.parameters[maker.layer.weight].double().cpu().flatten(1).abs().amax(1)
        mine = maker.ids >= 0
        found.scatter_reduce_(0, maker.ids[mine], largest[mine], "amax")
    return found


def largest_columns(steps: Steps, channels: Between) -> Tensor:
    """The largest weight by which each channel is read."""
    found = torch.zeros(channels.count, dtype=torch.float64)
    for reader in channels.readers:
        assert reader.layer.reader is not None
        weight = steps.parameters[reader.layer.weight].double().cpu()
        groups = reader.layer.reader.groups
        largest = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).abs().amax((1, 3)).flatten()
        # An input of several taps (a flattened map) is read by several columns.
        mine = reader.ids >= 0
        found.scatter_reduce_(0, reader.ids[mine], largest[mine], "amax")
    return found


def errors(
    steps: Steps, channels: Between, scale: Tensor, seen: Seen, precisions: Sequence[Precision], signedness: Signedness
) -> list[float]:
    """``E_b`` of each precision."""
    found = dict.fromkeys(precisions, 0.0)
    for reader in channels.readers:
        layer, own = reader.layer, _own(reader, scale)
        assert layer.reader is not None
        groups, taps = layer.reader.groups, layer.reader.taps
        spread = own.view(groups, -1).repeat_interleave(taps, 1)
        spread = torch.cat([spread, torch.ones(groups, 1, dtype=torch.float64)], 1)
        gram = seen.grams[layer.node]
        weight = matrix(steps, layer)
        if layer.bias is None:
            gram, spread = gram[:, :-1, :-1], spread[:, :-1]
        energy = float(torch.einsum("goi,gij,goj->", weight, gram, weight))
        weight, gram = weight * spread[:, None], gram / spread[:, :, None] / spread[:, None]
        free = int(layer.bias is not None)
        squares = weight[:, :, : weight.shape[2] - free].square().sum(1).view(groups, -1, taps).sum(2).flatten()
        sample = seen.samples[layer.node] / own.float()[:, None]
        by_weight = {
            bits: float(nearest_error(weight, gram, bits, free=free).sum())
            for bits in sorted({precision.weight_bits for precision in precisions})
        }
        by_activation = {}
        for bits in sorted({precision.activation_bits for precision in precisions}):
            off = sample - rounded(sample, activation_grid(sample, bits, signedness))
            by_activation[bits] = float((off.double().square().mean(1) * squares).sum())
        for precision in precisions:
            total = by_weight[precision.weight_bits] + by_activation[precision.activation_bits]
            found[precision] += total / max(energy, 1e-30)
    return list(found.values())
