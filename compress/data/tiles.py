"""Images of any size for networks of a fixed one: training patches, and whole images in tiles.

A network that reconstructs takes images of one size, since the file that ships does. To be evaluated an image is cut
into tiles of that size, from its upper left corner, the last of a row or column filled up by repeating the image's
border; what the network gives for them is put together again, the filling cut off, and compared as a whole image. A
device that is given a larger image does the same. To be trained on, patches of that size are cut out at random.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.data.image_files import decode
from compress.data.splits import Indexed

if TYPE_CHECKING:
    import torch
    from torch import Tensor


KEPT_BYTES = 128 * 2**20
"""Decoded images that a split keeps at most."""


@dataclass(eq=False)
class Pixels:
    """Image files decoded as uint8 (C, H, W), the first of them kept.

    See :func:`compress.data.image_files.decode`.

    Attributes:
        name: the data set, for error messages.
        files: paths of the images.
        channels: 1 or 3.
    """

    name: str
    files: tuple[Path, ...]
    channels: int
    _kept: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    _bytes: int = field(default=0, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_bytes": 0}

    def __getitem__(self, index: int) -> Tensor:
        """One image.

        Raises:
            BadData: its file can't be decoded.
        """
        found = self._kept.get(index)
        if found is None:
            found = decode(self.name, self.files[index], self.channels)
            if self._bytes + found.numel() <= KEPT_BYTES:
                self._kept[index], self._bytes = found, self._bytes + found.numel()
        return found


@dataclass(frozen=True, eq=False)
class Pieces(Indexed):
    """Images of any size, handed out in pieces of one.

    Attributes:
        pixels: the images.
        sizes: height and width of each.
        shape: channels, height and width of a piece.
        mean, std: see :class:`compress.data.splits.Split`.
    """

    pixels: Pixels
    sizes: tuple[tuple[int, int], ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def taken(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        """See :meth:`compress.data.splits.Indexed.taken`."""
        import torch

        return torch.stack([self.piece(i, generator) for i in index.tolist()]), None

    @abstractmethod
    def piece(self, index: int, generator: torch.Generator | None) -> Tensor:
        """The piece of a number, uint8 (C, H, W)."""


class PatchSplit(Pieces):
    """Patches to train on: as many of each image as fit beside one another, cut out anywhere.

    No image is smaller than a patch. Without a generator the patches lie side by side.
    """

    @property
    def n(self) -> int:
        """How many patches an epoch has."""
        return self._ends[-1]

    @cached_property
    def _ends(self) -> list[int]:
        """The number of the patch after each image's last."""
        _, height, width = self.shape
        return list(accumulate((rows // height) * (columns // width) for rows, columns in self.sizes))

    def piece(self, index: int, generator: torch.Generator | None) -> Tensor:
        """See :meth:`Pieces.piece`."""
        import torch

        _, height, width = self.shape
        image = bisect_right(self._ends, index)
        columns = self.sizes[image][1] // width
        index -= self._ends[image - 1] if image else 0
        top, left = index // columns * height, index % columns * width
        if generator is not None:
            spare = [size - taken + 1 for size, taken in zip(self.sizes[image], (height, width), strict=True)]
            top, left = (int(torch.randint(0, each, (1,), generator=generator)) for each in spare)
        return self.pixels[image][:, top : top + height, left : left + width]


class TileSplit(Pieces):
    """Whole images, handed out in tiles: image after image, row after row."""

    @property
    def n(self) -> int:
        """How many tiles there are."""
        return len(self._places)

    def digest(self, classes: Sequence[str] = ()) -> str:
        """SHA-256 of the files' contents and the shape of their tiles."""
        state = hashlib.sha256(repr((self.shape, tuple(classes), "tiles")).encode())
        for file in self.pixels.files:
            state.update(hashlib.sha256(file.read_bytes()).digest())
        return state.hexdigest()

    def whole(self, pieces: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The tiles put together: images (1, C, H, W)."""
        import torch

        stream = ((made, wanted) for batch in pieces for made, wanted in zip(*batch, strict=True))
        for image, (height, width) in enumerate(self.sizes):
            rows, columns = self._grid(image)
            tiles = [[next(stream) for _ in range(columns)] for _ in range(rows)]
            made, wanted = (
                torch.cat([torch.cat([tile[which] for tile in row], 2) for row in tiles], 1)[None, :, :height, :width]
                for which in (0, 1)
            )
            yield made, wanted

    def _grid(self, image: int) -> tuple[int, int]:
        """Rows and columns of tiles of an image."""
        return -(-self.sizes[image][0] // self.shape[1]), -(-self.sizes[image][1] // self.shape[2])

    @cached_property
    def _places(self) -> list[tuple[int, int, int]]:
        """Each tile's image, row and column."""
        return [
            (image, row, column)
            for image in range(len(self.sizes))
            for row in range(self._grid(image)[0])
            for column in range(self._grid(image)[1])
        ]

    def piece(self, index: int, generator: torch.Generator | None) -> Tensor:
        """See :meth:`Pieces.piece`."""
        import torch

        image, row, column = self._places[index]
        _, height, width = self.shape
        rows, columns = self.sizes[image]
        down = (torch.arange(height) + row * height).clamp_max(rows - 1)
        across = (torch.arange(width) + column * width).clamp_max(columns - 1)
        return self.pixels[image][:, down][:, :, across]


__all__ = ["PatchSplit", "Pixels", "TileSplit"]
