"""Images in files, decoded when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compress.data.image_files import picture
from compress.data.splits import Indexed

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class FolderSplit(Indexed):
    """Image files, decoded when a batch asks for them.

    An image of exactly the wanted size is used as it is. Any other is resized (bilinear, with
    antialiasing) so that its short side is 256/224 of the wanted one, as is usual for ImageNet, and
    the centre is cut out.

    Attributes:
        name: the data set, for error messages.
        files: paths of the images.
        targets: a class index a file.
        shape: channels (1: luma, 3: RGB), height and width.
        mean, std: see :class:`Split`.
    """

    name: str
    files: tuple[Path, ...]
    targets: tuple[int, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many images there are."""
        return len(self.files)

    def taken(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        """See :meth:`compress.data.splits.Indexed.taken`."""
        import torch

        chosen = index.tolist()
        pixels = torch.stack([self._decode(self.files[i]) for i in chosen])
        return pixels, torch.tensor([self.targets[i] for i in chosen])

    def digest(self, classes: Sequence[str] = ()) -> str:
        """SHA-256 of the files' contents, their labels and the shape they are brought to."""
        state = hashlib.sha256(repr((self.shape, tuple(classes), self.targets)).encode())
        for file in self.files:
            state.update(hashlib.sha256(file.read_bytes()).digest())
        return state.hexdigest()

    def _decode(self, file: Path) -> Tensor:
        import numpy as np
        import torch

        channels, height, width = self.shape
        image = picture(self.name, file, "L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = self._fit(image)
        array = np.array(image, dtype=np.uint8).reshape(height, width, channels)
        return torch.from_numpy(array).permute(2, 0, 1)

    def _fit(self, image: Picture) -> Picture:
        from PIL import Image

        _, height, width = self.shape
        # Never below the wanted size, which an extreme aspect ratio would otherwise lead to.
        scale = max(256 / 224 * min(height, width) / min(image.size), height / image.height, width / image.width)
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        if size != image.size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
