"""Image files: which there are, what their headers say, and their pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from compress.errors import BadData

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm"})
GRAY = frozenset({"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
"""Modes of files that hold no colour."""


class Header(NamedTuple):
    """What an image file says before its pixels: height and width, and whether it holds no colour."""

    height: int
    width: int
    gray: bool


def images_in(folder: Path) -> list[Path]:
    """The image files in a folder, none below it, in the order of their names."""
    found = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES)


@contextmanager
def _opened(name: str, file: Path, what: str, do: str) -> Iterator[Picture]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadData(name, f"{file} {what.format(error)}", do) from None


def header(name: str, file: Path) -> Header:
    """What an image file's header says.

    Raises:
        BadData: it isn't an image.
    """
    with _opened(name, file, "isn't an image that can be read", "replace or remove it") as image:
        return Header(image.height, image.width, image.mode in GRAY)


def picture(name: str, file: Path, mode: str | None = None) -> Picture:
    """An image file's pixels in 8 bits.

    Of 16 bits (which Pillow would clip to 255) the upper eight are taken.

    Args:
        name: the data set, for error messages.
        file: where it is.
        mode: Pillow's, ``"L"`` or ``"RGB"``; None for ``"L"`` where the file holds no colour, else ``"RGB"``.

    Raises:
        BadData: it can't be decoded.
    """
    import numpy as np
    from PIL import Image

    with _opened(name, file, "can't be decoded ({})", "replace or remove that file") as image:
        mode = mode or ("L" if image.mode in GRAY else "RGB")
        if image.mode.startswith("I"):
            upper = (np.array(image).clip(0, 65535) // 256).astype(np.uint8)
            return Image.fromarray(upper).convert(mode)
        return image.convert(mode)


def decode(name: str, file: Path, channels: int) -> Tensor:
    """An image file as uint8 (C, H, W); one channel of a file in colour is its luma (:func:`compress.quality.luma`).

    Raises:
        BadData: it can't be decoded.
    """
    import numpy as np
    import torch

    from compress.quality import luma

    image = np.array(picture(name, file), dtype=np.uint8)
    if channels == 1 and image.ndim == 3:
        image = luma(image)
    if channels == 3 and image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1)))


__all__ = ["GRAY", "SUFFIXES", "Header", "decode", "header", "images_in", "picture"]
