"""Round a network's weights layer by layer, each against what the float network computes there.

In the order of execution, each layer is first solved anew by least squares on what the quantized network really
feeds it,

    min_{V, c} E ||t - V x - c||^2,

``x`` its rounded input, ``t`` the float layer's output and, in front of a residual addition, the difference that the
other operand has collected on the way: so errors of earlier layers, of rounded weights and of rounded activations,
are corrected (Frantar et al., GPTQ, 2023, round against the quantized input only; Li et al., BRECQ, 2021, correct
by descent). Then its weights are rounded by :mod:`compress.quantize.rounding` with the same second moments, the
bias staying real, so that biases are corrected too.

A weight that several operators share has to be rounded before all that they read is known: it is rounded to stay near
the float weight on what all of them read in the float network, and isn't solved anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compress.graph.groups import PRODUCES
from compress.graph.interpret import BATCH, Environment, Steps
from compress.graph.moments import Reader, collect, damped, normal_equations, reader_of
from compress.graph.qdq import on_grid
from compress.graph.segments import Segment, other_operand, segments
from compress.graph.trace import argument, kind
from compress.quantize.perturbation import weight_of
from compress.quantize.ranges import weight_grid
from compress.quantize.rounding import round_rows, weight_levels
from compress.quantize.simulation import Simulation
from compress.types import Grid

RIDGE = 1e-4
"""Of the least squares, as a share of the mean diagonal."""

SCARCE = 0.1
"""What is added to :data:`RIDGE` where there are as many unknowns as positions, which could be fitted exactly and
wrongly; in proportion with fewer."""


@dataclass(frozen=True)
class Layer:
    """A layer whose weight is rounded.

    Attributes:
        weight: its parameter.
        axis: the weight's output axis.
        reader: the layer as a matrix product; None where it isn't one, where the weight is used more than once, or
            where it lives in hardware.
        shared: the uses of a weight that is used more than once, where all are matrix products with it; else empty.
        bias: the bias's parameter; None if it has none of its own.
        node: the first operator that uses the weight.
    """

    weight: str
    axis: int
    reader: Reader | None
    bias: str | None
    node: str
    shared: tuple[Reader, ...] = ()

    @property
    def readers(self) -> tuple[Reader, ...]:
        """All its uses as matrix products; none where it is rounded plainly."""
        return self.shared if self.reader is None else (self.reader,)

    def gram(self, grams: Mapping[str, Tensor]) -> Tensor:
        """``G`` of what all its uses read, from node -> ``G``: the mean over their positions."""
        if self.reader is not None:
            return grams[self.reader.node.name]
        parts = [grams[reader.node.name] * reader.positions for reader in self.shared]
        return torch.stack(parts).sum(0) / sum(reader.positions for reader in self.shared)


def layers_of(steps: Steps) -> dict[str, Layer]:
    """Weight -> the layer that has it as a parameter, in the order of execution."""
    uses: dict[str, list[fx.Node]] = {}
    for node in steps.nodes:
        if (name := weight_of(steps, node)) is not None:
            uses.setdefault(name, []).append(node)
    biases: dict[str, int] = {}
    for nodes in uses.values():
        for node in nodes:
            if (name := _bias(steps, node)) is not None:
                biases[name] = biases.get(name, 0) + 1
    found = {}
    for name, nodes in uses.items():
        bias = _bias(steps, nodes[0])
        alone = len(nodes) == 1 and (bias is None or biases[bias] == 1)
        readers = [] if name in steps.hardware else [r for node in nodes if (r := reader_of(steps, node)) is not None]
        same = len(readers) == len(nodes) and len({(reader.groups, reader.taps) for reader in readers}) == 1
        found[name] = Layer(
            name,
            PRODUCES[kind(nodes[0])],
            readers[0] if alone and readers else None,
            bias if alone else None,
            nodes[0].name,
            tuple(readers) if same and len(nodes) > 1 else (),
        )
    return found


def _bias(steps: Steps, node: fx.Node) -> str | None:
    bias = argument(node, "bias")
    return steps.constants.get(bias.name) if isinstance(bias, fx.Node) else None


def matrix(steps: Steps, layer: Layer) -> Tensor:
    """Weight and, as the last column, bias of a layer that is a product; (groups, out, K [+ 1]) float64, on the CPU."""
    reader = layer.readers[0]
    weight = reader.matrix(steps.parameters[layer.weight]).double().cpu()
    if layer.bias is None:
        return weight
    return torch.cat([weight, steps.parameters[layer.bias].double().cpu().view(reader.groups, -1, 1)], 2)


def rounded_layer(
    steps: Steps, layer: Layer, wanted: Tensor, gram: Tensor, bits: int
) -> tuple[Tensor, Tensor | None, Grid]:
    """Weight on its grid, bias, grid.

    Args:
        steps: for the shapes.
        layer: one that is a product.
        wanted: what to round, as :func:`matrix` gives it.
        gram: second moments of its inputs with a 1 behind them, (groups, K + 1, K + 1).
        bits: of the weights.
    """
    weight = steps.parameters[layer.weight]
    if layer.bias is None:
        gram = gram[:, :-1, :-1]
    made = round_rows(wanted, gram, bits, free=int(layer.bias is not None))
    scale = made.scale.flatten()
    grid = weight_levels(bits, tuple(float(s) for s in scale.float()), layer.axis)
    if layer.bias is None:
        return made.values.reshape(weight.shape).to(weight), None, grid
    bias = made.values[:, :, -1].flatten().to(weight)
    return made.values[:, :, :-1].reshape(weight.shape).to(weight), bias, grid


def nearest_layer(steps: Steps, layer: Layer, bits: int) -> tuple[Tensor, Grid]:
    """Weight on its grid, and the grid, of any layer: plain rounding with scales of least squared error."""
    weight = steps.parameters[layer.weight]
    grid = weight_grid(weight, bits, layer.axis)
    return on_grid(weight, grid), grid


def rounded_ahead(steps: Steps, layer: Layer, grams: Mapping[str, Tensor], bits: int) -> tuple[Tensor, Grid]:
    """Weight on its grid, and the grid, of a layer that isn't solved anew.

    Args:
        steps: the float network.
        layer: the layer.
        grams: node -> second moments of what it reads, for the uses of the layer that are products.
        bits: of the weights.
    """
    if not layer.readers:
        return nearest_layer(steps, layer, bits)
    weight, _, grid = rounded_layer(steps, layer, matrix(steps, layer), layer.gram(grams), bits)
    return weight, grid


def rebuild(
    whole: Steps,
    made: Simulation,
    bits: Mapping[str, int],
    inputs: Tensor,
    *,
    batch: int,
    generator: torch.Generator,
    progress: Callable[[str], None],
) -> dict[str, Grid]:
    """Round the weights of ``made.steps`` in place; the grid of each.

    Args:
        whole: the float network.
        made: the same operators, with the grids of the activations.
        bits: weight -> its bits; others stay float.
        inputs: calibration inputs (N, ...).
        batch: inputs at a time.
        generator: the source of randomness.
        progress: told which part is rounded.
    """
    layers = layers_of(whole)
    at = {layer.node: layer for layer in layers.values()}
    grids: dict[str, Grid] = {}
    ahead = [layers[name] for name in bits if layers[name].reader is None]
    products = [reader for layer in ahead for reader in layer.shared]
    grams = collect(whole, products, inputs, batch, generator, progress) if products else {}
    for layer in ahead:
        weight, grid = rounded_ahead(whole, layer, grams, bits[layer.weight])
        made.steps.parameters[layer.weight], grids[layer.weight] = weight, grid
    cut = segments(whole)
    before = [{whole.inputs[0]: part, BATCH: len(part)} for part in inputs.split(batch)]
    after = [made.start((part,)) for part in inputs.split(batch)]
    with torch.no_grad():
        for number, segment in enumerate(cut, start=1):
            progress(f"round weights, part {number} of {len(cut)}")
            _segment(whole, made, segment, at, bits, grids, before, after, generator)
            before, after = (
                [{name: e[name] for name in (segment.exit, BATCH)} for e in each] for each in (before, after)
            )
    return grids


def _segment(
    whole: Steps,
    made: Simulation,
    segment: Segment,
    layers: Mapping[str, Layer],
    bits: Mapping[str, int],
    grids: dict[str, Grid],
    before: Sequence[Environment],
    after: Sequence[Environment],
    generator: torch.Generator,
) -> None:
    for at in range(segment.first, segment.last + 1):
        node, twin = whole.nodes[at], made.steps.nodes[at]
        for environment in before:
            whole.run(environment, [node])
        layer = layers.get(node.name)
        if layer is not None and layer.weight in bits and layer.reader is None and layer.bias is not None:
            _shifted(made.steps, layer, before, after, at)
        elif layer is not None and layer.weight in bits and layer.reader is not None:
            wanted, gram = _solved(whole, made.steps, at, layer, before, after, generator)
            weight, bias, grid = rounded_layer(whole, layer, wanted, gram, bits[layer.weight])
            made.steps.parameters[layer.weight], grids[layer.weight] = weight, grid
            if bias is not None and layer.bias is not None:
                made.steps.parameters[layer.bias] = bias
        for environment in after:
            made.run(environment, [twin])
        for source in {each.name for each in node.all_input_nodes}:
            if whole.last_use.get(source) == at and source != segment.exit:
                for environment in (*before, *after):
                    environment.pop(source, None)


def _shifted(steps: Steps, layer: Layer, before: Sequence[Environment], after: Sequence[Environment], at: int) -> None:
    """Add to a layer's bias what its output lacks on average, channel by channel (Nagel et al., *Data-Free Quantization
    Through Weight Equalization and Bias Correction*, 2019, section 4.2), measured instead of computed."""
    node = steps.nodes[at]
    total, count = None, 0
    for a, b in zip(before, after, strict=True):
        made = dict(b)
        steps.run(made, [node])
        missing = (a[layer.node] - made[layer.node]).double()
        missing = missing.movedim(-1 if kind(node) == "linear" else 1, 0).flatten(1)
        total = missing.sum(1) if total is None else total + missing.sum(1)
        count += missing.shape[1]
    assert layer.bias is not None
    assert total is not None
    steps.parameters[layer.bias] = steps.parameters[layer.bias] + (total / count).to(steps.parameters[layer.bias])


def _solved(
    whole: Steps,
    steps: Steps,
    at: int,
    layer: Layer,
    before: Sequence[Environment],
    after: Sequence[Environment],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The least-squares weights of a layer, as :func:`matrix` has them, and the moments of what it reads."""
    reader = layer.reader
    assert reader is not None
    name, other = reader.node.name, other_operand(steps, at)
    source = reader.node.args[0]
    assert isinstance(source, fx.Node)
    inputs = sum(environment[BATCH] for environment in after)
    width, positions = reader.extent(after[0][source.name])
    seen = sum(len(environment[source.name]) for environment in after) * positions

    def batches() -> Iterator[tuple[Tensor, Tensor, float]]:
        for a, b in zip(before, after, strict=True):
            target = a[name]
            # An operand that is spread over the other's positions isn't what this layer alone can correct.
            if other is not None and other in a and other in b and a[other].shape == target.shape:
                target = target + a[other] - b[other]
            yield b[source.name], target, b[BATCH] / inputs

    gram, wanted = (each.cpu() for each in normal_equations(reader, batches(), generator))
    start = matrix(whole, layer)
    square = gram
    if layer.bias is None:
        square, wanted = gram[:, :-1, :-1], wanted[:, :, :-1]
    # The bias reads a 1, whatever the size of the inputs is: in units of their root mean square a ridge is the same
    # share of both.
    mean = gram.diagonal(dim1=1, dim2=2)[:, :-1].mean(1, keepdim=True)
    unit = torch.ones(square.shape[:2], dtype=square.dtype)
    unit[:, : gram.shape[1] - 1] = torch.where(mean > 0, mean, 1.0).rsqrt()
    scaled = square * unit[:, :, None] * unit[:, None]
    # Solved for the change: in directions that no input shows, the weights stay what they were.
    missing = (wanted - start @ square) * unit[:, None]
    change = torch.linalg.solve(damped(scaled, RIDGE + SCARCE * width / seen), missing.transpose(1, 2))
    solved = start + change.transpose(1, 2) * unit[:, None]
    return (solved if torch.isfinite(solved).all() else start), gram
