"""Convolutional architectures in small: one for each way in which published networks join their layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def conv(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    layer = nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(o), nn.ReLU())


class Bottleneck(nn.Module):
    def __init__(self, i: int, inner: int, o: int, stride: int = 1) -> None:
        super().__init__()
        self.one, self.two = conv(i, inner, 1), conv(inner, inner, 3, stride)
        self.three = nn.Sequential(nn.Conv2d(inner, o, 1, bias=False), nn.BatchNorm2d(o))
        plain = i == o and stride == 1
        self.project = None if plain else nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = x if self.project is None else self.project(x)
        return F.relu(self.three(self.two(self.one(x))) + skip)


class BottleneckResNet(nn.Module):
    """ResNet-50's blocks: two with a projection, one that adds to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.blocks = nn.Sequential(Bottleneck(8, 4, 16), Bottleneck(16, 4, 16), Bottleneck(16, 6, 24, 2))
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class PreBlock(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(n), nn.Conv2d(n, n, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(n), nn.Conv2d(n, n, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class PreActivationResNet(nn.Module):
    """Norm and activation in front of each convolution, nothing behind the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.ModuleDict({"first": PreBlock(8), "second": PreBlock(8)})
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks.values():
            x = block(x)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class DenseNet(nn.Module):
    """Every layer reads all in front of it; a transition halves the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False) for i in range(3))
        self.norm, self.transition = nn.BatchNorm2d(20), nn.Conv2d(20, 10, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.convs, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        x = F.avg_pool2d(self.transition(F.relu(self.norm(torch.cat(features, 1)))), 2)
        return self.head(x.mean((2, 3)))


class Inception(nn.Module):
    """Four branches of different kernels side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.branches = nn.ModuleList(
            [
                conv(8, 4, 1),
                nn.Sequential(conv(8, 3, 1), conv(3, 6)),
                nn.Sequential(conv(8, 3, 1), conv(3, 4, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(8, 5, 1)),
            ]
        )
        self.out, self.head = conv(19, 8, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(self.out(torch.cat([branch(x) for branch in self.branches], 1)).mean((2, 3)))


class ShuffleNet(nn.Module):
    """Grouped pointwise convolutions with a channel shuffle between them, around a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = 2
        self.stem, self.one = conv(3, 12), conv(12, 8, 1, groups=2)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.two = nn.Sequential(nn.Conv2d(8, 12, 1, groups=2, bias=False), nn.BatchNorm2d(12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.one(x)
        b, c, h, w = y.shape
        y = y.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(F.relu(x + self.two(self.depth(y))).mean((2, 3)))


class ShuffleNetV2(nn.Module):
    """One half of the channels goes past the block; the halves are shuffled behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.branches = nn.ModuleList(
            nn.Sequential(conv(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), conv(8, 8, 1))
            for _ in range(2)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for branch in self.branches:
            left, right = x.chunk(2, 1)
            x = torch.cat([left, branch(right)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x.mean((2, 3)))


class ChannelsFirstNorm(nn.Module):
    """Layer norm over channels, written by hand."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(n, n, 7, padding=3, groups=n), nn.LayerNorm(n)
        self.one, self.two = nn.Linear(n, 4 * n), nn.Linear(4 * n, n)
        self.gamma = nn.Parameter(torch.full((n,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.two(F.gelu(self.one(y)))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Depthwise 7x7, layer norm over channels last, a layer scale; a hand-written norm behind the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 2, 2), ChannelsFirstNorm(8)
        self.blocks = nn.Sequential(ConvNeXtBlock(8), ConvNeXtBlock(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.norm(self.stem(x))).mean((2, 3)))


class SuperResolution(nn.Module):
    """Pixel shuffle up, pixel unshuffle down, and a resize by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.up, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 16, 3, padding=1), nn.Conv2d(4, 5, 3)
        self.prelu, self.three, self.out = nn.PReLU(5), nn.Conv2d(20, 6, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pixel_shuffle(self.up(F.relu(self.one(x))), 2)
        x = self.three(F.pixel_unshuffle(self.prelu(self.two(x)), 2))
        return self.out(F.interpolate(F.relu(x), scale_factor=2.0, mode="bilinear"))


class GroupNormNet(nn.Module):
    """Group norm (whole groups go), instance norm, and a group norm of a single group."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(4, 12)
        self.two, self.norm2 = nn.Conv2d(12, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True)
        self.three, self.norm3 = nn.Conv2d(8, 6, 3, padding=1), nn.GroupNorm(1, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm2(self.two(F.relu(self.norm1(self.one(x))))))
        return self.head(self.norm3(self.three(x)).mean((2, 3)))


class MobileNetV3Block(nn.Module):
    def __init__(self, n: int, inner: int) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(n, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.depth, self.norm2 = nn.Conv2d(inner, inner, 5, 1, 2, groups=inner, bias=False), nn.BatchNorm2d(inner)
        self.squeeze, self.excite = nn.Conv2d(inner, inner // 4, 1), nn.Conv2d(inner // 4, inner, 1)
        self.project, self.norm3 = nn.Conv2d(inner, n, 1, bias=False), nn.BatchNorm2d(n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.hardswish(self.norm1(self.expand(x)))
        y = F.hardswish(self.norm2(self.depth(y)))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.norm3(self.project(y))


class MobileNetV3(nn.Module):
    """Inverted residuals with squeeze and excitation and hard swish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.blocks = nn.Sequential(MobileNetV3Block(8, 16), MobileNetV3Block(8, 24))
        self.head = nn.Sequential(nn.Linear(8, 12), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(12, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class Transposed(nn.Module):
    """Transposed convolutions, one of them depthwise, and weights that the network applies itself."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.3)
        self.up, self.each = nn.ConvTranspose2d(8, 6, 2, 2), nn.ConvTranspose2d(6, 6, 3, 1, 1, groups=6)
        self.mix = nn.Parameter(torch.randn(6, 7) * 0.3)
        self.head = nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.each(F.relu(self.up(F.relu(F.conv2d(x, self.kernel, padding=1)))))
        return self.head(F.relu(x.mean((2, 3)) @ self.mix))


class WeightNormed(nn.Module):
    """A convolution whose weight is computed from a direction and a length."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.second = nn.Conv2d(16, 12, 3)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))
