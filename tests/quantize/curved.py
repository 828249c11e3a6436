"""Small networks in float64 for the tests of second-order sensitivity, and their dense Hessians."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from compress.quantize.hessian import Estimate


class ConvNet(nn.Module):
    """Convolution, batch norm, ReLU, pooling, residual addition, dropout: piecewise linear in every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.inner, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        x = F.relu(self.inner(x) + x)
        return self.head(self.dropout(x.mean((2, 3))))


class Kernels(nn.Module):
    """Every setting of a convolution: groups, stride, dilation, padding by name, depthwise, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
        self.dilated = nn.Conv2d(4, 3, (2, 1), dilation=(2, 1), padding="same")
        self.depthwise = nn.Conv2d(3, 3, 2, groups=3)
        self.transposed = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1, groups=1)
        self.pairs = nn.ConvTranspose2d(4, 4, 2, groups=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.dilated(F.relu6(self.grouped(x))))
        x = F.hardtanh(self.transposed(self.depthwise(x)))
        return F.adaptive_avg_pool2d(self.pairs(x), 1).flatten(1)


class Signals(nn.Module):
    """One-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(2, 3, 3, stride=2, padding=1), nn.ConvTranspose1d(3, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x.flatten(2)))).mean(2)


class Volumes(nn.Module):
    """Three-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv3d(1, 2, (1, 2, 2), padding=(0, 1, 0)), nn.ConvTranspose3d(2, 4, (1, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x.unsqueeze(1)))).amax((2, 3, 4))


class Tokens(nn.Module):
    """Linear layers on (batch, tokens, features), GELU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)[..., :4]
        return self.head((x + self.two(F.gelu(self.one(x)))).mean(1))


class TokensFirst(nn.Module):
    """Linear layers on (tokens, batch, features): the batch isn't the first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.one(x.flatten(2)[..., :4].transpose(0, 1)))).amax(0)


class Flattened(nn.Module):
    """Linear layers on (tokens * batch, features): a sample's rows aren't neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2)[..., :4].transpose(0, 1).reshape(-1, 4)
        return self.head(F.relu(self.one(rows))).reshape(2, -1, 4).amax(0)


class Windows(nn.Module):
    """A linear layer on windows of the image: several rows a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        windows = F.relu(self.one(x.reshape(-1, 2, 4)))
        return self.head(windows.reshape(x.shape[0], -1, 5).mean(1))


class Shared(nn.Module):
    """One layer applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :4]
        return self.head(F.relu(self.layer(F.relu(self.layer(x)))))


class TwoNames(nn.Module):
    """Two layers with the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x.flatten(1)[:, :4])))


class Tied(nn.Module):
    """A decoder that is its encoder transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.encoder(x.flatten(1)[:, :4]))
        return self.head(code @ self.encoder.weight)


class Attention(nn.Module):
    """Attention with layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.head = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)[..., :4]
        q, k, v = self.qkv(self.norm(x)).unsqueeze(1).chunk(3, -1)
        return self.head((x + F.scaled_dot_product_attention(q, k, v).squeeze(1)).mean(1))


class FixedBatch(nn.Module):
    """Its code fixes the batch size at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(32, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.one(x.reshape(1, 32))))


class Gated(nn.Module):
    """A product of two tensors that depend on the same layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        # torch's hardsigmoid, written out: it can't be differentiated twice itself.
        return self.head((x * (F.relu6(self.gate(x) + 3) / 6)).mean((2, 3)))


NETWORKS: dict[type[nn.Module], set[str]] = {
    ConvNet: {"conv", "inner", "head"},
    Kernels: {"grouped", "dilated", "depthwise", "transposed", "pairs"},
    Signals: {"one", "two"},
    Volumes: {"one", "two"},
    Tokens: {"two", "head"},
    TokensFirst: {"one", "head"},
    Flattened: {"one", "head"},
    Windows: {"one", "head"},
    Shared: {"head"},
    TwoNames: set(),
    Tied: {"head"},
    Attention: {"head"},
    FixedBatch: {"one", "head"},
    Gated: {"gate", "head"},
}
"""Networks of images (N, 2, 4, 4) with 4 outputs, and the layers that they are piecewise linear in."""


def build(factory: type[nn.Module], seed: int = 0) -> nn.Module:
    """A network in float64 whose weights give outputs that differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = factory().double()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.7)
    return model.eval()


def data(n: int = 5, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images (n, 2, 4, 4) and labels of 4 classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 4, 4, generator=generator).double(), torch.arange(n) % 4


def own(outputs: Tensor, _: Tensor) -> Tensor:
    """Cross-entropy against the network's own distribution, written out."""
    wanted = F.softmax(outputs.detach(), 1)
    return -(wanted * torch.log(F.softmax(outputs, 1))).sum() / len(outputs)


def dense(
    model: nn.Module, weights: list[str], x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The Hessian of the mean loss by the weights called so, together; an input at a time."""
    sizes = [model.get_parameter(name).numel() for name in weights]
    start = torch.cat([model.get_parameter(name).detach().reshape(-1) for name in weights])

    def value(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        replaced = {n: p.view_as(model.get_parameter(n)) for n, p in zip(weights, parts, strict=True)}
        outputs = [torch.func.functional_call(model, replaced, (x[i : i + 1],)) for i in range(len(x))]
        return loss(torch.cat(outputs), y)

    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(value, start)


def seeded(seed: int = 0) -> torch.Generator:
    """A generator with this seed."""
    return torch.Generator().manual_seed(seed)


def agrees(found: Estimate, wanted: float, errors: float = 4.5) -> bool:
    """True if an estimate lies within so many standard errors of ``wanted``; an exact one but for rounding."""
    return abs(found.value - wanted) <= errors * found.standard_error + 1e-8 * abs(wanted) + 1e-12
