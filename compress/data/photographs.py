"""Folders of photographs for reconstruction: image sizes, and the data sets of the literature.

``set11`` is evaluated as the literature on compressive sensing does: on whole images, their luma, pixels of 0 to 255,
PSNR and SSIM averaged over the eleven images; it trains on BSD400 and T91, which lie beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from compress.data.augment import Dihedral
from compress.data.checks import LARGEST, Wanted, divide, too_small
from compress.data.image_files import header, images_in
from compress.data.splits import Data
from compress.data.tiles import PatchSplit, Pixels, TileSplit
from compress.errors import BadData
from compress.types import Note

TRAINING = ("BSD400", "T91")
"""Folders beside Set11 that hold the images to train on."""
Size = tuple[int, int]


def from_files(wanted: Wanted, files: Sequence[Path], evaluate: Sequence[Path] | None = None) -> Data:
    """A data set of images that are their own targets.

    Args:
        wanted: what the network takes.
        files: to train on; without ``evaluate`` a fifth of them is held out.
        evaluate: to evaluate on.

    Raises:
        BadData: a file can't be read, or images are smaller than the network's input or than what it measures at once.
    """
    if evaluate is None:
        first, second = divide(None, len(files), wanted)
        files, evaluate = [files[i] for i in first], [files[i] for i in second]
    headers = {file: header(wanted.name, file) for file in (*files, *evaluate)}
    sizes = {file: (found.height, found.width) for file, found in headers.items()}
    shape = _shape(wanted, sizes, 1 if all(found.gray for found in headers.values()) else 3)
    mean, std = wanted.normalization(shape[0])
    large = [file for file in files if sizes[file][0] >= shape[1] and sizes[file][1] >= shape[2]]
    if not large:
        raise BadData(
            wanted.name,
            f"no image to train on fills {shape[2]}x{shape[1]} pixels",
            f"give larger images, or a smaller --image-size than {shape[2]}x{shape[1]}",
        )
    train = PatchSplit(
        Pixels(wanted.name, tuple(large), shape[0]), tuple(sizes[file] for file in large), shape, mean, std
    )
    held_out = TileSplit(
        Pixels(wanted.name, tuple(evaluate), shape[0]), tuple(sizes[file] for file in evaluate), shape, mean, std
    )
    return Data(
        wanted.name,
        "reconstruction",
        train,
        held_out,
        (),
        held_out.digest(),
        mean,
        std,
        Dihedral(),
        _notes(shape, [sizes[file] for file in evaluate], len(files) - len(large), len(files)),
    )


def set11(wanted: Wanted, home: Path) -> Data:
    """Set11 to evaluate on, BSD400 and T91 beside it to train on.

    Raises:
        BadData: a folder holds no images.
    """
    evaluate = images_in(home / "Set11")
    files = [file for name in TRAINING if (home / name).is_dir() for file in images_in(home / name)]
    if not evaluate or not files:
        raise BadData(wanted.name, f"{home} lacks Set11 or BSD400", "put the images of both there, in those folders")
    return from_files(wanted, files, evaluate)


def find_set11(folder: Path) -> Path | None:
    """The folder that holds Set11 and BSD400, at or below ``folder``."""
    return next((p for p in (folder, folder / "recon") if (p / "Set11").is_dir() and (p / "BSD400").is_dir()), None)


def find_bsd400(folder: Path) -> Path | None:
    """The folder of BSD400's images, at or below ``folder``."""
    if folder.name == "BSD400" and folder.is_dir():
        return folder
    return next((p / "BSD400" for p in (folder, folder / "recon") if (p / "BSD400").is_dir()), None)


def _shape(wanted: Wanted, sizes: dict[Path, Size], channels: int) -> tuple[int, int, int]:
    """The network's input shape, given or chosen."""
    if wanted.shape is not None and wanted.sizes is None:
        for file, (height, width) in sizes.items():
            if height < wanted.shape[1] or width < wanted.shape[2]:
                raise too_small(wanted.name, file, (width, height), wanted.shape)
        return wanted.shape
    if wanted.sizes is None:
        different = list({size: file for file, size in sizes.items()}.items())
        if len(different) > 1:
            ((h1, w1), a), ((h2, w2), b) = different[:2]
            raise BadData(
                wanted.name,
                f"{a.name} has {w1}x{h1} pixels, {b.name} {w2}x{h2}, and the network's input size isn't known",
                "give the network an input_shape, or images of one size",
            )
        return (channels, *different[0][0])
    multiple = wanted.sizes.multiple
    if wanted.sizes.chosen is not None:
        height, width = wanted.sizes.chosen
    else:
        height, width = (_most(statistics.median_low(s[axis] for s in sizes.values()), multiple) for axis in (0, 1))
    if height < multiple or width < multiple:
        file, (h, w) = min(sizes.items(), key=lambda item: min(item[1]))
        raise BadData(
            wanted.name,
            f"{file.name} has {w}x{h} pixels, the network measures blocks of {multiple}x{multiple}",
            "give larger images",
        )
    if height % multiple or width % multiple:
        raise BadData(
            wanted.name,
            f"{width}x{height} isn't a multiple of {multiple}",
            f"give --image-size a multiple of {multiple}",
        )
    return (wanted.sizes.channels, height, width)


def _most(side: int, multiple: int) -> int:
    """The largest side of a tile for images of ``side`` pixels."""
    return min(side // multiple, max(1, LARGEST // multiple)) * multiple


def _notes(shape: tuple[int, int, int], sizes: Sequence[Size], dropped: int, n: int) -> tuple[Note, ...]:
    notes = []
    height, width = shape[1:]
    other = sum(size != (height, width) for size in sizes)
    if other:
        why = (
            f"the file takes images of {width}x{height}; {other} of the {len(sizes)} images that it is evaluated on "
            "have another size: they are cut into tiles, and what it makes of those is compared put together again"
        )
        notes.append(Note("data", "image size", why))
    if dropped:
        why = f"{dropped} of {n} are smaller than {width}x{height} and left out"
        notes.append(Note("data", "training images", why))
    return tuple(notes)


__all__ = ["find_bsd400", "find_set11", "from_files", "set11"]
