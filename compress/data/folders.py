"""Folders of images: one subfolder a class for classification, or flat for reconstruction.

Where there is a ``train`` folder and one called ``val``, ``valid``, ``test`` or ``evaluate``, those are
the splits; else a fifth of each class is held out, always the same one. What is done with a flat folder's images
is in :mod:`compress.data.photographs`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from compress.data.checks import Wanted, check_classes, divide, too_small
from compress.data.folder_split import FolderSplit
from compress.data.image_files import SUFFIXES, header
from compress.data.photographs import from_files
from compress.data.splits import Data
from compress.errors import BadData

EVALUATE_NAMES = ("val", "valid", "validation", "test", "evaluate", "eval")
HEADERS_CHECKED = 5000

Listing = tuple[list[Path], list[int] | None, tuple[str, ...]]


def read_folder(wanted: Wanted, root: Path) -> Data:
    """A data set whose images are decoded when they are needed.

    Every file's header is read at once for up to 5,000 files, so that a file of the wrong kind is found now.

    Raises:
        BadData: there are no images, one class only, classes that differ between the splits or from the
            network's, or an image that can't be read or is too small for the network.
    """
    parts = {p.name.lower(): p for p in _visible(root) if p.is_dir()}
    evaluate = next((parts[name] for name in EVALUATE_NAMES if name in parts), None)
    if "train" in parts and evaluate is not None:
        files, labels, classes = _list(wanted, parts["train"])
        files_eval, labels_eval, classes_eval = _list(wanted, evaluate)
        if classes != classes_eval:
            differing = sorted(set(classes) ^ set(classes_eval)) or ["(files without a class folder)"]
            raise BadData(
                wanted.name,
                f"{parts['train'].name}/ and {evaluate.name}/ don't have the same class folders ({differing[0]})",
                "give both one folder a class, of the same names",
            )
        if labels is None or labels_eval is None:
            return from_files(wanted, files, files_eval)
    else:
        all_files, all_labels, classes = _list(wanted, root)
        if all_labels is None:
            return from_files(wanted, all_files)
        first, second = divide(all_labels, len(all_files), wanted)
        files, files_eval = [all_files[i] for i in first], [all_files[i] for i in second]
        labels, labels_eval = ([all_labels[i] for i in part] for part in (first, second))
    _check_labels(wanted, classes, labels, labels_eval)
    shape = _shape(wanted, files + files_eval)
    mean, std = wanted.normalization(shape[0])
    splits = [
        FolderSplit(wanted.name, tuple(f), tuple(y), shape, mean, std)
        for f, y in ((files, labels), (files_eval, labels_eval))
    ]
    digest = splits[1].digest(classes)
    return Data(wanted.name, "classification", splits[0], splits[1], classes, digest, mean, std)


def _visible(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _list(wanted: Wanted, root: Path) -> Listing:
    folders = [p for p in _visible(root) if p.is_dir()]
    found = {folder.name: _images(folder) for folder in folders}
    loose = [p for p in _visible(root) if p.is_file() and p.suffix.lower() in SUFFIXES]
    if not any(found.values()):
        if not loose:
            raise BadData(
                wanted.name,
                f"there are no images in {root}",
                f"put images there ({', '.join(sorted(SUFFIXES))}), in one folder a class for classification",
            )
        return loose, None, ()
    if loose:
        raise BadData(
            wanted.name,
            f"{root} has both images and folders of images ({loose[0].name}, {folders[0].name}/)",
            "keep only the class folders, or only the images",
        )
    files = [file for folder in found.values() for file in folder]
    labels = [index for index, folder in enumerate(found.values()) for _ in folder]
    return files, labels, tuple(found)


def _check_labels(wanted: Wanted, classes: tuple[str, ...], *parts: list[int]) -> None:
    import numpy as np

    if wanted.num_classes is not None and len(classes) != wanted.num_classes:
        raise BadData(
            wanted.name,
            f"{len(classes)} class folders, the network has {wanted.num_classes} outputs",
            "give one folder an output, in the order of their names (an empty one for a class without images)",
        )
    for labels in parts:
        if not labels:
            raise BadData(wanted.name, "a split is empty", "give images to train and to evaluate on")
        check_classes(wanted, np.array(labels))


def _shape(wanted: Wanted, files: list[Path]) -> tuple[int, int, int]:
    """The network's input shape, else that of the images; every header is read on the way."""
    sizes: dict[tuple[int, int], Path] = {}
    counts: Counter[tuple[int, int]] = Counter()
    gray = True
    for file in files[:HEADERS_CHECKED]:
        found = header(wanted.name, file)
        sizes.setdefault((found.width, found.height), file)
        counts[found.width, found.height] += 1
        gray = gray and found.gray
    if wanted.shape is not None:
        channels = wanted.shape[0]
        if channels not in (1, 3):
            raise BadData(
                wanted.name,
                f"the network takes {channels} channels, image files have 1 or 3",
                "give the data as an .npz or a FILE.py:factory",
            )
        _check_sizes(wanted, counts, sizes)
        return wanted.shape
    if len(sizes) > 1:
        (first, a), (second, b) = list(sizes.items())[:2]
        raise BadData(
            wanted.name,
            f"{a.name} has {first[0]}x{first[1]} pixels, {b.name} {second[0]}x{second[1]}, "
            "and the network's input size isn't known",
            "give the network an input_shape, or images of one size",
        )
    width, height = next(iter(sizes))
    return (1 if gray else 3, height, width)


def _check_sizes(wanted: Wanted, counts: Counter[tuple[int, int]], sizes: dict[tuple[int, int], Path]) -> None:
    """To be classified, most images fill half of the network's input.

    Collections of photographs hold a few tiny ones (ImageNet does), which are enlarged; where most are
    tiny, the network is the wrong one.
    """
    assert wanted.shape is not None
    _, height, width = wanted.shape
    small = [size for size in sizes if 2 * size[0] < width or 2 * size[1] < height]
    if small and 2 * sum(counts[size] for size in small) > counts.total():
        raise too_small(wanted.name, sizes[small[0]], small[0], wanted.shape)
