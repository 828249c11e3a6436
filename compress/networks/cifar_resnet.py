"""Residual networks for small images (He et al. 2016, section 4.2), depth 6n + 2.

The option-A networks carry the module and parameter names of the checkpoints that akamaster's
pytorch_resnet_cifar10 published, so those load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


class ZeroPadShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, and channels of zeros in front of and behind the others.

    Args:
        stride: step in height and width.
        before, after: how many channels of zeros to put in front and behind.
    """

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.before, self.after = stride, before, after

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, before + C + after, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """The attributes, for printing."""
        return f"stride={self.stride}, before={self.before}, after={self.after}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        in_channels, out_channels: channels of input and output.
        stride: of the first convolution and of the shortcut.
        shortcut: ``"A"`` for zero padding, ``"B"`` for a 1x1 convolution with batch norm; the
            identity where the shapes are equal.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Literal["A", "B"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            extra = out_channels - in_channels
            self.shortcut = ZeroPadShortcut(stride, extra // 2, extra - extra // 2)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))  # type: ignore[no-any-return]  # modules return Any


class CifarResNet(nn.Module):
    """A 3x3 stem, one stage a width (each after the first halves the image), mean pooling, a linear layer.

    Args:
        blocks: basic blocks a stage.
        in_channels: channels of the image.
        num_classes: logits.
        widths: channels of each stage.
        shortcut: see :class:`BasicBlock`.
    """

    def __init__(
        self,
        blocks: int,
        in_channels: int = 3,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        shortcut: Literal["A", "B"] = "A",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.stages = len(widths)
        channels = widths[0]
        for number, width in enumerate(widths, start=1):
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(BasicBlock(channels, width, 2 if number > 1 and block == 0 else 1, shortcut))
                channels = width
            self.add_module(f"layer{number}", stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) float32 to logits (N, num_classes)."""
        out = self.relu(self.bn1(self.conv1(x)))
        for number in range(1, self.stages + 1):
            out = self.get_submodule(f"layer{number}")(out)
        return self.linear(self.pool(out).flatten(1))  # type: ignore[no-any-return]  # modules return Any


def resnet20(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-20 with option-A shortcuts for 32x32 images: 0.27 million parameters."""
    return CifarResNet(3, in_channels, num_classes)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-56 with option-A shortcuts for 32x32 images: 0.85 million parameters."""
    return CifarResNet(9, in_channels, num_classes)


def resnet(num_classes: int = 10, in_channels: int = 1) -> CifarResNet:
    """ResNet-8 with option-B shortcuts for 1x32x32 digits, wide enough to be worth pruning: 0.22 million parameters."""
    return CifarResNet(1, in_channels, num_classes, (32, 64, 96), "B")
