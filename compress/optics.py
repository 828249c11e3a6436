"""``--sensing``: what a job does to have its network take measurements in place of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from compress.data import Data, Sizes
from compress.errors import BadInput
from compress.models import LoadedModel
from compress.quantize.sense import Sense
from compress.quantize.sensed import sensed


@dataclass(frozen=True)
class Seen:
    """How a job's network sees.

    Attributes:
        model: the network, with its sensing layer in front if there is one.
        sense: what gives that its patterns; None where it has them, or where there is none.
        teacher: the network that sees the image; None without sensing, or where there is none.
    """

    model: nn.Module
    sense: Sense | None = None
    teacher: nn.Module | None = None


def sizes(name: str, loaded: LoadedModel | None, chosen: tuple[int, int] | None) -> Sizes | None:
    """Which image sizes the network takes, where it takes many.

    Raises:
        BadInput: a size was asked for that the network can't be made for.
    """
    if loaded is not None and loaded.block is not None:
        return Sizes(len(loaded.mean or (0.0,)), loaded.block, chosen)
    if chosen is not None:
        raise BadInput(f"--image-size is for networks that take any size; leave it out, {name} has its own")
    return None


def measured(
    network: nn.Module, loaded: LoadedModel | None, data: Data, ratio: float | None, epochs: int | None, tuned: int
) -> Seen:
    """The network behind its sensing layer.

    Args:
        network: in evaluation mode, on the CPU.
        loaded: where it was given by name.
        data: what it is trained and measured on.
        ratio: measurements a pixel; None for no sensing.
        epochs: of training, as they were asked for.
        tuned: of training, as they will be.

    Raises:
        BadInput: a ratio that gives no measurement, a network that takes no images, one that has to be trained, or
            images that aren't light for one that makes images of measurements.
    """
    if ratio is None:
        return Seen(network)
    if loaded is not None and loaded.block is not None:
        if (data.mean, data.std) != (loaded.mean, loaded.std):
            raise BadInput(
                f"model {loaded.name} takes light, pixels / 255: leave --mean and --std out, and give images as uint8"
            )
        if loaded.trained:
            return Seen(network, Sense(ratio, tuned, begin=False) if tuned else None)
        if epochs is None:
            raise BadInput(
                f"model {loaded.name} has no trained weights for --sensing {ratio:g}; give --epochs N to train it from "
                "the closed form (0 for that alone), or --weights FILE"
            )
        return Seen(network, Sense(ratio, tuned))
    example = data.train.inputs(2, torch.Generator().manual_seed(0))
    made = sensed(network, example, ratio, differential=True, mean=data.mean, std=data.std)
    return Seen(made.eval(), Sense(ratio, tuned), network)


__all__ = ["Seen", "measured", "sizes"]
