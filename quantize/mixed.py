"""Mixed precision by layer error: the baseline of the allocators.

Each layer's weights are rounded to the narrowest precision that the target runs, where the relative
squared error that this adds to the layer's own output,

    e_l(b) = ||W_b x - W x||^2 / ||W x||^2,

measured on calibration inputs, is smallest for the bits it saves; the widest are kept elsewhere, until
the average weight bits meet the budget. Layers are taken one at a time (greedily), so interactions
between layers are not seen; :mod:`compress.quantize.allocation` solves the whole problem.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from compress.errors import BadInput
from compress.graph.costs import layer_operators
from compress.graph.groups import PRODUCES
from compress.graph.module import plain_module
from compress.graph.operators import Operator
from compress.graph.qdq import on_grid
from compress.graph.trace import Network, kind, layer_name
from compress.quantize import hardware
from compress.quantize.calibrate import calibrated, calibration_inputs, folded
from compress.quantize.ranges import weight_grid
from compress.types import Context, LayerPlan, Precision, State, Target

INPUTS = 128
"""Calibration inputs for the layer errors: a mean over positions and channels too, so few are enough."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """Average weight bits of at most ``weight_bits``, in [narrowest, widest] that the target runs."""

    weight_bits: float = 6.0
    activation_bits: int = 8
    label: ClassVar[str] = "quantize by layer error"

    def __call__(self, state: State, context: Context) -> State:
        """The quantized state, bits chosen layer by layer."""
        widths = integer_widths(context.target, self.activation_bits)
        inputs = calibration_inputs(context, context.generator)
        state, network = folded(state, inputs, context)
        chosen = hardware.chosen(layer_operators(network), state.model)
        layers = tuple({layer.path: layer for layer in chosen}.values())
        errors = layer_errors(network, inputs[:INPUTS], widths)
        bits = allocate(layers, errors, widths, self.weight_bits)
        plan = state.plan.updated(
            *(
                LayerPlan(
                    layer.path,
                    state.plan.layer(layer.path).keep,
                    Precision(bits[layer.path], self.activation_bits, "integer"),
                )
                for layer in layers
            )
        )
        return calibrated(state, network, plan, inputs, context)


def integer_widths(target: Target, activation_bits: int) -> tuple[int, ...]:
    """The weight widths that the target runs with these activations, narrowest first.

    Raises:
        BadInput: it runs none.
    """
    widths = {
        p.weight_bits for p in integer_precisions(target, activation_bits) if p.activation_bits == activation_bits
    }
    return tuple(sorted(widths))


def default_activation_bits(target: Target) -> int:
    """8, or the most that the target's integer kernels take where they don't take 8."""
    known = {precision.activation_bits for precision in target.precisions if precision.kind == "integer"}
    return 8 if 8 in known or not known else max(known)


def integer_precisions(target: Target, activation_bits: int) -> tuple[Precision, ...]:
    """The integer precisions that the target runs with activations of at most so many bits, narrowest weights first.

    Raises:
        BadInput: it runs none with exactly as many.
    """
    integer = [p for p in target.precisions if p.kind == "integer"]
    known = sorted({p.activation_bits for p in integer})
    if activation_bits not in known:
        there = f"it has {', '.join(map(str, known))}: choose --activation-bits among them" if known else "it has none"
        raise BadInput(
            f"{target.name} has no integer kernels with {activation_bits}-bit activations; {there}, "
            "or use --quantize none"
        )
    return tuple(sorted(p for p in integer if p.activation_bits <= activation_bits))


def allocate(
    layers: tuple[Operator, ...], errors: Mapping[tuple[str, int], float], widths: tuple[int, ...], average: float
) -> dict[str, int]:
    """Bits for each layer: start at the widest, narrow where the added error per saved bit is least.

    Raises:
        BadInput: even the narrowest everywhere is above ``average``.
    """
    total = sum(layer.weights for layer in layers)
    if average < widths[0]:
        raise BadInput(
            f"an average of {average:g} weight bits is out of reach: the target's narrowest kernel takes {widths[0]}"
        )
    bits = {layer.path: widths[-1] for layer in layers}
    spent = total * widths[-1]
    moves = sorted(
        (
            (errors[layer.path, narrow] - errors[layer.path, wide]) / (layer.weights * (wide - narrow)),
            layer.path,
            wide,
            narrow,
            layer.weights,
        )
        for layer in layers
        for narrow, wide in itertools.pairwise(widths)
    )
    # Errors grow as bits shrink, and faster each time, so the sorted order never asks for the second
    # step of a layer before its first; where noise in the errors says otherwise, the step waits.
    pending = list(moves)
    while spent > average * total + 1e-9:
        step = next((move for move in pending if bits[move[1]] == move[2]), None)
        if step is None:
            break
        pending.remove(step)
        _, path, wide, narrow, weights = step
        bits[path] = narrow
        spent -= weights * (wide - narrow)
    return _widened(layers, errors, widths, bits, average * total - spent)


def _widened(
    layers: tuple[Operator, ...],
    errors: Mapping[tuple[str, int], float],
    widths: tuple[int, ...],
    bits: dict[str, int],
    left: float,
) -> dict[str, int]:
    """Spend what the last narrowing left over: widen the layers with most error that still fit."""
    for layer in sorted(layers, key=lambda each: -errors[each.path, bits[each.path]]):
        wider = [
            width for width in widths if width > bits[layer.path] and layer.weights * (width - bits[layer.path]) <= left
        ]
        if wider:
            left -= layer.weights * (wider[-1] - bits[layer.path])
            bits[layer.path] = wider[-1]
    return bits


class _Errors(fx.Interpreter):
    """Runs the network in float and, at each layer, compares its output with rounded weights'."""

    def __init__(self, module: fx.GraphModule, widths: tuple[int, ...]) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.widths = widths
        self.squares: dict[tuple[str, int], float] = {}
        self.energies: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> torch.Tensor:
        value: torch.Tensor = super().run_node(n)
        weight = n.args[1] if n.op == "call_function" and kind(n) in PRODUCES and len(n.args) > 1 else None
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            self._compare(n, weight, value)
        return value

    def _compare(self, n: fx.Node, weight: fx.Node, value: torch.Tensor) -> None:
        path = layer_name(str(weight.target))
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        self.energies[path] = self.energies.get(path, 0.0) + float(value.double().square().sum())
        for bits in self.widths:
            grid = weight_grid(args[1], bits, PRODUCES[kind(n)])
            changed = (args[0], on_grid(args[1], grid), *args[2:])
            error = float((n.target(*changed, **kwargs) - value).double().square().sum())  # type: ignore[operator]  # an operator
            self.squares[path, bits] = self.squares.get((path, bits), 0.0) + error


def layer_errors(network: Network, inputs: torch.Tensor, widths: tuple[int, ...]) -> dict[tuple[str, int], float]:
    """Relative squared output error of each (layer, bits), on ``inputs`` (N, ...)."""
    module = plain_module(network)
    run = _Errors(module, widths)
    with torch.no_grad():
        for x in inputs.split(len(inputs) if network.dynamic_batch else 1):
            run.run(x)
    return {(path, bits): error / max(run.energies[path], 1e-30) for (path, bits), error in run.squares.items()}
