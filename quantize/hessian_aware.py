"""Mixed precision by second-order sensitivity: the default.

1. What rounding each layer's weights to each width would cost at the output is measured to second order, on the
   weights that second-order rounding gives (:mod:`compress.quantize.perturbation`); the same for activations where
   there is a choice.
2. The widths are the exact solution of HAWQ-V2's integer programme (:mod:`compress.quantize.allocation`) under
   all limits at once.
3. The weights are rounded layer by layer against the float network (:mod:`compress.quantize.rebuild`).

No labels are read, and nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from compress.errors import BadData
from compress.graph.costs import layer_operators
from compress.graph.interpret import Steps, affordable, probe_batch
from compress.graph.moments import collect
from compress.graph.operators import Operator
from compress.graph.trace import Network, layer_name
from compress.quantize.allocation import Allocation, solve
from compress.quantize.calibrate import activation_samples, folded
from compress.quantize.choices import LayerChoice, Limits, Problem, options
from compress.quantize.mixed import integer_widths
from compress.quantize.perturbation import Perturbations, perturbations
from compress.quantize.placement import Placement, place
from compress.quantize.ranges import activation_grid
from compress.quantize.rebuild import Layer, layers_of, matrix, nearest_layer, rebuild, rounded_layer
from compress.quantize.simulation import Simulation
from compress.types import Context, Grid, LayerPlan, Plan, Precision, Quantization, State

BATCH_SIZE = 64
IMAGES = 256
"""Calibration inputs for the sensitivities: means over inputs, positions and draws, so few are enough."""


@dataclass(frozen=True, slots=True)
class HessianAware:
    """Average weight bits of at most ``weight_bits``, spent where they matter most.

    Attributes:
        weight_bits: cap on the average over all layers' weights.
        activation_bits: bits of the layers' inputs.
    """

    weight_bits: float = 6.0
    activation_bits: int = 8
    label: ClassVar[str] = "quantize by second-order sensitivity"

    def __call__(self, state: State, context: Context) -> State:
        """The quantized state."""
        widths = integer_widths(context.target, self.activation_bits)
        if self.weight_bits >= widths[-1]:
            widths = widths[-1:]  # nothing to choose
        study = shared_study(state, context, widths, self.activation_bits)
        return study.rounded(state, solve(study.problem(), Limits(weight_bits=self.weight_bits)), context)


@dataclass(frozen=True)
class Study:
    """What is known of a network before widths are chosen; the same for every budget.

    Attributes:
        original: the network before its batch norms were folded, kept so that no other can be taken for it.
        state: with the folded network.
        network, whole: its trace.
        inputs: calibration inputs, as many as memory holds.
        batch: how many run at a time.
        layers: the layers whose weights can be rounded, by weight.
        operators: the same layers' sizes, by module path.
        placement: where grids go when every layer is quantized.
        grids: of each placed tensor.
        costs: what rounding costs.
        activation_bits: bits of activations.
    """

    original: nn.Module
    state: State
    network: Network
    whole: Steps
    inputs: Tensor
    batch: int
    layers: Mapping[str, Layer]
    operators: Mapping[str, Operator]
    placement: Placement
    grids: Mapping[str, Grid]
    costs: Perturbations
    activation_bits: int

    def problem(self) -> Problem:
        """What can be chosen: each layer's width."""
        choices = []
        for weight in self.placement.weights:
            operator = self.operators[layer_name(weight)]
            widths = {
                Precision(bits, self.activation_bits, "integer"): cost
                for (name, bits), cost in self.costs.weights.items()
                if name == weight
            }
            choices.append(
                LayerChoice(operator.path, operator.weights, (), options(operator.weights, operator.macs, widths))
            )
        return Problem(tuple(choices))

    def rounded(self, state: State, chosen: Allocation, context: Context) -> State:
        """``state`` quantized as ``chosen`` says."""
        plan = state.plan.updated(
            *(LayerPlan(name, state.plan.layer(name).keep, p) for name, p in chosen.precisions.items())
        )
        bits = {weight: chosen.precisions[layer_name(weight)].weight_bits for weight in self.placement.weights}
        made = Simulation(replace(self.whole, parameters=dict(self.whole.parameters)), self.grids)
        weights = rebuild(
            self.whole,
            made,
            bits,
            self.inputs,
            batch=self.batch,
            generator=context.generator,
            progress=context.progress,
        )
        model = _copied(self.state.model, made.steps, self.layers)
        quantization = Quantization(
            {weight: weights[weight] for weight in self.placement.weights}, dict(self.grids), self.placement.carried
        )
        notes = (*state.notes, *self.state.notes, *self.placement.notes, *chosen.notes)
        return replace(state, model=model, plan=plan, quantization=quantization, notes=tuple(dict.fromkeys(notes)))


