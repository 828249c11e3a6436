"""brevitas's quantizers on our grids, and where they go in a network's graph.

The scales are brevitas's parameters. Weights of one bit pass its ``BinaryQuant``; wider ones and activations are
rounded as by its ``IntQuant`` with straight-through gradients, in fewer passes over memory; biases of integer layers
are rounded to the grid that integer accumulators live on, as in :mod:`compress.graph.qdq`. Scales are learned in
the logarithm (Esser et al., *Learned Step Size Quantization*, ICLR 2020; Jain et al., *Trained Quantization
Thresholds*, MLSys 2020), each as a factor of the calibrated one,

    s = s_0 2^v,    v = 0 at the start,

so that training starts at the calibrated grid to the last bit. Zero points and bits stay. A network with these
quantizers computes, bit for bit, what :func:`compress.graph.qdq.insert` builds of the same parameters and grids.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.graph.groups import PRODUCES
from compress.graph.module import plain_module
from compress.graph.trace import Network, kind
from compress.types import Grid, Quantization

FOLDER = "quantizers"
"""Where they stand in the network that :func:`with_quantizers` makes."""

ACCUMULATOR = 2**31 - 1
"""The largest 32-bit integer: biases saturate there."""


SCALE_RATE = 3e-3
"""Adam's rate for the base-2 logarithms of the scales, at the highest learning rate. Jain et al. 2019 take 1e-2, from
ranges that weren't calibrated."""


