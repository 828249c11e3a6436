"""What the removal of units does to the network's output, to first order.

Let ``g`` be the gradient of ``v . f(x)`` at the output of a layer that reads a group, ``v`` random signs.
If other weights change that output by ``e``, the output of the network changes by ``<g, e>`` along ``v``,
and ``E_v <g, e>^2`` is the squared change of the whole output (a Gauss-Newton approximation whose
cross terms between positions and layers are kept: errors that a mean pools coherently count as such,
which a diagonal Fisher matrix misses).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from compress.graph.interpret import BATCH, Environment, Steps
from compress.graph.moments import Reader
from compress.graph.trace import batch_first

IMAGES = 256
"""Inputs that the curves are measured on: their relative standard error is ``sqrt(2 / 256)``, 9%."""


class Probes:
    """Gradients of random signs of the output at the readers' outputs, the same at every pass.

    Args:
        steps: of the whole network.
        readers: the layers to look at.
        inputs: (N, ...).
        batch: inputs at a time.
        seed: of the signs.
    """

    def __init__(self, steps: Steps, readers: Sequence[Reader], inputs: Tensor, batch: int, seed: int) -> None:
        self.steps, self.readers, self.inputs, self.batch, self.seed = steps, readers, inputs, batch, seed

    def passes(self) -> Iterator[tuple[Environment, Mapping[str, Tensor], Mapping[str, Tensor]]]:
        """For each batch, the values of all nodes, the gradient at each reader's output, and of readers whose
        rows aren't inputs (windows, tokens) the input that each element belongs to, int64."""
        unlike = [reader.node.name for reader in self.readers if not batch_first(reader.node)]
        generator = torch.Generator().manual_seed(self.seed)
        weights = [self.steps.parameters[reader.weight] for reader in self.readers]
        before = [weight.requires_grad for weight in weights]
        try:
            for weight in weights:
                weight.requires_grad_(True)
            for x in self.inputs.split(self.batch):
                with torch.enable_grad():
                    environment = self.steps.start((x,))
                    self.steps.run(environment, self.steps.nodes)
                    output = environment[self.steps.output]
                    signs = signs_like(output, generator)
                    ends = [environment[reader.node.name] for reader in self.readers]
                    both = bool(unlike) and len(x) > 1
                    found = torch.autograd.grad((output * signs).sum(), ends, allow_unused=True, retain_graph=both)
                gradients = {
                    reader.node.name: torch.zeros_like(end) if g is None else g
                    for reader, end, g in zip(self.readers, ends, found, strict=True)
                }
                owners = _owners(output * signs, environment, gradients, unlike) if both else {}
                with torch.no_grad():
                    yield environment, gradients, owners
                del environment, gradients, owners, output, ends, found
        finally:
            for weight, asked in zip(weights, before, strict=True):
                weight.requires_grad_(asked)

    def importance(self) -> dict[str, Tensor]:
        """Reader -> mean squared gradient of each output channel for one input, float64 (groups, out)."""
        total: dict[str, Tensor] = {}
        for _, gradients, _ in self.passes():
            for reader in self.readers:
                squares = reader.rows(gradients[reader.node.name]).double().square().sum((1, 3)).cpu()
                total[reader.node.name] = total.get(reader.node.name, torch.zeros_like(squares)) + squares
        return {name: squares / len(self.inputs) for name, squares in total.items()}

    def measured(
        self, changes: Mapping[int, Mapping[int, Sequence[tuple[Reader, Tensor]]]]
    ) -> dict[int, dict[int, float]]:
        """``E <g, e>^2`` of each change.

        Args:
            changes: group -> units kept -> for each reader, what is added to its matrix, (groups, out, K + 1).
        """
        squares: dict[int, dict[int, float]] = {group: dict.fromkeys(each, 0.0) for group, each in changes.items()}
        for environment, gradients, owners in self.passes():
            for group, each in changes.items():
                for kept, parts in each.items():
                    moved = torch.zeros(environment[BATCH])
                    for reader, change in parts:
                        error = applied(self.steps, environment, reader, change)
                        name = reader.node.name
                        moved += _by_input(error * gradients[name], owners.get(name), len(moved)).cpu()
                    squares[group][kept] += float(moved.double().square().sum())
        n = len(self.inputs)
        return {group: {kept: total / n for kept, total in each.items()} for group, each in squares.items()}


def signs_like(output: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs, one an element of ``output``."""
    return torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1


def _owners(
    signed: Tensor, environment: Environment, gradients: Mapping[str, Tensor], names: Sequence[str]
) -> dict[str, Tensor]:
    """The input that each element of some tensors belongs to.

    Input i's share of ``signed`` is multiplied by i + 1, and so is the gradient of what belongs to it; an
    element without a gradient counts for nothing, whichever it is given to.
    """
    numbers = torch.arange(1, len(signed) + 1, device=signed.device).view(-1, *[1] * (signed.dim() - 1))
    ends = [environment[name] for name in names]
    found = torch.autograd.grad((signed * numbers).sum(), ends, allow_unused=True)
    owners = {}
    for name, scaled in zip(names, found, strict=True):
        once = gradients[name]
        ratio = torch.zeros_like(once) if scaled is None else torch.where(once == 0, 1.0, scaled / once)
        owners[name] = (ratio.round().nan_to_num(1.0) - 1).clamp(0, len(signed) - 1).long()
    return owners


def _by_input(products: Tensor, owner: Tensor | None, inputs: int) -> Tensor:
    """The sum of a tensor's elements for each input, (inputs,)."""
    if owner is None:
        return products.reshape(inputs, -1).sum(1)
    return products.new_zeros(inputs).index_add_(0, owner.flatten(), products.flatten())


def applied(steps: Steps, environment: Environment, reader: Reader, change: Tensor) -> Tensor:
    """What a reader would compute with ``change`` as its matrix and bias."""
    node = reader.node
    shape = steps.parameters[reader.weight].shape
    args = [steps.value(environment, each) for each in node.args]
    change = change.to(args[0])
    args[1] = change[..., :-1].reshape(shape)
    bias = change[..., -1].flatten()
    args[2:3] = [bias]
    kwargs = {name: steps.value(environment, each) for name, each in node.kwargs.items() if name != "bias"}
    result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]  # an operator
    return result


def curve(errors: np.ndarray, measured: Mapping[int, float]) -> np.ndarray:
    """An elimination's errors, scaled so that they pass through what was measured.

    Args:
        errors: the error when 0, 1, ... units are gone.
        measured: units kept -> the measured error.

    The ratio of the two is interpolated linearly in its logarithm between the measured counts, and no count
    is dearer than the next measured one; the result never falls as more units go.
    """
    units = len(errors) - 1
    points = sorted((kept, value) for kept, value in measured.items() if 0 < kept < units and value > 0)
    points = [(kept, value) for kept, value in points if errors[units - kept] > 0]
    if not points:
        return np.maximum.accumulate(errors)
    logarithms = [math.log(value / errors[units - kept]) for kept, value in points]
    kept_counts = np.arange(units, -1, -1)
    ratio = np.exp(np.interp(kept_counts, [kept for kept, _ in points], logarithms))
    scaled = errors * ratio
    highest = 0.0
    start = 0
    for kept, value in reversed(points):
        highest = max(highest, value)
        scaled[start : units - kept + 1] = np.minimum(scaled[start : units - kept + 1], highest)
        start = units - kept + 1
    return np.asarray(np.maximum.accumulate(scaled))
