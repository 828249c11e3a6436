"""ResNet-8, the image-classification network of MLPerf Tiny (Banbury et al. 2021).

Laid out as the reference Keras model: convolutions with bias, shortcuts of a 1x1 convolution without
batch norm, and strided 3x3 convolutions padded on the right and at the bottom only. It takes pixels
from 0 to 255 as they are, which is mean 0 and standard deviation 1/255 in this project's terms.
"""

from __future__ import annotations

from torch import Tensor, nn


def _same(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Keras's ``padding="same"`` for an even image: a stride of 2 needs one row and column after it."""
    if stride == 1:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(in_channels, out_channels, 3, stride=stride))


class Stack(nn.Module):
    """Two 3x3 convolutions beside the identity, or beside a 1x1 convolution where the stride is 2."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _same(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.shortcut(x) + out)  # type: ignore[no-any-return]  # modules return Any


class ResNet8(nn.Module):
    """A 3x3 stem of 16 channels, three stacks (16, 32, 64), mean pooling, a linear layer."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16, eps=1e-3)
        self.relu = nn.ReLU()
        self.stack1 = Stack(16, 16, 1)
        self.stack2 = Stack(16, 32, 2)
        self.stack3 = Stack(32, 64, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, 32, 32) float32 to logits (N, num_classes)."""
        out = self.relu(self.bn(self.conv(x)))
        out = self.stack3(self.stack2(self.stack1(out)))
        return self.linear(self.pool(out).flatten(1))  # type: ignore[no-any-return]  # modules return Any


def resnet8(num_classes: int = 10, in_channels: int = 3) -> ResNet8:
    """MLPerf Tiny's ResNet-8 for 32x32 images: 0.08 million parameters, 12.5 million multiply-accumulates."""
    return ResNet8(num_classes, in_channels)
