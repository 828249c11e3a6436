"""Inner products of single samples' gradients, by layer, at the cost of one backward pass.

The gradient of one sample by a weight W is, for a linear layer and for a convolution with its input unfolded,

    dW = sum_t g_t x_t^T,

over the positions t (tokens, pixels), with x the operator's input there and g the gradient at its output. The
ordinary gradient sums it over the batch; its inner products by sample are, with both sides at hand,

    <dW, dW'> = sum((G^T X) * (G'^T X)) = sum((X X^T) * (G G'^T)),

the second without ever forming dW, which is less work where positions are few (Goodfellow, *Efficient per-example
gradient computations*, 2015; Bu et al., *Scalable and efficient training of large convolutional neural networks
with differential privacy*, NeurIPS 2022). A weight that is applied several times has the positions of all.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from compress.graph.interpret import Environment, Steps
from compress.graph.trace import argument, kind, shape
from compress.quantize.piecewise import Layer

MOST_ROWS, MOST_ELEMENTS = 32, 1 << 27
"""Samples in one backward pass, and elements of the tensors that it makes."""

Sides = tuple[Tensor, Tensor]
"""Per sample what a weight multiplies (rows, groups, K, positions), and what it makes (rows, groups, O, positions)."""


def twice_differentiable() -> AbstractContextManager[None]:
    """Attention by plain products: torch's fused kernels have no second derivative."""
    manager: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return manager


def forward(
    steps: Steps,
    inputs: Sequence[Tensor],
    weights: Mapping[str, Tensor] | None = None,
    shifts: Mapping[str, Tensor] | None = None,
    keep: Collection[str] = (),
) -> Environment:
    """Run a network.

    Args:
        steps: the network.
        inputs: the network's.
        weights: parameters to take in the place of its own.
        shifts: what is added to some nodes' and inputs' values.
        keep: nodes whose values are wanted beside the output's; others are let go as soon as nothing reads them.
    """
    steps = replace(steps, parameters={**steps.parameters, **(weights or {})})
    shifts = shifts or {}
    environment = steps.start(inputs)
    for name in set(steps.inputs) & set(shifts):
        environment[name] = environment[name] + shifts[name]
    for position, node in enumerate(steps.nodes):
        steps.run(environment, (node,))
        if node.name in shifts:
            environment[node.name] = environment[node.name] + shifts[node.name]
        for source in (*node.all_input_nodes, node):
            if steps.last_use.get(source.name, position) <= position and source.name not in keep:
                environment.pop(source.name, None)
    return environment


