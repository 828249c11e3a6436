"""Uniform quantization: one precision for every layer. The baseline that every other method must beat.

Per-channel symmetric weights and per-tensor activations after batch norms are folded, ranges of least
squared error (:mod:`compress.quantize.ranges`); Jacob et al., *Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference*, CVPR 2018, equations 1 to 7, without the
training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.errors import BadInput
from compress.graph.costs import layer_operators
from compress.quantize import hardware
from compress.quantize.calibrate import calibrated, calibration_inputs, folded
from compress.types import Context, LayerPlan, Precision, State, Target


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every convolution and linear layer at ``weight_bits`` and ``activation_bits``, each in [1, 8]."""

    weight_bits: int = 8
    activation_bits: int = 8
    label: ClassVar[str] = "quantize uniformly"

    def __call__(self, state: State, context: Context) -> State:
        """The quantized state."""
        precision = runnable(Precision(self.weight_bits, self.activation_bits, "integer"), context.target)
        inputs = calibration_inputs(context, context.generator)
        state, network = folded(state, inputs, context)
        layers = {layer.path: layer for layer in hardware.chosen(layer_operators(network), state.model)}
        plan = state.plan.updated(*(LayerPlan(name, state.plan.layer(name).keep, precision) for name in layers))
        return calibrated(state, network, plan, inputs, context)


def runnable(precision: Precision, target: Target) -> Precision:
    """``precision`` if the target has a kernel for it.

    Raises:
        BadInput: it has none; the ones it has are named.
    """
    if precision not in target.precisions:
        there = ", ".join(str(each) for each in target.precisions)
        raise BadInput(
            f"{target.name} has no kernel for {precision}; it runs {there}: "
            f"choose --weight-bits and --activation-bits among them"
        )
    return precision
