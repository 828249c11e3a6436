"""The quantized network as a graph: explicit quantize/dequantize pairs and integer weights.

What this builds is both the simulation in torch and, node by node, what the ONNX file holds, so the
two cannot drift apart. Activations pass ``compress::quantize_dequantize``,

    q = clamp(round(x / scale) + zero_point, low, high),    x' = scale * (q - zero_point),

with rounding half to even, as ONNX defines QuantizeLinear. Weights become int8 buffers behind
``compress::dequantize``. Biases of integer layers become int32 with the scale input x weight, which is
the grid that integer accumulators live on.
"""

from __future__ import annotations

import torch
from torch import fx

from compress.graph.groups import PRODUCES
from compress.graph.module import plain_module, tensor_at
from compress.graph.trace import Network, kind
from compress.types import Grid, Quantization


@torch.library.custom_op("compress::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: torch.Tensor, scale: float, zero_point: int, bits: int, signed: bool) -> torch.Tensor:
    """Round ``x`` (float32, any shape) to a grid of one scale and back; see the module's docstring."""
    grid = Grid((scale,), zero_point, bits, signed)
    step = torch.tensor(scale, dtype=torch.float32, device=x.device)
    result: torch.Tensor = (torch.clamp(torch.round(x / step) + zero_point, grid.low, grid.high) - zero_point) * step
    return result


@quantize_dequantize.register_fake
def _(x: torch.Tensor, scale: float, zero_point: int, bits: int, signed: bool) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("compress::dequantize", mutates_args=())
def dequantize(q: torch.Tensor, scale: torch.Tensor, axis: int) -> torch.Tensor:
    """``q * scale`` along ``axis``: int8 or int32 of any shape, float32 scales, to float32."""
    along = [1] * q.dim()
    along[axis] = -1
    return q.to(torch.float32) * scale.view(along)


@dequantize.register_fake
def _(q: torch.Tensor, scale: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.empty_like(q, dtype=torch.float32)


def nearest(steps: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The integers, as floats, that ``steps`` (values over the scale, signed, zero point 0) are nearest to.

    Halves go to the even one; with one bit there is no 0, and 0 goes up.
    """
    if grid.bits == 1:
        return torch.where(steps >= 0, float(grid.high), float(grid.low)).to(steps.dtype)
    return torch.clamp(torch.round(steps), grid.low, grid.high)


def integers(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The integers (int8) that ``weight`` rounds to on ``grid``, saturated to it."""
    return nearest(weight / scales(grid, weight), grid).to(torch.int8)


def on_grid(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """``weight`` rounded to ``grid``: float32 values that lie on it exactly."""
    return integers(weight, grid).to(weight.dtype) * scales(grid, weight)


def scales(grid: Grid, weight: torch.Tensor) -> torch.Tensor:
    """The grid's scales in the type of ``weight`` and in a shape that goes with it."""
    scale = torch.tensor(grid.scale, dtype=weight.dtype, device=weight.device)
    if grid.axis is None:
        return scale
    along = [1] * weight.dim()
    along[grid.axis] = -1
    return scale.view(along)


def insert(network: Network, quantization: Quantization) -> fx.GraphModule:
    """The traced network with its grids in place, as a module that takes what the network takes."""
    module = plain_module(network)
    nodes = {node.name: node for node in module.graph.nodes}
    for name in (*quantization.activations, *quantization.carried):
        _after(module.graph, nodes[name], quantization.grid_of(name))
    for node in list(module.graph.nodes):
        if node.op == "call_function" and kind(node) in PRODUCES and len(node.args) > 1:
            weight = node.args[1]
            if isinstance(weight, fx.Node) and weight.op == "get_attr" and str(weight.target) in quantization.weights:
                _integer_layer(module, node, quantization)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    _drop_unused(module)
    return module


def _after(graph: fx.Graph, node: fx.Node, grid: Grid) -> None:
    users = [user for user in node.users if user.op != "output" and kind(user) != "sym_size"]
    if not users:
        return
    with graph.inserting_after(node):
        pair = graph.call_function(
            torch.ops.compress.quantize_dequantize.default,
            (node, grid.scale[0], grid.zero_point, grid.bits, grid.signed),
        )
    for user in users:
        user.replace_input_with(node, pair)


def _integer_layer(module: fx.GraphModule, node: fx.Node, quantization: Quantization) -> None:
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    name = str(weight.target)
    grid = quantization.weights[name]
    axis = grid.axis if grid.axis is not None else 0
    tensor = tensor_at(module, name).detach()
    outputs = tensor.shape[PRODUCES[kind(node)]]
    scale = torch.tensor(grid.scale, dtype=torch.float32)
    scale = scale if scale.numel() == outputs else scale.expand(outputs).contiguous()
    node.replace_input_with(weight, _dequantized(module, node, name, integers(tensor, grid), scale, axis))

    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    source = node.args[0]
    if isinstance(bias, fx.Node) and bias.op == "get_attr" and isinstance(source, fx.Node):
        if source.target is not torch.ops.compress.quantize_dequantize.default:
            return
        step = scale * float(source.args[1])  # type: ignore[arg-type]  # the pair's scale
        values = tensor_at(module, str(bias.target)).detach().double() / step.double()
        limit = 2**31 - 1
        rounded = torch.clamp(torch.round(values), -limit, limit).to(torch.int32)
        node.replace_input_with(bias, _dequantized(module, node, str(bias.target), rounded, step, 0))


def _dequantized(
    module: fx.GraphModule, user: fx.Node, name: str, values: torch.Tensor, scale: torch.Tensor, axis: int
) -> fx.Node:
    path, _, attribute = name.rpartition(".")
    owner = module.get_submodule(path)
    stored, number = attribute, 1
    # A layer that is applied again shares its weight, but has a bias on the grid of each of its inputs.
    while (known := getattr(owner, f"{stored}_scale", None)) is not None and not torch.equal(known, scale):
        number += 1
        stored = f"{attribute}_{number}"
    for suffix, tensor in (("quantized", values), ("scale", scale)):
        owner.register_buffer(f"{stored}_{suffix}", tensor)
    with module.graph.inserting_before(user):
        prefix = f"{path}.{stored}" if path else stored
        parts = [module.graph.get_attr(f"{prefix}_{suffix}") for suffix in ("quantized", "scale")]
        return module.graph.call_function(torch.ops.compress.dequantize.default, (*parts, axis))


def _drop_unused(module: fx.GraphModule) -> None:
    """Float weights that integers replaced must not reach the file."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in [*module.named_parameters(), *module.named_buffers()]]:
        if name not in used:
            path, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(path), attribute)
