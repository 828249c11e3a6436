"""Small networks, one for each way in which layers depend on one another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.graph import convolutional, transformers


class Plain(nn.Module):
    """A chain with batch norm, pooling, and a linear layer behind a flatten (repeated indices)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.linear1, self.linear2 = nn.Linear(12 * 4 * 4, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.linear2(F.relu(self.linear1(torch.flatten(x, 1))))


class Residual(nn.Module):
    """Two blocks that add to one stream, and a projection to a wider one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.c = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.d = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.project = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(self.b(self.a(x)) + x)
        x = F.relu(self.d(self.c(x)) + self.project(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Depthwise(nn.Module):
    """An inverted residual: expansion, depthwise convolution, projection, ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand, self.bn1 = nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.depth, self.bn2 = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)
        self.project, self.bn3 = nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = F.relu6(self.bn1(self.expand(x)))
        y = self.bn3(self.project(F.relu6(self.bn2(self.depth(y)))))
        return self.head((x + y).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 1)
        self.two = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.three = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.three(F.relu(self.two(F.relu(self.one(x)))))).mean((2, 3)))


class Dense(nn.Module):
    """Concatenations, as in DenseNet, and a branch of two kernels, as in Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.wide = nn.Conv2d(10, 6, 5, padding=2)
        self.narrow = nn.Conv2d(10, 5, 1)
        self.head = nn.Linear(11, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(self.one(x))
        b = torch.cat([a, F.relu(self.two(a))], 1)
        return self.head(torch.cat([self.wide(b), F.relu(self.narrow(b))], 1).mean((2, 3)))


class Squeeze(nn.Module):
    """Squeeze and excitation: channels scaled by a gate that is computed from them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(self.out(x * gate).mean((2, 3)))


class PaddedShortcut(nn.Module):
    """The option-A shortcut: subsampled in space, zero channels added on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        y = self.two(F.relu(self.one(x)))
        return self.head(F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))).mean((2, 3)))


class UNet(nn.Module):
    """A transposed convolution and a skip connection that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 10, 3, 2, 1)
        self.up = nn.ConvTranspose2d(10, 7, 2, 2)
        self.merge, self.out = nn.Conv2d(13, 6, 3, padding=1), nn.Conv2d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.up(F.relu(self.down2(a))))
        return self.out(F.relu(self.merge(torch.cat([a, b], 1))))


class Perceptron(nn.Module):
    """Linear layers on (batch, tokens, features), as in a transformer's MLP, around a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, 4)
        self.one, self.two = nn.Linear(12, 20), nn.Linear(20, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.two(F.gelu(self.one(x)))
        return self.head(x.mean(1))


class Attention(nn.Module):
    """Heads that are written as numbers, around layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, 8))
        x = x + self.two(F.gelu(self.one(x)))
        return self.head(x.mean(1))


ROSTER = (Plain, Residual, Depthwise, Grouped, Dense, Squeeze, PaddedShortcut, UNet, Perceptron, Attention)
"""Networks of one image batch (N, 3, 16, 16) for the tests of every part of the project."""

ARCHITECTURES = (
    *ROSTER,
    *(convolutional.BottleneckResNet, convolutional.PreActivationResNet, convolutional.DenseNet),
    *(convolutional.Inception, convolutional.ShuffleNet, convolutional.ShuffleNetV2, convolutional.ConvNeXt),
    *(convolutional.SuperResolution, convolutional.GroupNormNet, convolutional.MobileNetV3, convolutional.Transposed),
    *(transformers.ViT, transformers.HandWrittenTransformer, transformers.TorchTransformer, transformers.Swin),
    *(transformers.Mixer, transformers.Gated, transformers.Text, transformers.Recurrent, transformers.TwoInputs),
    transformers.CrossAttention,
)
"""Every architecture that the laws of surgery are tested on."""

IMAGE = (3, 16, 16)


def build(factory: type[nn.Module], seed: int = 0) -> nn.Module:
    """A network with random weights and batch-norm statistics, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = factory()
        for module in model.modules():
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
                nn.init.uniform_(module.weight, 0.5, 1.5)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def images(n: int = 4, seed: int = 1) -> torch.Tensor:
    """Random images (n, 3, 16, 16)."""
    return torch.randn(n, *IMAGE, generator=torch.Generator().manual_seed(seed))


def inputs_of(factory: type[nn.Module], n: int = 4) -> tuple[torch.Tensor, ...]:
    """Random inputs of an architecture, ``n`` of each."""
    generator = torch.Generator().manual_seed(1)
    if factory is transformers.Text:
        return (torch.randint(0, 20, (n, 9), generator=generator),)
    if factory is transformers.TwoInputs:
        return images(n), torch.randn(n, 7, generator=generator)
    return (images(n),)
