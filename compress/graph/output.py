"""The layer that makes a network's output, where its bias moves the outputs and nothing else."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from compress.graph.costs import FREE
from compress.graph.groups import PRODUCES
from compress.graph.trace import Network, argument, kind, layer_name

PASSES = FREE | {"mean", "avg_pool2d", "adaptive_avg_pool2d", "log_softmax", "permute", "transpose"}
"""Operators behind which a shift of a channel may still be the same shift of the output."""


def output_bias(model: nn.Module, network: Network, example: torch.Tensor) -> str | None:
    """The name of the bias whose entry c adds to output c of every input, and to nothing else.

    A linear layer or convolution without a bias counts too: :func:`with_output_bias` gives it one. Behind a
    log-softmax the shift is up to a constant of each input. That the bias does so is tried on ``example``.

    Args:
        model: in evaluation mode; it is not changed.
        network: its trace.
        example: a batch of its inputs.

    Returns:
        The parameter's qualified name; None where there is no such layer, or its bias is used elsewhere too.
    """
    outputs = network.outputs()
    node = outputs[0] if len(outputs) == 1 else None
    while node is not None and kind(node) in PASSES:
        node = node.args[0] if isinstance(node.args[0], fx.Node) else None
    if node is None or node.op != "call_function" or kind(node) not in PRODUCES:
        return None
    weight, given = network.parameter(node.args[1]), argument(node, "bias")
    if weight is None:
        return None
    bias = f"{layer_name(weight)}.bias" if given is None else network.parameter(given)
    if bias is None or (given is None and not _can_have(model, bias)):
        return None
    readers = [n for n in network.nodes if any(network.parameter(arg) == bias for arg in n.all_input_nodes)]
    return bias if len(readers) <= 1 and _moves_outputs(model, bias, example) else None


def with_output_bias(model: nn.Module, bias: str, shift: torch.Tensor) -> nn.Module:
    """A copy of ``model`` with ``shift`` (K,) added to the parameter ``bias``, which is made where there is none."""
    changed = copy.deepcopy(model)
    path, _, name = bias.rpartition(".")
    owner = changed.get_submodule(path)
    old = getattr(owner, name)
    if old is None:
        weight = owner.weight
        assert isinstance(weight, torch.Tensor)
        setattr(owner, name, nn.Parameter(shift.to(weight)))
        return changed
    with torch.no_grad():
        old += shift.to(old)
    return changed


def _can_have(model: nn.Module, bias: str) -> bool:
    owner = model.get_submodule(bias.rpartition(".")[0])
    return isinstance(owner, (nn.Linear, nn.modules.conv._ConvNd)) and owner.bias is None


def _moves_outputs(model: nn.Module, bias: str, example: torch.Tensor) -> bool:
    with torch.no_grad():
        before = model(example)
        if before.dim() != 2:
            return False
        try:
            shift = torch.linspace(-1, 1, before.shape[1])
            moved = with_output_bias(model, bias, shift)(example) - before
        except RuntimeError:  # the layer makes another number of channels
            return False
    centred = moved - moved.mean(1, keepdim=True)
    return torch.allclose(centred, (shift - shift.mean()).expand_as(centred), atol=1e-3)
