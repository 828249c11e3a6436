"""Random changes of training images that leave their labels true.

They take float32 images on the CPU before normalization (pixels 0 to 255), and a generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Augmentation(Protocol):
    """Changes a batch."""

    def __call__(self, images: Tensor, generator: torch.Generator, /) -> Tensor:
        """Images (B, C, H, W) to images of the same shape, each changed differently."""


@dataclass(frozen=True)
class Affine:
    """Small random rotations, shifts and changes of size, for digits; the outside repeats the border.

    Attributes:
        degrees: largest rotation either way.
        shift: largest shift either way, as a fraction of the image.
        scale: largest change of size either way, as a fraction.
    """

    degrees: float = 10.0
    shift: float = 0.0625
    scale: float = 0.1

    def __call__(self, images: Tensor, generator: torch.Generator, /) -> Tensor:
        """Images (B, C, H, W) to images of the same shape, each changed differently."""
        import math

        import torch
        from torch.nn import functional as F

        u = torch.rand(4, len(images), generator=generator) * 2 - 1
        angle = u[0] * math.radians(self.degrees)
        size = 1 + u[1] * self.scale
        cos, sin = torch.cos(angle) * size, torch.sin(angle) * size
        matrix = torch.stack([cos, -sin, u[2] * 2 * self.shift, sin, cos, u[3] * 2 * self.shift], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class CropFlip:
    """A random crop from the image with a black border, and mirroring half of the time (CIFAR-10's usual).

    Attributes:
        border: pixels added on each side before the crop.
        flip: mirror left and right with probability 1/2.
    """

    border: int = 4
    flip: bool = True

    def __call__(self, images: Tensor, generator: torch.Generator, /) -> Tensor:
        """Images (B, C, H, W) to images of the same shape, each changed differently."""
        import torch
        from torch.nn import functional as F

        count, _, height, width = images.shape
        padded = F.pad(images, (self.border,) * 4)
        top = torch.randint(0, 2 * self.border + 1, (count, 1), generator=generator)
        left = torch.randint(0, 2 * self.border + 1, (count, 1), generator=generator)
        rows, columns = top + torch.arange(height), left + torch.arange(width)
        if self.flip:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        picked = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return picked.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Dihedral:
    """One of the eight turns and mirror images of a square; of an oblong one of the four that keep its shape."""

    def __call__(self, images: Tensor, generator: torch.Generator, /) -> Tensor:
        """Images (B, C, H, W) to images of the same shape, each turned differently."""
        import torch

        square = images.shape[-1] == images.shape[-2]
        flips = torch.randint(0, 2, (3, len(images), 1, 1, 1), generator=generator).bool()
        found = torch.where(flips[0], images.flip(-1), images)
        found = torch.where(flips[1], found.flip(-2), found)
        return torch.where(flips[2], found.transpose(-1, -2), found) if square else found
