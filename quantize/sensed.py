"""Recognition from measurements: a sensing layer in front of any network that takes images.

The network sees no image. The measurements are expanded linearly to the shape that it takes, block by block, by
weights that are trained with it and start as the linear estimate of the image (Lohit, Kulkarni and Turaga, *Direct
Inference on Compressive Measurements Using Convolutional Neural Networks*, ICIP 2016, where the expansion is the
transpose of the patterns and stays):

    logits = f(E z + e),    z = S A (x - l).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.errors import BadInput
from compress.quantize.binary import Values
from compress.quantize.pattern_constraints import Constraint
from compress.quantize.sensing import Differential, Noise, SensingLayer, padded

LARGEST_FIELD = 32
"""Images of at most so many pixels on a side are measured as a whole, larger ones in blocks of that side."""


class SensedClassifier(nn.Module):
    """A binary sensing layer, its linear expansion, and a network.

    Attributes:
        sensing: the layer.
        network: what the expanded measurements are given to.
        shape: height and width of the images; padded with black to whole blocks, and cropped after the expansion.
    """

    def __init__(self, sensing: SensingLayer, network: nn.Module, shape: tuple[int, int]) -> None:
        super().__init__()
        self.sensing, self.network, self.shape = sensing, network, shape

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), normalized as the network takes them, to the network's output."""
        height, width = self.shape
        whole = images if self.sensing.block is None else padded(images, self.sensing.block)
        return self.network(self.sensing.reexpand(self.sensing(whole))[:, :, :height, :width])  # type: ignore[no-any-return]  # a network's


def sensed(
    model: nn.Module,
    example: Tensor,
    ratio: float,
    *,
    block: int | None = None,
    values: Values = "+-1",
    constraint: Constraint | None = None,
    noise: Noise | None = None,
    differential: Differential = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> SensedClassifier:
    """``model`` behind a binary sensing layer.

    The layer starts with the smoothest patterns and the estimate of least norm;
    :func:`compress.quantize.sensing_start.start` fits both to training images.

    Args:
        model: any network of images (N, C, H, W); used as it is, not copied.
        example: images that it takes.
        ratio: measurements a pixel, 10% is 0.1.
        block: side of a block; by default the whole field where it is at most 32 x 32, else blocks of 32.
        values, constraint, noise, differential: see :class:`compress.quantize.sensing.SensingLayer`.
        mean, std: of the model's inputs, ``(light - mean) / std``: the noise is of light. By default inputs are light.

    Raises:
        BadInput: what the sensing layer refuses, an example that isn't images, a mean without std.
    """
    if (mean is None) != (std is None):
        raise BadInput("mean and std of the model's inputs go together: give both, or neither where they are light")
    if example.dim() != 4:
        raise BadInput(f"an input of shape {tuple(example.shape)}: sensing takes networks of images (N, C, H, W)")
    channels, height, width = example.shape[1:]
    whole = block is None and max(height, width) <= LARGEST_FIELD
    layer = SensingLayer(
        ratio,
        block=LARGEST_FIELD if block is None and not whole else block,
        size=(height, width) if whole else None,
        channels=channels,
        values=values,
        constraint=constraint,
        noise=noise,
        differential=differential,
    )
    if block is not None and block > min(height, width):
        raise BadInput(f"images of {height}x{width} are smaller than a block of {block}x{block}; give a smaller block")
    if mean is not None and std is not None:
        layer.set_light(mean, std)
    made = SensedClassifier(layer, model, (height, width))
    made.train(model.training)
    return made.to(next((p.device for p in model.parameters()), torch.device("cpu")))
