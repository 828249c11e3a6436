"""The built-in networks: one record each. A network is added by adding its record to ``NETWORKS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import nn

from compress.networks.cifar_resnet import resnet, resnet20, resnet56
from compress.networks.imagenet import mobilenetv2, mobilenetv2_coral, squeezenet1_1
from compress.networks.mlperf_tiny import resnet8
from compress.networks.sensing import Reconstruction, sensing
from compress.networks.sensing_weights import RATIOS, shipped

WEIGHTS = Path(__file__).parent / "weights"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class NetworkInfo:
    """A built-in network.

    Attributes:
        name: as the command line takes it.
        factory: makes it with random weights; takes ``num_classes`` and ``in_channels``.
        input_shape: channels, height, width.
        num_classes: outputs.
        mean, std: of its inputs, one number a channel: ``(x / 255 - mean) / std``.
        weights: the file that ships with the package; None where ``--weights`` has to name one.
        data: the data set that it was made for, as ``--data`` takes it; None for ImageNet, which can't
            be named by a word.
        description: one line.
        block: of a network that measures images in blocks and gives images: it takes any that are whole blocks, and its
            factory takes ``ratio``; ``num_classes`` is 0. None for the others.
        by_ratio: the files that ship with the package, for a network with ``block``, by the ratio of measuring.
    """

    name: str
    factory: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Path | None
    data: str | None
    description: str
    block: int | None = None
    by_ratio: Mapping[float, Path] = field(default_factory=dict)


BLOCK = 32
"""Side of what the reconstruction network measures at once."""


def paired(num_classes: int = 0, in_channels: int = 1, ratio: float = 0.1, unfolded: bool = False) -> Reconstruction:
    """A reconstruction network, whose patterns of -1 and +1 are shown as pairs of 0 and 1.

    Args:
        num_classes: none; other networks' factories take it.
        in_channels: of the images.
        ratio: measurements a pixel.
        unfolded: the larger of the two.

    Raises:
        BadInput: a ratio that gives no measurement.
    """
    made = sensing(ratio=ratio, unfolded=unfolded, in_channels=in_channels, block=BLOCK)
    made.sensing.differential = True
    return made


NETWORKS: tuple[NetworkInfo, ...] = (
    NetworkInfo(
        "resnet",
        resnet,
        (1, 32, 32),
        10,
        # Of the training digits; compress/data/digits.py has the same.
        (0.305,),
        (0.324,),
        WEIGHTS / "resnet.safetensors",
        "digits",
        "ResNet-8 (wide) for handwritten digits, weights included",
    ),
    NetworkInfo(
        "resnet8",
        resnet8,
        (3, 32, 32),
        10,
        (0.0, 0.0, 0.0),
        (1 / 255, 1 / 255, 1 / 255),
        None,
        "cifar10",
        "MLPerf Tiny's image classification network",
    ),
    NetworkInfo(
        "resnet20",
        resnet20,
        (3, 32, 32),
        10,
        IMAGENET_MEAN,
        IMAGENET_STD,
        None,
        "cifar10",
        "ResNet-20 for CIFAR-10, option-A shortcuts",
    ),
    NetworkInfo(
        "resnet56",
        resnet56,
        (3, 32, 32),
        10,
        IMAGENET_MEAN,
        IMAGENET_STD,
        None,
        "cifar10",
        "ResNet-56 for CIFAR-10, option-A shortcuts",
    ),
    NetworkInfo(
        "mobilenetv2",
        mobilenetv2,
        (3, 224, 224),
        1000,
        IMAGENET_MEAN,
        IMAGENET_STD,
        None,
        None,
        "MobileNetV2 1.0 for ImageNet, torchvision's layout",
    ),
    NetworkInfo(
        "mobilenetv2-coral",
        mobilenetv2_coral,
        (3, 224, 224),
        1000,
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        None,
        None,
        "MobileNetV2 1.0 with TensorFlow's padding and inputs from -1 to 1",
    ),
    NetworkInfo(
        "squeezenet1_1",
        squeezenet1_1,
        (3, 224, 224),
        1000,
        IMAGENET_MEAN,
        IMAGENET_STD,
        None,
        None,
        "SqueezeNet 1.1 for ImageNet, torchvision's layout",
    ),
    NetworkInfo(
        "sensing",
        paired,
        (1, 128, 128),
        0,
        (0.0,),
        (1.0,),
        None,
        None,
        "images from binary measurements, --sensing RATIO; any size of whole 32x32 blocks",
        block=BLOCK,
        by_ratio={ratio: file for ratio in RATIOS if (file := shipped(ratio)) is not None},
    ),
    NetworkInfo(
        "sensing-unfolded",
        partial(paired, unfolded=True),
        (1, 128, 128),
        0,
        (0.0,),
        (1.0,),
        None,
        None,
        "the same, larger: an unfolded iterative algorithm; trained by --epochs",
        block=BLOCK,
    ),
)

__all__ = ["NETWORKS", "NetworkInfo"]
