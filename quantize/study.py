"""What second-order mixed precision knows of a network before it chooses: the same for every budget of a job.

The traced network with its batch norms folded, where grids go, the grid of every activation at every width, and what
rounding each weight and each activation would cost at the output (:mod:`compress.quantize.perturbation`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.errors import BadData
from compress.graph.costs import layer_operators
from compress.graph.interpret import Steps, affordable, probe_batch
from compress.graph.moments import collect
from compress.graph.operators import Operator
from compress.graph.trace import Network
from compress.quantize import hardware
from compress.quantize.calibrate import activation_samples, calibration_inputs, folded
from compress.quantize.output_ranges import activation_ranges
from compress.quantize.perturbation import Perturbations, perturbations
from compress.quantize.placement import Placement, place
from compress.quantize.rebuild import Layer, layers_of, matrix, rounded_ahead, rounded_layer
from compress.types import FIRST, Context, Grid, LayerPlan, Note, Plan, Precision, State

BATCH_SIZE = 64
IMAGES = 256
"""Calibration inputs for the sensitivities: means over inputs, positions and draws, so few are enough."""


@dataclass(frozen=True)
class Study:
    """What is known of a network.

    Attributes:
        original: the network before its batch norms were folded, kept so that no other can be taken for it.
        state: with the folded network.
        network, whole: its trace.
        inputs: calibration inputs, as many as memory holds.
        batch: how many run at a time.
        layers: the layers whose weights can be rounded, by weight.
        operators: by layer's module path, those that use its weight.
        placement: where grids go when every layer is quantized.
        precisions: what layers can choose from, narrowest weights first.
        grids: of each placed tensor at each of the precisions' activation widths.
        costs: what rounding costs.
    """

    original: nn.Module
    state: State
    network: Network
    whole: Steps
    inputs: Tensor
    batch: int
    layers: Mapping[str, Layer]
    operators: Mapping[str, tuple[Operator, ...]]
    placement: Placement
    precisions: tuple[Precision, ...]
    grids: Mapping[str, Mapping[int, Grid]]
    costs: Perturbations

    @property
    def activation_widths(self) -> tuple[int, ...]:
        """The widths that activations can have, narrowest first."""
        return tuple(sorted({precision.activation_bits for precision in self.precisions}))

    def owner(self, node: str) -> str | None:
        """The tensor whose grid a node's output has; None if it has none."""
        name = self.placement.carried.get(node, node)
        return name if name in self.placement.tensors else None


def widest(precisions: tuple[Precision, ...]) -> Precision:
    """The precision that costs least accuracy."""
    return max(precisions, key=lambda precision: (precision.activation_bits, precision.weight_bits))


def shared_study(state: State, context: Context, precisions: tuple[Precision, ...]) -> Study:
    """The study of the state's network, made once for all candidates of a job that have it."""
    key = ("quantize", id(state.model), precisions, context.samples)
    if key not in context.shared:
        # Another network would be studied for one candidate alone, and keep its activations for nothing.
        first = context.shared.get(FIRST)
        if state.records and (first is None or first.model is not state.model):
            return study(state, context, precisions)
        context.shared[key] = study(state, context, precisions)
    found: Study = context.shared[key]
    return found


def study(state: State, context: Context, precisions: tuple[Precision, ...]) -> Study:
    """Find the grids, and measure what each layer's and each activation's rounding costs.

    Raises:
        BadData: the inputs are all alike, or the network computes NaN or infinity on them.
        NoGradient: there is a choice, and nothing to tell its costs by.
    """
    generator = torch.Generator().manual_seed(context.seed)
    inputs = calibration_inputs(context, generator)
    fresh, network = folded(replace(state, notes=()), inputs, context)
    operators: dict[str, tuple[Operator, ...]] = {}
    for operator in hardware.chosen(layer_operators(network), fresh.model):
        operators[operator.path] = (*operators.get(operator.path, ()), operator)
    best = widest(precisions)
    placement = place(network, Plan().updated(*(LayerPlan(name, None, best) for name in operators)))
    samples = activation_samples(placement, network, inputs, context, generator)
    whole = Steps.of(network).to(context.device)
    batch = BATCH_SIZE if network.dynamic_batch else 1
    inputs = inputs[: affordable(network)].to(context.device)
    probe = probe_batch(whole, batch)
    widths = tuple(sorted({precision.activation_bits for precision in precisions}))
    context.progress("ranges of the activations")
    grids, rounding = activation_ranges(
        whole,
        samples,
        widths,
        inputs,
        signedness=context.target.activations,
        batch=probe,
        task=context.data.task,
        generator=generator,
    )
    if rounding and not any(rounding.values()):
        why = "ranges of least squared error, as the network's output has no gradient to choose them by"
        fresh = replace(fresh, notes=(*fresh.notes, Note("", "activations", why)))
    layers = {name: layer for name, layer in layers_of(whole).items() if name in placement.weights}
    weights = tuple(sorted({precision.weight_bits for precision in precisions}))
    found = {(name, weights[0]): 0.0 for name in layers}
    if len(weights) > 1:
        found = _weight_costs(whole, layers, weights, inputs[:IMAGES], batch, generator, context)
    costs = Perturbations(found, rounding)
    if not all(cost == cost and cost < float("inf") for cost in (*found.values(), *rounding.values())):
        raise BadData(
            context.data.name, "the network's output has no finite gradient on it", "check inputs and weights"
        )
    return Study(
        state.model, fresh, network, whole, inputs, batch, layers, operators, placement, precisions, grids, costs
    )


def _weight_costs(
    whole: Steps,
    layers: Mapping[str, Layer],
    widths: tuple[int, ...],
    inputs: Tensor,
    batch: int,
    generator: torch.Generator,
    context: Context,
) -> dict[tuple[str, int], float]:
    """What rounding each layer to each of ``widths`` costs."""
    readers = [reader for layer in layers.values() for reader in layer.readers]
    grams = collect(whole, readers, inputs, batch, generator, context.progress)
    trials: dict[str, dict[int, tuple[Tensor, Tensor | None]]] = {}
    for number, (name, layer) in enumerate(layers.items(), start=1):
        context.progress(f"round layer {number} of {len(layers)} at every width")
        trials[name] = {bits: _trial(whole, layer, grams, bits) for bits in widths}
    context.progress("measure what rounding costs at the output")
    measured = perturbations(
        whole,
        trials,
        {},
        inputs,
        batch=probe_batch(whole, batch),
        task=context.data.task,
        generator=generator,
    )
    return dict(measured.weights)


def _trial(whole: Steps, layer: Layer, grams: Mapping[str, Tensor], bits: int) -> tuple[Tensor, Tensor | None]:
    if layer.reader is None:
        return rounded_ahead(whole, layer, grams, bits)[0], None
    weight, bias, _ = rounded_layer(whole, layer, matrix(whole, layer), layer.gram(grams), bits)
    return weight, bias
