"""A traced network as an ordinary module: its graph can be changed, run, traced again and trained."""

from __future__ import annotations

import torch
from torch import fx, nn

from compress.graph.trace import Network


def plain_module(network: Network) -> fx.GraphModule:
    """The traced network as an ``fx.GraphModule`` of its own.

    Parameters and buffers are copies under their own names; nodes keep the trace's names. Unlike what
    torch.export hands out it checks no shapes, has both modes and returns its output as it is.
    """
    exported = network.program.module(check_guards=False)
    assert isinstance(exported, fx.GraphModule)
    root = nn.Module()
    for name, parameter in exported.named_parameters():
        place(root, name, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad))
    for name, buffer in exported.named_buffers():
        place(root, name, buffer.detach().clone())
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    inputs = iter(network.inputs)
    for node in exported.graph.nodes:
        if node.op == "call_module":
            continue  # torch.export's guards on shapes
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        # torch.export's module renames an input that is called like a Python builtin, as nn.Sequential's is.
        copies[node].name = next(inputs) if node.op == "placeholder" else node.name
    output = next(node for node in graph.nodes if node.op == "output")
    values = output.args[0]
    if isinstance(values, (tuple, list)) and len(values) == 1:
        output.args = (values[0],)
    return fx.GraphModule(root, graph).eval()


def place(root: nn.Module, name: str, value: torch.Tensor) -> None:
    """Register a parameter or buffer under a dotted name, making the modules on the way."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if isinstance(value, nn.Parameter):
        root.register_parameter(last, value)
    else:
        root.register_buffer(last, value)
