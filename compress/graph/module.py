"""What torch.export made as an ordinary module: its graph can be changed, run, traced again and trained."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

import torch
from torch import fx, nn

from compress.errors import BadInput
from compress.graph.trace import Network, argument, kind


def plain_module(network: Network) -> fx.GraphModule:
    """The traced network as an ``fx.GraphModule`` of its own; nodes keep the trace's names."""
    exported = network.program.module(check_guards=False)
    assert isinstance(exported, fx.GraphModule)
    return ordinary(exported, network.inputs)


def in_evaluation_mode(model: nn.Module) -> nn.Module:
    """``model`` in evaluation mode; one that torch.export made, which has no modes, as an ordinary module.

    Raises:
        BadInput: it was exported in training mode, which is then in its operators and can't be undone.
    """
    try:
        return model.eval()
    except NotImplementedError:
        # torch.export's own: the modules that it hands out refuse train() and eval() so. Anybody else's goes on.
        if not isinstance(model, fx.GraphModule):
            raise
    for node in model.graph.nodes:
        if (
            node.op == "call_function"
            and kind(node) in TRAINING_ARGUMENT
            and argument(node, TRAINING_ARGUMENT[kind(node)])
        ):
            raise BadInput(
                f"the network was exported in training mode (its {kind(node)} trains); "
                "call model.eval() before torch.export.export"
            )
    return ordinary(model)


TRAINING_ARGUMENT = {"batch_norm": "training", "dropout": "train", "feature_dropout": "train", "alpha_dropout": "train"}
"""Operators that compute something else while they train, and the argument that says so."""


def ordinary(exported: fx.GraphModule, inputs: Iterable[str] | None = None) -> fx.GraphModule:
    """A module that torch.export handed out, as one like any other.

    Parameters and buffers are copies under their own names. Unlike the original it checks no shapes,
    has both modes and returns its output as it is.

    Args:
        exported: it is not changed.
        inputs: names for its inputs; its own by default.

    Raises:
        BadInput: its forward switches gradients on or off, which torch.export makes graphs of their own of, or reads a
            tensor that isn't registered.
    """
    root = nn.Module()
    copied: dict[int, nn.Parameter] = {}
    # One that is registered under two names stays one.
    for name, parameter in exported.named_parameters(remove_duplicate=False):
        if id(parameter) not in copied:
            copied[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
        place(root, name, copied[id(parameter)])
    for name, buffer in exported.named_buffers():
        place(root, name, buffer.detach().clone())
    registered = {name for name, _ in (*exported.named_parameters(remove_duplicate=False), *exported.named_buffers())}
    for name in dict.fromkeys(str(node.target) for node in exported.graph.nodes if node.op == "get_attr"):
        if name in registered:
            continue
        if isinstance(attrgetter(name)(exported), nn.Module):
            raise BadInput(
                "the network's forward has a block of torch.no_grad or torch.enable_grad, which torch.export makes a "
                "graph of its own of; take the block out, gradients are switched where they aren't needed"
            )
        raise BadInput(
            f"the network reads the tensor {name!r}, which isn't registered; make it a buffer (register_buffer)"
        )
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    names = iter(inputs) if inputs is not None else None
    for node in exported.graph.nodes:
        if node.op == "call_module":
            continue  # torch.export's guards on shapes
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        # torch.export's module renames an input that is called like a Python builtin, as nn.Sequential's is.
        copies[node].name = next(names) if names is not None and node.op == "placeholder" else node.name
    output = next(node for node in graph.nodes if node.op == "output")
    values = output.args[0]
    if isinstance(values, (tuple, list)) and len(values) == 1:
        output.args = (values[0],)
    return fx.GraphModule(root, graph).eval()


def tensor_at(module: nn.Module, name: str) -> torch.Tensor:
    """The parameter or buffer of a dotted name."""
    path, _, last = name.rpartition(".")
    tensor = getattr(module.get_submodule(path), last)
    assert isinstance(tensor, torch.Tensor)
    return tensor


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
