"""Mixed precision by second-order sensitivity: the default.

1. What rounding each layer's weights to each width would cost at the output is measured to second order, on the
   weights that second-order rounding gives (:mod:`compress.quantize.perturbation`); the same for activations, whose
   ranges are chosen by it too (:mod:`compress.quantize.output_ranges`).
2. The widths are the exact solution of HAWQ-V2's integer programme (:mod:`compress.quantize.allocation`) under
   all limits at once (:mod:`compress.quantize.budgets`).
3. The weights are rounded layer by layer against the float network (:mod:`compress.quantize.rebuild`).
4. A sum of second-order costs knows nothing of what many coarse layers do to each other, so the solution is compared
   with those that leave out the narrowest widths, by the divergence from the float network that each really has.

No labels are read, and nothing is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.errors import LimitsUnreachable
from compress.graph.interpret import Steps
from compress.graph.trace import layer_name
from compress.quantize import budgets, hardware
from compress.quantize.allocation import Allocation, solve
from compress.quantize.choices import Limits, Problem
from compress.quantize.mixed import integer_precisions
from compress.quantize.rebuild import Layer, rebuild
from compress.quantize.simulation import Simulation
from compress.quantize.study import Study, shared_study, widest
from compress.types import Context, LayerPlan, Note, Quantization, State


@dataclass(frozen=True, slots=True)
class HessianAware:
    """Average weight bits of at most ``weight_bits``, spent where they matter most, under the context's other limits.

    Those are the budget's for the file, RAM, latency and bit operations, and the target's own for file and RAM.

    Attributes:
        weight_bits: cap on the average over all layers' weights.
        activation_bits: of the layers' inputs: all have as many unless a limit asks for fewer.
        nearest: where the limits can't be met, meet the least possible and note it; else raise.
    """

    weight_bits: float = 6.0
    activation_bits: int = 8
    nearest: bool = False
    label: ClassVar[str] = "quantize by second-order sensitivity"

    def __call__(self, state: State, context: Context) -> State:
        """The quantized state.

        Raises:
            LimitsUnreachable: the limits can't be met; the least possible is named.
            BadInput: the target has no integer kernels with as many activation bits.
            BadData: the calibration data can't be used.
        """
        precisions = integer_precisions(context.target, self.activation_bits)
        limits = budgets.asked(context.budget, self.weight_bits)
        device = budgets.asked(context.budget.on(context.target), self.weight_bits)
        best = widest(precisions)
        if self.weight_bits >= best.weight_bits and set(limits.given()) == {"weight_bits"}:
            # Nothing to choose, unless the device itself is too small. What a file takes beside its weights isn't
            # known before one is written: where they fill half of the device, that is looked at.
            known = shared_study(state, context, (best,))
            half = None if device.weight_bytes is None else device.weight_bytes // 2
            held = budgets.binding(known, context, replace(device, weight_bytes=half))
            try:
                chosen = solve(budgets.problem(known, context, held), held)
                return rounded(known, state, chosen, context)
            except LimitsUnreachable:
                pass
        study = shared_study(state, context, precisions)
        device = budgets.binding(study, context, device)
        found = budgets.problem(study, context, device)
        if device.weight_bytes is not None:
            overhead = budgets.file_overhead(study, context)
            found = replace(found, fixed_weight_bytes=max(found.fixed_weight_bytes, overhead))
        allocation, notes = budgets.allocate(found, limits, device, self.nearest)
        if notes:
            return rounded(study, state, allocation, context, notes)
        return least_divergent(study, state, [allocation, *coarser_left_out(found, device, allocation)], context)


def coarser_left_out(found: Problem, limits: Limits, best: Allocation) -> list[Allocation]:
    """The solutions under ``limits`` without the narrowest weights, without the two narrowest widths, and so on.

    Args:
        found: with all widths.
        limits: that ``best`` meets.
        best: the solution of ``found``. It isn't among the results, nor is any of them twice.
    """
    known = [best]
    for floor in sorted({option.precision.weight_bits for layer in found.layers for option in layer.options})[1:]:
        layers = tuple(
            replace(layer, options=tuple(o for o in layer.options if o.precision.weight_bits >= floor))
            for layer in found.layers
        )
        try:
            solution = solve(replace(found, layers=layers), limits)
        except LimitsUnreachable:
            break
        if all(solution.precisions != each.precisions for each in known):
            known.append(solution)
    return known[1:]


def least_divergent(study: Study, state: State, choices: Sequence[Allocation], context: Context) -> State:
    """``state`` quantized by the choice whose output is nearest to the float network's on the calibration inputs."""
    made = []
    for number, choice in enumerate(choices, start=1):
        context.progress(f"round the weights, choice of widths {number} of {len(choices)}")
        result = rounded(study, state, choice, context)
        if len(choices) == 1:
            return result
        made.append((divergence(study, result, context), number, result))
    return min(made, key=lambda each: each[:2])[2]


