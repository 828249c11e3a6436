"""Fold batch normalization into the convolution or linear layer in front of it.

With ``y = gamma (W x + b - mu) / sqrt(var + eps) + beta`` the folded layer has
``W' = W * gamma / sqrt(var + eps)`` along its output axis and
``b' = (b - mu) * gamma / sqrt(var + eps) + beta``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import fx, nn

from compress.graph.groups import PRODUCES
from compress.graph.trace import Network, kind
from compress.types import Note


def fold_batch_norm(model: nn.Module, network: Network) -> tuple[nn.Module, tuple[Note, ...]]:
    """A copy of ``model`` whose batch norms are folded where they can be, and notes on those that can't.

    A folded batch norm becomes ``nn.Identity``; the module keeps its own class. The result computes
    the same in evaluation mode.
    """
    folded = copy.deepcopy(model)
    notes: list[Note] = []
    uses = _uses(network)
    for node in network.nodes:
        if kind(node) != "batch_norm":
            continue
        path = _owner_of(network, node)
        reason = _obstacle(network, folded, node, path, uses)
        if reason:
            notes.append(Note(path, "batch_norm", f"not folded: {reason}"))
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        weight = network.parameter(source.args[1])
        assert weight is not None
        layer_path = weight.rpartition(".")[0]
        _fold(folded.get_submodule(layer_path), folded.get_submodule(path), PRODUCES[kind(source)])
        parent, _, name = path.rpartition(".")
        setattr(folded.get_submodule(parent), name, nn.Identity())
    return folded, tuple(notes)


def _uses(network: Network) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for node in network.nodes:
        for arg in node.all_input_nodes:
            parameter = network.parameter(arg)
            if parameter is not None:
                counts[parameter] = counts.get(parameter, 0) + 1
    return counts


def _owner_of(network: Network, node: fx.Node) -> str:
    for arg in node.args[1:5]:
        name = network.parameter(arg)
        if name is not None:
            return name.rpartition(".")[0]
    return ""


def _obstacle(network: Network, model: nn.Module, node: fx.Node, path: str, uses: Mapping[str, int]) -> str:
    source = node.args[0]
    if not isinstance(source, fx.Node) or kind(source) not in PRODUCES:
        return "no convolution or linear layer stands in front of it"
    if len(source.users) != 1:
        return "the layer in front of it is read elsewhere too"
    weight = network.parameter(source.args[1])
    if weight is None or uses[weight] != 1:
        return "the layer in front of it is used more than once"
    layer = model.get_submodule(weight.rpartition(".")[0])
    if not hasattr(layer, "bias") or not weight.endswith(".weight"):
        return "the layer in front of it is not one of torch's own"
    norm = model.get_submodule(path) if path else model
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        return "it has no statistics of its own"
    if uses.get(f"{path}.running_mean", 0) != 1:
        return "it is used more than once"
    if getattr(layer, "groups", 1) != 1 and kind(source).startswith("conv_transpose"):
        return "it follows a grouped transposed convolution"
    return ""


def _fold(layer: nn.Module, norm: nn.Module, axis: int) -> None:
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    # float64: folding must not cost the last bits of what training found.
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double()
    if isinstance(layer.bias, torch.Tensor):
        shift = shift + layer.bias.double()
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    along = [1] * weight.dim()
    along[axis] = -1
    layer.weight = nn.Parameter((weight.double() * scale.view(along)).to(weight.dtype).detach())
    layer.bias = nn.Parameter(shift.to(weight.dtype).detach())
