"""Architectures of tokens in small: attention in every common form, mixers, gates, and what is left alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class FusedAttention(nn.Module):
    """One linear layer for query, key and value; ``inner`` and ``heads`` are read in forward."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.inner = heads, head_dim, heads * head_dim
        self.qkv, self.out = nn.Linear(width, 3 * self.inner), nn.Linear(self.inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, self.inner))


class ViTBlock(nn.Module):
    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Class token, positional embedding, fused qkv split by reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.position = nn.Parameter(torch.randn(1, 17, 12) * 0.5)
        self.blocks = nn.Sequential(*(ViTBlock(12, FusedAttention(12, 4, 5)) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class SplitAttention(nn.Module):
    """Three linear layers, scores and softmax written out; sizes in a tuple, as older code has it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.split, self.scale = (heads, width // heads), (width // heads) ** -0.5
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], *self.split).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.heads(self.q(x)) @ self.heads(self.k(x)).transpose(-2, -1) * self.scale
        y = scores.softmax(-1) @ self.heads(self.v(x))
        return self.out(y.transpose(1, 2).flatten(2))


class HandWrittenTransformer(nn.Module):
    """Query, key and value by layers of their own, scores and softmax written out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, 4)
        self.block = ViTBlock(12, SplitAttention(12, 3))
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


class TorchTransformer(nn.Module):
    """``nn.TransformerEncoderLayer`` behind ``nn.MultiheadAttention`` used by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, 4)
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, activation="gelu")
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x)[0]
        return self.head(self.layer(x).mean(1))


class WindowAttention(nn.Module):
    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.5)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (at[:, :, None] - at[:, None, :] + window - 1).permute(1, 2, 0)
        self.register_buffer("index", apart[..., 0] * (2 * window - 1) + apart[..., 1])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(t, t, -1).permute(2, 0, 1)
        scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1) + bias.unsqueeze(0)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, -1))


class SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.attention = nn.LayerNorm(width), WindowAttention(width, heads, window)
        self.norm2, self.one, self.two = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, h, w, c = x.shape
        s = self.window
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(n, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        y = self.attention(y).view(n, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.two(F.gelu(self.one(self.norm2(x))))


class Swin(nn.Module):
    """Window partition and its reverse, a shift, relative position bias, patch merging."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 2, 2)
        self.blocks = nn.ModuleList([SwinBlock(12, 3, 4, 0), SwinBlock(12, 3, 4, 2)])
        self.norm, self.merge, self.head = nn.LayerNorm(48), nn.Linear(48, 16, bias=False), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.head(self.merge(self.norm(torch.cat(parts, -1))).mean((1, 2)))


class Mixer(nn.Module):
    """MLP-Mixer: one MLP over tokens, one over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Conv2d(3, 12, 4, 4), nn.LayerNorm(12), nn.LayerNorm(12)
        self.tokens = nn.Sequential(nn.Linear(16, 10), nn.GELU(), nn.Linear(10, 16))
        self.channels = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.norm2(x))).mean(1))


class Gated(nn.Module):
    """Gated linear units: by ``F.glu``, by chunk, and by two layers; RMS norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(48, 12), nn.RMSNorm(12)
        self.glu, self.chunk = nn.Linear(12, 20), nn.Linear(10, 16)
        self.gate, self.up, self.down = nn.Linear(8, 14), nn.Linear(8, 14), nn.Linear(14, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2).reshape(x.shape[0], 16, 48))
        a, b = self.chunk(F.glu(self.glu(self.norm(x)))).chunk(2, -1)
        y = a * F.gelu(b)
        return self.head((x + self.down(F.silu(self.gate(y)) * self.up(y))).mean(1))


class Text(nn.Module):
    """Integer inputs: embeddings of words and positions, fused qkv by chunk, one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(20, 12), nn.Embedding(9, 12)
        self.register_buffer("places", torch.arange(9))
        self.heads = 3
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.shared, self.norm, self.head = nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(12, 5)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.words(x) + self.positions(self.places)
        q, k, v = (self.split(part) for part in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm(x + self.out(y))
        return self.head(F.relu(self.shared(F.relu(self.shared(x)))).mean(1))


class Recurrent(nn.Module):
    """An LSTM between convolutions and linear layers: it stays, what is around it doesn't."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, 2, 1)
        self.lstm, self.one, self.head = nn.LSTM(48, 10, batch_first=True), nn.Linear(10, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        y, _ = self.lstm(x.permute(0, 2, 1, 3).flatten(2))
        return self.head(F.relu(self.one(y[:, -1])))


class TwoInputs(nn.Module):
    """Two inputs that meet in a sum; unequal parts of one layer by sizes in a tuple; einsum with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = (6, 10)
        self.image, self.vector = nn.Conv2d(3, 16, 4, 4), nn.Linear(7, 16)
        self.wide = nn.Parameter(torch.randn(9, 10) * 0.3)
        self.narrow, self.head = nn.Linear(6, 9), nn.Linear(9, 5)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.image(x).flatten(2).transpose(1, 2) + self.vector(z)[:, None])
        a, b = y.split(self.parts, -1)
        return self.head(F.relu(self.narrow(a) + torch.einsum("btd,kd->btk", b, self.wide)).mean(1))


class CrossAttention(nn.Module):
    """Learned queries that attend to an image's tokens: the projections' weights are parts of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, 4)
        self.queries = nn.Parameter(torch.randn(1, 5, 12))
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(self.queries.expand(x.shape[0], -1, -1), tokens, tokens)[0].mean(1))