def divergence(study: Study, state: State, context: Context) -> float:
    """How far a quantized state's output is from the float network's, on the study's inputs.

    For classification the mean of ``KL(softmax(float) || softmax(quantized))`` in nats, otherwise the squared error.

    Args:
        study: of the network that ``state`` was made of.
        state: see above.
        context: of the job.
    """
    held = dict(state.model.named_parameters())
    known = study.whole.parameters
    parameters = {name: held[name].to(value.device) if name in held else value for name, value in known.items()}
    assert state.quantization is not None
    made = Simulation(replace(study.whole, parameters=parameters), state.quantization.activations)
    total = 0.0
    with torch.no_grad():
        for x in study.inputs.split(study.batch):
            wanted, got = (_output(Simulation(study.whole, {}), x), _output(made, x))
            if context.data.task == "classification":
                wanted, got = (functional.log_softmax(each.double(), -1) for each in (wanted, got))
                total += float(functional.kl_div(got, wanted, reduction="sum", log_target=True))
            else:
                total += float((got - wanted).double().square().sum())
    return total / len(study.inputs)


def _output(simulation: Simulation, x: Tensor) -> Tensor:
    environment, steps = simulation.start((x,)), simulation.steps
    for at, node in enumerate(steps.nodes):
        simulation.run(environment, [node])
        for source in {each.name for each in node.all_input_nodes}:
            if steps.last_use.get(source) == at and source != steps.output:
                environment.pop(source, None)
    result: Tensor = environment[steps.output]
    return result


def rounded(study: Study, state: State, chosen: Allocation, context: Context, notes: tuple[Note, ...] = ()) -> State:
    """``state`` quantized as ``chosen`` says."""
    plan = state.plan.updated(
        *(LayerPlan(name, state.plan.layer(name).keep, p) for name, p in chosen.precisions.items())
    )
    bits = {weight: chosen.precisions[layer_name(weight)].weight_bits for weight in study.placement.weights}
    only = study.activation_widths[-1]
    grids = {name: widths[chosen.tensor_bits.get(name, only)] for name, widths in study.grids.items()}
    made = Simulation(replace(study.whole, parameters=dict(study.whole.parameters)), grids)
    weights = rebuild(
        study.whole,
        made,
        bits,
        study.inputs,
        batch=study.batch,
        generator=context.generator,
        progress=context.progress,
    )
    model = _copied(study.state.model, made.steps, study.layers)
    quantization = Quantization(
        {weight: weights[weight] for weight in study.placement.weights}, grids, study.placement.carried
    )
    said = (*state.notes, *study.state.notes, *study.placement.notes, *notes, *chosen.notes)
    quantized = replace(state, model=model, plan=plan, quantization=quantization, notes=said)
    quantized = hardware.placed(quantized, study.network, study.inputs, context)
    return replace(quantized, notes=tuple(dict.fromkeys(quantized.notes)))


def _copied(model: nn.Module, steps: Steps, layers: Mapping[str, Layer]) -> nn.Module:
    """A copy of ``model`` with the weights and biases of ``steps``."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for layer in layers.values():
            for name in (layer.weight, layer.bias):
                if name is not None:
                    made.get_parameter(name).copy_(steps.parameters[name])
    return made.eval()
