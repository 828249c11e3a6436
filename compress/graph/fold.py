"""Fold batch normalization into the convolution or linear layer in front of it.

With ``y = gamma (W x + b - mu) / sqrt(var + eps) + beta`` the folded layer has
``W' = W * gamma / sqrt(var + eps)`` along its output axis and
``b' = (b - mu) * gamma / sqrt(var + eps) + beta``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compress.graph.groups import PRODUCES
from compress.graph.trace import Network, kind
from compress.types import Note


def fold_batch_norm(model: nn.Module, network: Network) -> tuple[nn.Module, tuple[Note, ...]]:
    """A copy of ``model`` whose batch norms are folded where they can be, and notes on those that can't.

    A folded batch norm becomes ``nn.Identity``; the module keeps its own class. The result computes
    the same in evaluation mode.
    """
    folded = copy.deepcopy(model)
    pairs, notes = foldable(model, network)
    for norm, layer in pairs.items():
        _fold(folded.get_submodule(layer.path), folded.get_submodule(norm), layer.axis)
        parent, _, name = norm.rpartition(".")
        setattr(folded.get_submodule(parent), name, nn.Identity())
    return folded, notes


@dataclass(frozen=True, slots=True)
class Front:
    """The layer in front of a batch norm: its module path, the traced node, its weight's output axis."""

    path: str
    node: str
    axis: int


def foldable(model: nn.Module, network: Network) -> tuple[dict[str, Front], tuple[Note, ...]]:
    """Batch norm (module path) -> the layer that it can be folded into, and notes on those that can't."""
    pairs: dict[str, Front] = {}
    notes: list[Note] = []
    uses = _uses(network)
    for node in network.nodes:
        if kind(node) != "batch_norm":
            continue
        path = _owner_of(network, node)
        reason = _obstacle(network, model, node, path, uses)
        if reason:
            notes.append(Note(path, "batch_norm", f"not folded: {reason}"))
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        weight = network.parameter(source.args[1])
        assert weight is not None
        pairs[path] = Front(weight.rpartition(".")[0], source.name, PRODUCES[kind(source)])
    return pairs, tuple(notes)


def unfold(
    layer: nn.Module, norm: nn.Module, axis: int, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> None:
    """Make ``layer`` followed by ``norm`` compute ``weight x + bias``, in place; the inverse of folding.

    With ``mean`` and ``var`` of ``weight x`` over data, the batch norm gets the statistics that training
    would find, so that it computes the same in both modes: ``gamma = sqrt(c^2 var + eps) / c`` and
    ``beta = bias + mean``, where ``c`` brings the rows of the weight to the norm that they had.

    Args:
        layer, norm: a convolution or linear layer and the batch norm behind it.
        axis: the weight's output axis.
        weight, bias: what the two have to compute.
        mean, var: of each channel of ``weight x``, (channels,).
    """
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    old = layer.weight
    assert isinstance(old, nn.Parameter)
    along = [1] * weight.dim()
    along[axis] = -1
    scale = torch.ones_like(mean, dtype=torch.float64)
    with torch.no_grad():
        if norm.weight is not None:
            rows = [t.detach().double().movedim(axis, 0).flatten(1).norm(dim=1) for t in (old, weight)]
            scale = torch.where((rows[0] > 0) & (rows[1] > 0), rows[0] / rows[1].clamp_min(1e-30), scale)
            spread = (var.double() * scale.square() + norm.eps).sqrt()
            norm.weight.copy_(spread / scale)
            norm.bias.copy_(bias.double() + mean.double())
            norm.running_mean.copy_(mean.double() * scale)
            norm.running_var.copy_(var.double() * scale.square())
        else:
            norm.running_mean.copy_(-bias)
            norm.running_var.fill_(1 - norm.eps)
        old.copy_(weight.double() * scale.view(along))
        if isinstance(layer.bias, torch.Tensor):
            layer.bias.zero_()


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


def folded_parameters(layer: nn.Module, norm: nn.Module, axis: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``layer`` with the batch norm behind it folded in, in the weight's own type.

    Both have gradients with respect to the parameters of the two.

    Args:
        layer, norm: a convolution or linear layer, and a batch norm with running statistics.
        axis: the weight's output axis.
    """
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
    return (weight.double() * scale.view(along)).to(weight.dtype), shift.to(weight.dtype)


def _fold(layer: nn.Module, norm: nn.Module, axis: int) -> None:
    weight, bias = folded_parameters(layer, norm, axis)
    layer.weight = nn.Parameter(weight.detach())
    layer.bias = nn.Parameter(bias.detach())


def put_folded(layer: nn.Module, norm: nn.Module, axis: int, weight: Tensor, bias: Tensor) -> None:
    """Change the parameters of both, in place, so that :func:`folded_parameters` gives ``weight`` and ``bias``.

    The statistics stay, but for the mean of a batch norm without a bias of its own. Where its factor is 0 the weights
    stay what they are, as nothing of them is seen.
    """
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    old = layer.weight
    assert isinstance(old, torch.Tensor)
    along = [1] * old.dim()
    along[axis] = -1
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        seen = scale != 0
        divisor = torch.where(seen, scale, 1.0)
        new = weight.double() / divisor.view(along)
        old.copy_(torch.where(seen.view(along), new, old.double()))
        own = layer.bias.double() if isinstance(layer.bias, torch.Tensor) else torch.zeros_like(scale)
        if norm.bias is not None:
            norm.bias.copy_(bias.double() - (own - norm.running_mean.double()) * scale)
        else:
            norm.running_mean.copy_(torch.where(seen, own - bias.double() / divisor, norm.running_mean.double()))
