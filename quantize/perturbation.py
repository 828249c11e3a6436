"""What rounding a weight or an activation costs at the output, to second order.

With ``J`` the Jacobian of the network's output ``z`` and ``A`` the Hessian of the loss with respect to ``z``, a
change ``d`` of one layer's weights raises the loss of a trained network by

    1/2 d^T H d  ~  1/2 E (J d)^T A (J d)  =  1/2 E_x E_v (g_v . d)^2,    g_v = d(v . z)/dw,  E v v^T = A,

with ``H`` replaced by its Gauss-Newton part (for networks that are piecewise linear in a layer's weights they are
equal there). HAWQ-V2 (Dong et al., NeurIPS 2020) has ``trace(H) / n * |d|^2`` instead, which supposes that all
directions of ``d`` matter alike; second-order rounding leaves its error where they don't. Since
``g_v . d = sum of dL/dy * (d x)`` over a layer's outputs ``y``, all layers, widths and draws take one backward pass a
draw and one product a width. The same holds for the rounding error of an activation.

For classification the loss is the divergence from the network's own prediction, so no labels are read:
``A = diag(p) - p p^T``. Otherwise it is half the squared error over the mean square of the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compress.data import Task
from compress.errors import NoGradient
from compress.graph.groups import PRODUCES
from compress.graph.interpret import BATCH, Environment, Steps
from compress.graph.trace import kind
from compress.quantize.simulation import rounded
from compress.types import Grid

DRAWS = 4
"""Vectors ``v`` an input: with 256 inputs the relative standard error is about 5%."""

Weights = Mapping[str, Mapping[int, tuple[Tensor, Tensor | None]]]
"""Weight -> bits -> the rounded weight and the bias that goes with it."""


@dataclass(frozen=True)
class Perturbations:
    """Expected increase of the loss, in nats for classification.

    Attributes:
        weights: (weight, bits) -> by rounding it alone.
        activations: (node, bits) -> by rounding that tensor alone.
    """

    weights: Mapping[tuple[str, int], float]
    activations: Mapping[tuple[str, int], float]


def perturbations(
    steps: Steps,
    weights: Weights,
    grids: Mapping[str, Mapping[int, Grid]],
    inputs: Tensor,
    *,
    batch: int,
    task: Task,
    generator: torch.Generator,
    draws: int = DRAWS,
) -> Perturbations:
    """Measure them on ``inputs`` (N, ...).

    Args:
        steps: the float network.
        weights: what to put in place of a layer's weight and bias.
        grids: node -> bits -> a grid for its tensor.
        inputs: calibration inputs.
        batch: inputs at a time.
        task: which loss.
        generator: of the draws, on the CPU.
        draws: vectors an input.

    Raises:
        NoGradient: the output has none with respect to what is rounded, or it is 0 everywhere.
    """
    layers = {
        node.name: name for node in steps.nodes if (name := weight_of(steps, node)) is not None and name in weights
    }
    sums: dict[tuple[str, int], Tensor] = {}
    count, heard = 0, False
    if not layers and not grids:
        return Perturbations({}, {})
    for x in inputs.split(batch):
        environment, leaves = _forward(steps, x, {*layers, *grids})
        output = environment[steps.output]
        if not output.requires_grad:
            raise NoGradient("the network's output depends on no layer's in a way that can be differentiated")
        gradients = _gradients(output, list(leaves.values()), task, draws, generator)
        heard = heard or any(bool(each.any()) for draw in gradients for each in draw)
        with torch.no_grad():
            for key, squares in _projected(steps, environment, layers, weights, grids, list(leaves), gradients):
                sums[key] = sums.get(key, torch.zeros(())) + squares
        count += len(x)
    if not heard:
        raise NoGradient("it is 0 at every layer, on all inputs")
    cost = {key: 0.5 * float(total) / (count * draws) for key, total in sums.items()}
    known = set(weights)
    return Perturbations(
        {key: value for key, value in cost.items() if key[0] in known},
        {key: value for key, value in cost.items() if key[0] not in known},
    )


def weight_of(steps: Steps, node: fx.Node) -> str | None:
    """The parameter that is the weight of the layer at ``node``; None where it isn't a layer with one."""
    weight = node.args[1] if kind(node) in PRODUCES and len(node.args) > 1 else None
    return steps.constants.get(weight.name) if isinstance(weight, fx.Node) else None


