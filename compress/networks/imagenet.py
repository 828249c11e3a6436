"""MobileNetV2 (Sandler et al. 2018) and SqueezeNet 1.1 (Iandola et al. 2016), with torchvision's keys."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

# Expansion, channels, blocks, stride of the first block (table 2 of the paper).
MOBILENETV2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv_norm_relu6(
    in_channels: int, out_channels: int, kernel: int, stride: int, groups: int, after: bool
) -> nn.Sequential:
    """Convolution, batch norm, ReLU6 under the names ``0``, ``1``, ``2``.

    Args:
        in_channels, out_channels, kernel, stride, groups: of the convolution.
        after: pad a strided convolution on the right and at the bottom only, as TensorFlow does for
            even images, by a module named ``pad``.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    padding = (kernel - 1) // 2
    if after and stride == 2:
        layers["pad"], padding = nn.ZeroPad2d((0, 1, 0, 1)), 0
    layers["0"] = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    layers["1"] = nn.BatchNorm2d(out_channels)
    layers["2"] = nn.ReLU6()
    return nn.Sequential(layers)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; the input is added where the shapes are equal."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int, after: bool) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_norm_relu6(in_channels, hidden, 1, 1, 1, after))
        layers += [
            conv_norm_relu6(hidden, hidden, 3, stride, hidden, after),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0.

    Args:
        num_classes: logits.
        in_channels: channels of the image.
        after: see :func:`conv_norm_relu6`.
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, after: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm_relu6(in_channels, 32, 3, 2, 1, after)]
        channels = 32
        for expansion, width, blocks, stride in MOBILENETV2_STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(channels, width, stride if block == 0 else 1, expansion, after))
                channels = width
        layers.append(conv_norm_relu6(channels, 1280, 1, 1, 1, after))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, 224, 224) float32 to logits (N, num_classes)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))  # type: ignore[no-any-return]  # modules return Any


class Fire(nn.Module):
    """Squeeze by a 1x1 convolution, expand by a 1x1 and a 3x3 one side by side."""

    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeeze, 1)
        self.squeeze_activation = nn.ReLU()
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1x1_activation = nn.ReLU()
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, 2 * expand, H, W)."""
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            [self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1
        )


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 64, 3, stride=2),
            nn.ReLU(),
            pool(),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            pool(),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            pool(),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(512, num_classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, 224, 224) float32 to logits (N, num_classes)."""
        return self.classifier(self.features(x)).flatten(1)  # type: ignore[no-any-return]  # modules return Any


def mobilenetv2(num_classes: int = 1000, in_channels: int = 3) -> MobileNetV2:
    """MobileNetV2 1.0 as torchvision lays it out: 3.5 million parameters."""
    return MobileNetV2(num_classes, in_channels)


def mobilenetv2_coral(num_classes: int = 1000, in_channels: int = 3) -> MobileNetV2:
    """MobileNetV2 1.0 with TensorFlow's padding, for the weights that Google Coral published."""
    return MobileNetV2(num_classes, in_channels, after=True)


def squeezenet1_1(num_classes: int = 1000, in_channels: int = 3) -> SqueezeNet:
    """SqueezeNet 1.1 as torchvision lays it out: 1.2 million parameters."""
    return SqueezeNet(num_classes, in_channels)
