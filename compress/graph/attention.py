"""Multi-head attention with fewer heads than its width divided by their dimension."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from compress.errors import BadInput
from compress.graph.copies import copied


class PrunedMultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` whose heads, or whose width, pruning made fewer.

    ``head_dim`` stays what it was, so ``num_heads * head_dim`` no longer is ``embed_dim``. Parameters,
    arguments and results are those of ``nn.MultiheadAttention``, with ``in_proj_weight`` of shape
    (3 num_heads head_dim, embed_dim) and ``out_proj.weight`` of (embed_dim, num_heads head_dim).
    """

    @classmethod
    def follow(cls, module: nn.MultiheadAttention) -> None:
        """Set a module's class and sizes from the tensors that it has now, in place."""
        queries = module.in_proj_weight if module.in_proj_weight is not None else module.q_proj_weight
        heads = queries.shape[0] // (3 if module.in_proj_weight is not None else 1)
        width = module.out_proj.weight.shape[0]
        if (heads, width, queries.shape[1]) == (module.num_heads * module.head_dim, module.embed_dim, module.embed_dim):
            return
        module.num_heads, module.embed_dim = heads // module.head_dim, width
        if module.in_proj_weight is not None:
            module.kdim = module.vdim = module.in_proj_weight.shape[1]
        else:
            module.kdim, module.vdim = module.k_proj_weight.shape[1], module.v_proj_weight.shape[1]
        # torch's fused transformer layer reads the weights itself and takes for granted that the widths agree.
        module._qkv_same_embed_dim = False
        if type(module) is nn.MultiheadAttention:
            module.__class__ = cls

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As ``nn.MultiheadAttention.forward``.

        Raises:
            BadInput: the module has ``bias_k`` or ``add_zero_attn``. Whoever tries to remove its heads reports that.
        """
        itself = query is key and key is value
        if self.bias_k is not None or self.add_zero_attn:
            raise BadInput("attention with bias_k or add_zero_attn keeps its heads")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(query, key, value, itself)
        mask = self._mask(attn_mask, key_padding_mask, q)
        weights: torch.Tensor | None = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            attention = (scores if mask is None else scores + mask).softmax(-1)
            heads = F.dropout(attention, self.dropout, self.training) @ v
            weights = attention.mean(1) if average_attn_weights else attention
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        out = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _projected(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, itself: bool
    ) -> list[torch.Tensor]:
        """Queries, keys and values, (N, heads, L, head_dim) each; ``itself`` where all three come from one tensor."""
        weights: Any
        if itself and self.in_proj_weight is not None:
            # One product, as of an ordinary layer, so that it is counted and refitted as one.
            projected = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
            return [self._in_heads(x) for x in projected]
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [
            self._in_heads(F.linear(x, weight, bias))
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]

    def _in_heads(self, x: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = x.unflatten(-1, (self.num_heads, self.head_dim))
        return heads.transpose(1, 2)

    def _mask(
        self, attn_mask: torch.Tensor | None, padding: torch.Tensor | None, q: torch.Tensor
    ) -> torch.Tensor | None:
        """Both masks as one that is added to the scores, of a shape that broadcasts to (N, heads, L, S)."""
        total: torch.Tensor | None = None
        if attn_mask is not None:
            mask = _added(attn_mask, q)
            # (L, S), or one for each batch item and each head that is left.
            total = mask if mask.dim() == 2 else mask.view(q.shape[0], -1, *mask.shape[-2:])
        if padding is not None:
            mask = _added(padding, q).reshape(-1, 1, 1, padding.shape[-1])
            total = mask if total is None else total + mask
        return total


def with_plain_attention(model: nn.Module) -> nn.Module:
    """``model``, or a copy of it in which ``nn.MultiheadAttention`` computes by the same operators as when pruned.

    Torch's own forward takes other operators for fewer heads than the width holds, so that the networks before and
    after pruning couldn't be compared one operator at a time. Attention with ``bias_k`` or ``add_zero_attn`` stays.
    """

    def torchs(module: nn.Module) -> bool:
        return type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn

    if not any(torchs(module) for module in model.modules()):
        return model
    plain = copied(model)
    for module in plain.modules():
        if torchs(module):
            module.__class__ = PrunedMultiheadAttention
    return plain


def _added(mask: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(q.dtype)
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf"))