class Quantizer(nn.Module):
    """One brevitas quantizer on one of our grids; the scale is learned, one for each of the grid's.

    Attributes:
        grid: where it starts.
        active: False lets its tensor pass as it is.
    """

    def __init__(self, grid: Grid, dims: int) -> None:
        super().__init__()
        from brevitas.core.quant import BinaryQuant
        from brevitas.core.restrict_val import LogFloatRestrictValue
        from brevitas.core.scaling import ParameterScaling

        self.grid, self.active = grid, True
        self.binary = grid.signed and grid.bits == 1
        self.view = [1] * dims
        if grid.axis is not None:
            self.view[grid.axis] = -1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ones = torch.ones(len(grid.scale))
            self.factor = ParameterScaling(ones, tuple(ones.shape), LogFloatRestrictValue())
            self.sign = BinaryQuant(self._shaped) if self.binary else None
        self.register_buffer("start", torch.tensor(grid.scale, dtype=torch.float32))

    def scale(self) -> Tensor:
        """The scales, float32, flat."""
        found: Tensor = self.start * self.factor(self.start)
        return found

    def _shaped(self, x: Tensor) -> Tensor:
        scale = self.scale()
        return scale.view(self.view) if self.grid.axis is not None else scale.squeeze()

    def forward(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid and back, same shape, with straight-through gradients."""
        if not self.active:
            return x
        if self.sign is not None:
            # Divided by the scale, as integers are: the gradient reaches the weights as it is, not times the scale.
            result: Tensor = self.sign(x / self._shaped(x).detach())[0]
            return result
        low, high = self.grid.low - self.grid.zero_point, self.grid.high - self.grid.zero_point
        rounded = _Round if self.grid.axis is None else _RoundWeights
        return rounded.apply(x, self._shaped(x), low, high)  # type: ignore[no-any-return,no-untyped-call]  # torch's

    def learned(self) -> Grid:
        """The grid with the scale that training found."""
        return replace(self.grid, scale=tuple(float(s) for s in self.scale().detach().flatten()))


class _Round(torch.autograd.Function):
    """What brevitas's ``IntQuant`` computes with one scale, its gradients too, in a fifth of the passes over memory.

    The zero point is in the ends ``low`` and ``high``, so rounding never sees it: half-way values go to the even
    integer as seen from 0.0, as ONNX has it; with the zero point added first, to the other where it is odd.
    With ``t = x / s`` and ``q = clamp(round(t), low, high)`` the result is ``s q``; where nothing was clipped the
    gradient passes, and that of the scale is ``sum g (q - t)``, where something was, ``sum g q``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        steps = x / scale
        result = steps.round().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(steps, result, scale)
        ctx.ends = (low - 0.5, high + 0.5)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        steps, result, scale = ctx.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(gradient, steps.round(), *ctx.ends)
        of_scale = _dot(gradient, result) / scale - _dot(passed, steps)
        return passed, of_scale, None, None


class _RoundWeights(torch.autograd.Function):
    """As :class:`_Round` with a scale for each of an axis, but weights keep a gradient where they leave the grid.

    So they can come back, and the scale has the gradient of the grid's end there (Esser et al. 2020, equation 3). Of
    ``IntQuant`` alone weights beyond the grid would have none.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        steps = x / scale
        result = steps.round().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(steps, result, scale)
        ctx.ends = (low, high)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        steps, result, scale = ctx.saved_tensors
        low, high = ctx.ends
        inside = torch.where((steps < low) | (steps > high), 0.0, steps)
        of_scale = (gradient * (result / scale - inside)).sum_to_size(scale.shape)
        return gradient, of_scale, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a.reshape(-1) @ b.reshape(-1)


class BiasQuantizer(nn.Module):
    """Rounds an integer layer's bias to 32 bits on the grid of its accumulators, input scale times weight scale."""

    def __init__(self, read: Quantizer, weight: Quantizer) -> None:
        super().__init__()
        # In a tuple they aren't submodules a second time.
        self.of = (read, weight)

    def forward(self, bias: Tensor) -> Tensor:
        """``bias`` (float32, one an output channel) rounded, with straight-through gradients."""
        from brevitas.function.ops_ste import round_ste

        read, weight = self.of
        if not (read.active and weight.active):
            return bias
        with torch.no_grad():
            step = weight.scale() * read.scale()
        rounded = round_ste(bias.double() / step.double()).clamp(-ACCUMULATOR, ACCUMULATOR)
        result: Tensor = rounded.to(torch.float32) * step
        return result


def with_quantizers(network: Network, quantization: Quantization) -> fx.GraphModule:
    """The traced network as a module of its own that can be trained, with a quantizer at each grid."""
    module = plain_module(network)
    graph = module.graph
    nodes = {node.name: node for node in graph.nodes}
    quantizers = nn.ModuleDict()
    module.add_module(FOLDER, quantizers)
    reads: dict[fx.Node, Quantizer] = {}
    for name in (*quantization.activations, *quantization.carried):
        key = quantization.carried.get(name, name)
        if key not in quantizers:
            quantizers[key] = Quantizer(quantization.activations[key], 0)
        users = [user for user in nodes[name].users if user.op != "output" and kind(user) != "sym_size"]
        with graph.inserting_after(nodes[name]):
            call = graph.call_module(f"{FOLDER}.{key}", (nodes[name],))
        reads[call] = _quantizer(module, key)
        for user in users:
            user.replace_input_with(nodes[name], call)
    for node in list(graph.nodes):
        if node.op == "call_function" and kind(node) in PRODUCES and len(node.args) > 1:
            weight = node.args[1]
            if isinstance(weight, fx.Node) and weight.op == "get_attr" and str(weight.target) in quantization.weights:
                _layer(module, node, weight, quantization.weights[str(weight.target)], reads)
    module.recompile()
    return module


def _layer(module: fx.GraphModule, node: fx.Node, weight: fx.Node, grid: Grid, reads: dict[fx.Node, Quantizer]) -> None:
    quantizers = module.get_submodule(FOLDER)
    assert isinstance(quantizers, nn.ModuleDict)
    name = str(weight.target)
    key = weight_key(name)
    if key not in quantizers:
        quantizers[key] = Quantizer(grid, module.get_parameter(name).dim())
    calls = [(weight, key)]
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    source = node.args[0]
    if isinstance(bias, fx.Node) and bias.op == "get_attr" and isinstance(source, fx.Node) and source in reads:
        quantizers[f"bias_{node.name}"] = BiasQuantizer(reads[source], _quantizer(module, key))
        calls.append((bias, f"bias_{node.name}"))
    for read, called in calls:
        with module.graph.inserting_before(node):
            node.replace_input_with(read, module.graph.call_module(f"{FOLDER}.{called}", (read,)))


def weight_key(name: str) -> str:
    """The name of a weight's quantizer."""
    return "weight_" + name.replace(".", "__")


def _quantizer(module: nn.Module, key: str) -> Quantizer:
    found = module.get_submodule(f"{FOLDER}.{key}")
    assert isinstance(found, Quantizer)
    return found


def weight_quantizer(module: nn.Module, name: str) -> Quantizer:
    """The quantizer of the weight ``name`` in a module that :func:`with_quantizers` made."""
    return _quantizer(module, weight_key(name))


def learned(module: nn.Module, quantization: Quantization) -> Quantization:
    """``quantization`` with the scales that the quantizers of ``module`` have."""
    weights = {name: weight_quantizer(module, name).learned() for name in quantization.weights}
    activations = {name: _quantizer(module, name).learned() for name in quantization.activations}
    return replace(quantization, weights=weights, activations=activations)
