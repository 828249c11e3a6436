"""The original network without some units, by zeroing: the slow, independent counterpart of surgery."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from compress.graph.groups import Dependencies, Unit, removed_indices
from tests.graph.convolutional import ChannelsFirstNorm


class MaskedNorm(nn.Module):
    """Layer norm, RMS norm or a group norm of one group whose statistics leave channels out.

    ``y = gain (x - mean) / sqrt(variance + eps) + bias`` with sums over the channels that stay.
    """

    def __init__(self, norm: nn.Module, gone: Iterable[int]) -> None:
        super().__init__()
        self.norm = norm
        mask = torch.ones(len(norm.weight))
        mask[list(gone)] = 0.0
        self.register_buffer("mask", mask)
        eps = getattr(norm, "eps", 1e-6)
        self.eps = torch.finfo(torch.float32).eps if eps is None else eps
        self.first = isinstance(norm, (nn.GroupNorm, ChannelsFirstNorm))
        self.whole = isinstance(norm, nn.GroupNorm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.first:
            x = x.movedim(1, -1)
        dims = tuple(range(1, x.dim())) if self.whole else (-1,)
        mask = self.mask.expand_as(x)
        count = mask.sum(dims, keepdim=True)
        centred = x * mask
        if not isinstance(self.norm, nn.RMSNorm):
            centred = (x - centred.sum(dims, keepdim=True) / count) * mask
        y = centred / torch.sqrt(centred.square().sum(dims, keepdim=True) / count + self.eps) * self.norm.weight
        if getattr(self.norm, "bias", None) is not None:
            y = y + self.norm.bias
        return y.movedim(-1, 1) if self.first else y


def zeroed(model: nn.Module, dependencies: Dependencies, units: Iterable[Unit]) -> nn.Module:
    """A copy of ``model`` in which nothing reads ``units``, and no mean over channels counts them.

    It is in training mode where torch's transformer layers would otherwise call no norm at all; without
    dropout and batch norm in those, that changes nothing else.
    """
    copied = copy.deepcopy(model)
    gone = removed_indices(units)
    consumers = {slot for group in dependencies.groups for slot in group.consumers}
    norms = (nn.LayerNorm, nn.RMSNorm, ChannelsFirstNorm)
    for path, module in list(copied.named_modules()):
        one = isinstance(module, nn.GroupNorm) and module.num_groups == 1
        if (isinstance(module, norms) or one) and (f"{path}.weight", 0) in gone:
            parent, _, name = path.rpartition(".")
            setattr(copied.get_submodule(parent), name, MaskedNorm(module, gone[f"{path}.weight", 0]))
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = dict(copied.named_parameters())
    for name, axis in consumers & set(gone):
        index = torch.tensor(sorted(gone[name, axis]))
        assert id(model.get_parameter(name)) in named
        parameters[name].data.index_fill_(axis, index, 0.0)
    copied.eval()
    for module in copied.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.train()
            for part in module.modules():
                if isinstance(part, nn.Dropout):
                    part.p = 0.0
            module.self_attn.dropout = 0.0
    return copied