def _copied(model: nn.Module, steps: Steps, layers: Mapping[str, Layer]) -> nn.Module:
    """A copy of ``model`` with the weights and biases of ``steps``."""
    import copy

    made = copy.deepcopy(model)
    with torch.no_grad():
        for layer in layers.values():
            for name in (layer.weight, layer.bias):
                if name is not None:
                    made.get_parameter(name).copy_(steps.parameters[name])
    return made.eval()


def shared_study(state: State, context: Context, widths: tuple[int, ...], activation_bits: int) -> Study:
    """The study of the state's network, made once for all candidates of a job that have it."""
    key = ("quantize", id(state.model), widths, activation_bits, context.samples)
    if key not in context.shared:
        # Another network would be studied for one candidate alone, and keep its activations for nothing.
        if state.records:
            return study(state, context, widths, activation_bits)
        context.shared[key] = study(state, context, widths, activation_bits)
    found: Study = context.shared[key]
    return found


def study(state: State, context: Context, widths: tuple[int, ...], activation_bits: int) -> Study:
    """Measure what each layer's rounding costs."""
    generator = torch.Generator().manual_seed(context.seed)
    inputs = context.data.train.inputs(context.samples, generator)
    if len(inputs) > 1 and bool((inputs == inputs[:1]).all()):
        raise BadData(context.data.name, "all inputs are alike, so they show no layer's range", "give different ones")
    fresh, network = folded(replace(state, notes=()), inputs)
    operators = {layer.path: layer for layer in layer_operators(network)}
    precision = Precision(widths[-1], activation_bits, "integer")
    placement = place(network, Plan().updated(*(LayerPlan(name, None, precision) for name in operators)))
    samples = activation_samples(placement, network, inputs, context, generator)
    grids = {
        name: activation_grid(samples[name], bits, context.target.activations)
        for name, bits in placement.tensors.items()
    }
    whole = Steps.of(network).to(context.device)
    batch = BATCH_SIZE if network.dynamic_batch else 1
    inputs = inputs[: affordable(network)].to(context.device)
    layers = {name: layer for name, layer in layers_of(whole).items() if name in placement.weights}
    costs = Perturbations({(name, widths[0]): 0.0 for name in layers}, {})
    if len(widths) > 1:
        costs = _costs(whole, layers, widths, inputs[:IMAGES], batch, generator, context)
    return Study(
        state.model, fresh, network, whole, inputs, batch, layers, operators, placement, grids, costs, activation_bits
    )


def _costs(
    whole: Steps,
    layers: Mapping[str, Layer],
    widths: tuple[int, ...],
    inputs: Tensor,
    batch: int,
    generator: torch.Generator,
    context: Context,
) -> Perturbations:
    """What rounding each layer to each of ``widths`` costs."""
    found = [layer.reader for layer in layers.values() if layer.reader is not None]
    grams = collect(whole, found, inputs, batch, generator, context.progress)
    trials: dict[str, dict[int, tuple[Tensor, Tensor | None]]] = {}
    for number, (name, layer) in enumerate(layers.items(), start=1):
        context.progress(f"round layer {number} of {len(layers)} at every width")
        trials[name] = {bits: _trial(whole, layer, grams, bits) for bits in widths}
    context.progress("measure what rounding costs at the output")
    costs = perturbations(
        whole,
        trials,
        {},
        inputs,
        batch=probe_batch(whole, batch),
        task=context.data.task,
        generator=generator,
    )
    if not all(cost == cost and cost < float("inf") for cost in costs.weights.values()):
        raise BadData(
            context.data.name, "the network's output has no finite gradient on it", "check inputs and weights"
        )
    return costs


def _trial(whole: Steps, layer: Layer, grams: Mapping[str, Tensor], bits: int) -> tuple[Tensor, Tensor | None]:
    if layer.reader is None:
        return nearest_layer(whole, layer, bits)[0], None
    weight, bias, _ = rounded_layer(whole, layer, matrix(whole, layer), grams[layer.reader.node.name], bits)
    return weight, bias