class SampleGradients:
    """A network whose single samples' gradients by some layers' weights, or by tensors, can be asked for.

    Args:
        steps: the network.
        layers: whose weights.
        tensors: name -> nodes or inputs of the network whose activations are differentiated by instead; a name
            with several gives the sum.
        inputs: two samples, to see which axes are the batch's.
        batched: False if the network's code fixes the batch size at 1.
    """

    def __init__(
        self,
        steps: Steps,
        layers: Sequence[Layer],
        tensors: Mapping[str, Sequence[str]],
        inputs: Sequence[Tensor],
        batched: bool,
    ) -> None:
        self._steps, self._layers, self._tensors = steps, tuple(layers), dict(tensors)
        self._nodes = {node.name: node for node in steps.nodes}
        self.names = (*(layer.name for layer in layers), *tensors)
        read = {node for layer in layers if not layer.others for node in layer.nodes}
        self._watched = list(dict.fromkeys((*(n for n in read), *(t for each in tensors.values() for t in each))))
        # One sample at a time where a sample's share of a tensor can't be told, or a weight is read otherwise too.
        self.batched = batched and not any(layer.others for layer in layers) and self._by_sample(inputs)

    @property
    def rows(self) -> int:
        """How many samples to give at a time: as many as keep tensors within :data:`MOST_ELEMENTS`."""
        elements = sum(math.prod(shape(node)) for node in self._nodes.values())
        for layer in self._layers:
            for name in layer.nodes:
                node = self._nodes[name]
                weight = self._steps.parameters[layer.parameters[0]]
                # What each weight of an output channel multiplies, at every position.
                elements += weight[0].numel() * math.prod(shape(node)[2:] if weight.dim() > 2 else shape(node)[1:-1])
        return max(1, min(MOST_ROWS, MOST_ELEMENTS // max(1, elements)))

    def _by_sample(self, inputs: Sequence[Tensor]) -> bool:
        """True if the first half of each tensor's elements is what the first of two samples gives by itself."""
        if len(inputs[0]) < 2:
            return False
        read = {_operand(self._nodes[name]) for layer in self._layers for name in layer.nodes}
        names = [name for name in (*read, *self._watched, self._steps.output) if name is not None]
        with torch.no_grad(), twice_differentiable():
            both = forward(self._steps, [value[:2] for value in inputs], keep=names)
            one = forward(self._steps, [value[:1] for value in inputs], keep=names)
        for name in names:
            a, b = both[name], one[name]
            if a.numel() != 2 * b.numel() or a.shape[0] != 2 * b.shape[0]:
                return False
            first = a[: b.shape[0]].double()
            if not torch.allclose(first, b.double(), rtol=1e-3, atol=1e-4 * float(b.double().abs().max() + 1e-30)):
                return False
        return True

    def inner(self, inputs: Sequence[Tensor], left: Tensor, right: Tensor | None = None) -> Tensor:
        """``<J^T left, J^T right>`` of each sample and layer, float64 on the CPU, shape (rows, layers).

        Args:
            inputs: the network's, the samples along the first axis.
            left: a cotangent of the output for each sample, of the outputs' shape.
            right: another; None for ``left`` again, which gives squared norms.
        """
        if not self.batched and len(left) > 1:
            parts = [
                self.inner([x[i : i + 1] for x in inputs], left[i : i + 1], None if right is None else right[i : i + 1])
                for i in range(len(left))
            ]
            return torch.cat(parts)
        environment, seen = self._backward(inputs, (left,) if right is None else (left, right))
        if not seen:
            # None of the layers reaches the output.
            return torch.zeros(len(left), len(self.names), dtype=torch.float64)
        with torch.no_grad():
            columns = [self._weight(layer, environment, seen, len(left)) for layer in self._layers]
            for names in self._tensors.values():
                columns.append(_product([slopes[name] for name in names for slopes in seen], len(seen), left))
        return torch.stack(columns, 1).double().cpu()

    def gradients(self, inputs: Sequence[Tensor], left: Tensor) -> list[Tensor]:
        """``J^T left`` of each sample and layer: by layer (rows, weights), the weights in some order of their own."""
        if not self.batched and len(left) > 1:
            parts = [self.gradients([x[i : i + 1] for x in inputs], left[i : i + 1]) for i in range(len(left))]
            return [torch.cat(each) for each in zip(*parts, strict=True)]
        environment, seen = self._backward(inputs, (left,))
        found = []
        with torch.no_grad():
            for layer in self._layers:
                factors = self._sides(layer, environment, seen[0], len(left)) if seen and not layer.others else None
                slope = seen[0][layer.name] if seen and layer.others else None
                if factors is not None:
                    slope = factors[1] @ factors[0].transpose(-1, -2)
                size = self._steps.parameters[layer.parameters[0]].numel()
                found.append(left.new_zeros(len(left), size) if slope is None else slope.reshape(len(left), -1))
        return found

    def _backward(
        self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> tuple[Environment, list[dict[str, Tensor | None]]]:
        """All nodes' values, and for each cotangent the slopes at the watched nodes and at weights read otherwise."""
        with torch.enable_grad(), twice_differentiable():
            environment, leaves, weights = self._graph(inputs)
            output = environment[self._steps.output]
            wanted = {**leaves, **weights}
            seen: list[dict[str, Tensor | None]] = []
            if not output.requires_grad:
                return environment, seen
            for i, cotangent in enumerate(cotangents):
                slopes = torch.autograd.grad(
                    output,
                    list(wanted.values()),
                    cotangent.to(output.dtype),
                    retain_graph=i + 1 < len(cotangents),
                    allow_unused=True,
                )
                seen.append(dict(zip(wanted, slopes, strict=True)))
        return environment, seen

    def _graph(self, inputs: Sequence[Tensor]) -> tuple[Environment, dict[str, Tensor], dict[str, Tensor]]:
        """The values of all nodes, the watched ones among them, and leaves for weights that are read otherwise."""
        weights = {
            layer.name: self._steps.parameters[layer.parameters[0]].detach().requires_grad_()
            for layer in self._layers
            if layer.others
        }
        replaced = {p: weights[layer.name] for layer in self._layers if layer.others for p in layer.parameters}
        steps = replace(self._steps, parameters={**self._steps.parameters, **replaced})
        environment = steps.start(inputs)
        watched = set(self._watched)
        for name in watched & set(steps.inputs):
            environment[name] = environment[name].detach().requires_grad_()
        for node in steps.nodes:
            steps.run(environment, (node,))
            value = environment[node.name]
            if node.name in watched and not value.requires_grad:
                environment[node.name] = value.requires_grad_()
        return environment, {name: environment[name] for name in self._watched}, weights

    def _weight(
        self, layer: Layer, environment: Environment, seen: Sequence[Mapping[str, Tensor | None]], rows: int
    ) -> Tensor:
        if layer.others:
            return _product([each[layer.name] for each in seen], len(seen), torch.empty(rows))
        first, *rest = (self._sides(layer, environment, each, rows) for each in seen)
        if first is None:
            return torch.zeros(rows)
        second = rest[0] if rest else None
        made, again = first[1], None if second is None else second[1]
        read, read_again = first[0], None if second is None else second[0]
        positions, k, o = read.shape[-1], read.shape[-2], made.shape[-2]
        if positions * (k + o) < k * o:
            inputs = read.transpose(-1, -2) @ read if read_again is None else read.transpose(-1, -2) @ read_again
            outputs = made.transpose(-1, -2) @ (made if again is None else again)
            return (inputs * outputs).flatten(1).sum(1)
        gradient = made @ read.transpose(-1, -2)
        other = gradient if again is None or read_again is None else again @ read_again.transpose(-1, -2)
        return (gradient * other).flatten(1).sum(1)

    def _sides(
        self, layer: Layer, environment: Environment, seen: Mapping[str, Tensor | None], rows: int
    ) -> Sides | None:
        found = []
        for name in layer.nodes:
            slope = seen[name]
            if slope is not None:
                node = self._nodes[name]
                operand = self._steps.value(environment, node.args[0])
                weight = self._steps.value(environment, node.args[1])
                found.append(sides(node, operand.detach(), slope, weight.shape, rows))
        if not found:
            return None
        if len(found) == 1:
            return found[0]
        return torch.cat([a for a, _ in found], -1), torch.cat([b for _, b in found], -1)


def _operand(node: fx.Node) -> str | None:
    # An input or node; a parameter has no samples.
    first = node.args[0] if node.args else None
    return first.name if isinstance(first, fx.Node) and first.op != "get_attr" else None


def _product(values: Sequence[Tensor | None], sides: int, like: Tensor) -> Tensor:
    """Inner products by sample, summed over pairs of tensors."""
    total = like.new_zeros(len(like), dtype=torch.float64)
    for first, second in zip(values[::sides], values[sides - 1 :: sides], strict=True):
        if first is not None and second is not None:
            total = total + (first.double() * second.double()).reshape(len(like), -1).sum(1)
    return total


def sides(node: fx.Node, x: Tensor, slope: Tensor, weight: Sequence[int], rows: int) -> Sides:
    """The two factors of a weight's gradient by sample.

    Args:
        node: a convolution, transposed convolution or linear operator.
        x: its input.
        slope: the gradient at its output.
        weight: its weight's shape.
        rows: how many samples; tensors may have several entries a sample along the first axis (windows).
    """
    name = kind(node)
    if name == "linear":
        read = x.reshape(rows, -1, x.shape[-1]).transpose(1, 2).unsqueeze(1)
        made = slope.reshape(rows, -1, slope.shape[-1]).transpose(1, 2).unsqueeze(1)
        return read, made
    dims = len(weight) - 2
    stride, dilation = (_each(argument(node, key, 1), dims) for key in ("stride", "dilation"))
    groups = int(argument(node, "groups", 1))
    padding = argument(node, "padding", 0)
    if x.dim() == dims + 1:
        x, slope = x.unsqueeze(0), slope.unsqueeze(0)
    if name.startswith("conv_transpose"):
        # Its gradient is a convolution's with input and output exchanged.
        spread, plain = slope, x
    else:
        spread, plain = x, slope
    columns = _unfolded(spread, weight[2:], stride, _pads(padding, weight[2:], dilation), dilation, plain.shape[2:])
    n = len(plain)
    read = columns.reshape(n, groups, -1, columns.shape[-1])
    made = plain.reshape(n, groups, plain.shape[1] // groups, -1)
    return _merged(read, rows), _merged(made, rows)


def _merged(side: Tensor, rows: int) -> Tensor:
    """(rows * several, groups, K, positions) as (rows, groups, K, several * positions)."""
    if len(side) == rows:
        return side
    n, groups, k, positions = side.shape
    return side.reshape(rows, n // rows, groups, k, positions).permute(0, 2, 3, 1, 4).reshape(rows, groups, k, -1)


def _unfolded(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    out: Sequence[int],
) -> Tensor:
    """(n, channels, ...) -> (n, channels * taps, positions), for any number of spatial axes."""
    if any(low or high for low, high in pads):
        x = F.pad(x, [each for pair in reversed(pads) for each in pair])
    n, channels = x.shape[:2]
    for axis, (size, step, gap, count) in enumerate(zip(kernel, stride, dilation, out, strict=True)):
        windows = x.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
        x = windows.narrow(2 + axis, 0, count)
    dims = len(kernel)
    order = (0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    return x.permute(order).reshape(n, channels * math.prod(kernel), math.prod(out))


def _pads(padding: object, kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        total = [gap * (size - 1) for size, gap in zip(kernel, dilation, strict=True)]
        return [(each // 2, each - each // 2) for each in total]
    return [(each, each) for each in _each(padding, len(kernel))]


def _each(value: object, count: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value),)  # type: ignore[call-overload]
    return values * count if len(values) == 1 else values