def _forward(steps: Steps, x: Tensor, names: set[str]) -> tuple[Environment, dict[str, Tensor]]:
    """Run the network, and add a zero to each named tensor, whose gradient is that of the tensor."""
    leaves: dict[str, Tensor] = {}
    environment = steps.start((x,))

    def watch(name: str) -> None:
        if name in names and environment[name].is_floating_point():
            leaves[name] = torch.zeros_like(environment[name]).requires_grad_(True)
            environment[name] = environment[name] + leaves[name]

    with torch.enable_grad():
        for name in steps.inputs:
            watch(name)
        for node in steps.nodes:
            steps.run(environment, [node])
            watch(node.name)
    return environment, leaves


def _gradients(
    output: Tensor, leaves: list[Tensor], task: Task, draws: int, generator: torch.Generator
) -> list[tuple[Tensor, ...]]:
    """For each draw of ``v`` the gradient of ``v . z`` with respect to each leaf."""
    z = output.detach()
    found = []
    for _ in range(draws):
        sign = torch.randint(0, 2, z.shape, generator=generator).to(z) * 2 - 1
        if task == "classification":
            # (I - r r^T) is a projection since r = sqrt(p) has norm 1, so diag(r) (I - r r^T) is a root of A.
            root = z.softmax(1).sqrt()
            vector = root * (sign - root * (root * sign).sum(1, keepdim=True))
        else:
            vector = sign / (z.square().mean().sqrt().clamp_min(1e-12) * z[0].numel() ** 0.5)
        found.append(
            torch.autograd.grad(output, leaves, vector, retain_graph=True, allow_unused=True, materialize_grads=True)
        )
    return found


def _projected(
    steps: Steps,
    environment: Environment,
    layers: Mapping[str, str],
    weights: Weights,
    grids: Mapping[str, Mapping[int, Grid]],
    order: list[str],
    gradients: list[tuple[Tensor, ...]],
) -> list[tuple[tuple[str, int], Tensor]]:
    """(weight or node, bits) -> the sum of ``(g . d)^2`` over inputs and draws."""
    place, inputs = {name: i for i, name in enumerate(order)}, int(environment[BATCH])
    # A weight that is used more than once has the sum of its uses' gradients.
    projections: dict[tuple[str, int], list[Tensor]] = {}
    for node in steps.nodes:
        if node.name in layers and node.name in place:
            name = layers[node.name]
            for bits, (weight, bias) in weights[name].items():
                change = _changed(steps, environment, node, weight, bias)
                key = (name, bits)
                dots = [_by_input(node, each[place[node.name]] * change, inputs) for each in gradients]
                old = projections.get(key)
                projections[key] = dots if old is None else [a + b for a, b in zip(old, dots, strict=True)]
    nodes = {node.name: node for node in steps.nodes}
    for name, widths in grids.items():
        if name not in place:
            continue
        value, made_by = environment[name].detach(), nodes.get(name)
        for bits, grid in widths.items():
            error = rounded(value, grid) - value
            projections[name, bits] = [_by_input(made_by, each[place[name]] * error, inputs) for each in gradients]
    return [(key, torch.stack(dots).square().sum().cpu()) for key, dots in projections.items()]


def _by_input(node: fx.Node | None, products: Tensor, inputs: int) -> Tensor:
    """Sums over all but the inputs; ``node`` is None for the network's own input.

    Inputs run along the first axis whose size depends on how many there are, in some layers together with windows or
    tokens of theirs.
    """
    axis = 0 if node is None else _batch_axis(node)
    if axis is None and inputs > 1:
        # Nothing tells inputs apart. Draws for different inputs are independent, so the square of the sum over
        # inputs is still, in expectation, the sum of the squares.
        return products.sum()[None]
    return products.movedim(axis or 0, 0).reshape(inputs, -1).sum(1)


def _batch_axis(node: fx.Node) -> int | None:
    sizes = node.meta["val"].shape
    return next((axis for axis, size in enumerate(sizes) if isinstance(size, torch.SymInt)), None)


def _changed(steps: Steps, environment: Environment, node: fx.Node, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the layer at ``node`` puts out more with other weights."""
    args = [steps.value(environment, each) for each in node.args]
    args[0], args[1] = args[0].detach(), weight - args[1]
    if len(args) > 2 and args[2] is not None and bias is not None:
        args[2] = bias - args[2]
    elif len(args) > 2:
        args[2] = None
    kwargs = {name: steps.value(environment, each) for name, each in node.kwargs.items()}
    change: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]  # an operator
    return change
