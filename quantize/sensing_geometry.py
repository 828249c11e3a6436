"""How many measurements a ratio means, of what size, and which patterns need no data."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.errors import BadInput


def measurements(ratio: float, pixels: int) -> int:
    """How many measurements of ``pixels`` pixels a ratio means: ``round(ratio pixels)``.

    Raises:
        BadInput: the ratio isn't above 0 and at most 1, or it gives less than one measurement.
    """
    if not (isinstance(ratio, (int, float)) and 0 < ratio <= 1):
        raise BadInput(f"sensing ratio {ratio}: give a fraction above 0 and at most 1; 10% is 0.1")
    found = round(ratio * pixels)
    if found < 1:
        raise BadInput(
            f"sensing ratio {ratio:g} of {pixels} pixels is less than one measurement; "
            f"give at least {1 / pixels:.3g}, or a larger block"
        )
    return found


def smooth_rows(count: int, height: int, width: int) -> Tensor:
    """The ``count`` smoothest functions of the cosine basis, real rows (count, height * width) float32.

    ``cos(pi i (2 y + 1) / (2 height)) cos(pi j (2 x + 1) / (2 width))`` in the order of ``(i / height)^2 +
    (j / width)^2``: their signs are patterns for any size.
    """
    frequency = (torch.arange(height) / height).square()[:, None] + (torch.arange(width) / width).square()
    order = frequency.flatten().argsort(stable=True)[:count]
    i, j = order // width, order % width
    return (_cosines(i, height)[:, :, None] * _cosines(j, width)[:, None]).flatten(1)


def roughest_row(height: int, width: int) -> Tensor:
    """The last of the cosine basis's functions, (height * width,) float32."""
    one = _cosines(torch.tensor([height - 1]), height)[0], _cosines(torch.tensor([width - 1]), width)[0]
    return torch.outer(*one).flatten()


def _cosines(frequencies: Tensor, length: int) -> Tensor:
    """``cos(pi i (2 x + 1) / (2 length))``, (frequencies, length)."""
    return torch.cos(frequencies.view(-1, 1) * (2 * torch.arange(length) + 1) * math.pi / (2 * length))


def field_size(block: int | None, size: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of what is measured at once: a block, or with None the whole field.

    Raises:
        BadInput: a block below one pixel, or a whole field without its size.
    """
    if block is not None:
        if block < 1:
            raise BadInput(f"a block of {block} pixels: give its side, at least 1, or None for the whole field")
        return block, block
    if size is None or min(size) < 1:
        raise BadInput("measuring the whole field needs the images' size: give size=(height, width)")
    return size[0], size[1]


def padded(images: Tensor, block: int) -> Tensor:
    """Zeros on the right and at the bottom up to whole blocks, as the literature does; (N, C, H, W)."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % block, 0, -height % block))
