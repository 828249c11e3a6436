"""Arrays as users have them, made into splits: shapes, number formats, labels, all checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compress.data.splits import IMAGENET_MEAN, IMAGENET_STD, ArraySplit, Data
from compress.errors import BadData

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from compress.data.augment import Augmentation

EVALUATE_SHARE = 0.2
LARGEST = 128
"""Pixels of a side of the tiles that larger images are cut into, where nobody says how large they are."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The image sizes that a network takes: all whose height and width are multiples of ``multiple``.

    Attributes:
        channels: of its images.
        multiple: pixels, 1 or more.
        chosen: height and width that the user asked for; None leaves it to the data, at most :data:`LARGEST`.
    """

    channels: int
    multiple: int
    chosen: tuple[int, int] | None = None


@dataclass(frozen=True)
class Wanted:
    """What the network and the options ask of a data set.

    Attributes:
        name: the data set as the user named it.
        shape: channels, height and width that the network takes; None if not known.
        num_classes: the network's outputs; None if not known.
        mean, std: given by the user or the built-in network's record; None for ImageNet's.
        seed: of the division into training and evaluation where the data has none.
        sizes: of a network that reconstructs: photographs may then be smaller or larger than its input.
    """

    name: str
    shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0
    sizes: Sizes | None = None

    def normalization(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation for images of ``channels`` channels.

        ImageNet's where none are given, and their averages for one channel.

        Raises:
            BadData: their number isn't that of the channels, or one isn't usable.
        """
        found = []
        for option, given, default in (("mean", self.mean, IMAGENET_MEAN), ("std", self.std, IMAGENET_STD)):
            values = tuple(float(v) for v in given) if given is not None else default
            if given is None and channels == 1:
                values = (round(sum(default) / 3, 3),)
            if len(values) == 1:
                values *= channels
            if len(values) != channels:
                raise BadData(
                    self.name,
                    f"{len(values)} values of {option} for images of {channels} channels",
                    f"give --{option} one number or {channels}",
                )
            if not all(map(math.isfinite, values)) or (option == "std" and min(values) <= 0):
                raise BadData(self.name, f"{option} is {values}", f"give --{option} finite numbers, std above 0")
            found.append(values)
        return found[0], found[1]


def divide(labels: Sequence[int] | None, n: int, wanted: Wanted) -> tuple[list[int], list[int]]:
    """Indices to train on and to evaluate on: of each class a fifth, at least one of two, is held out.

    Raises:
        BadData: there are too few images.
    """
    import numpy as np

    random = np.random.default_rng(wanted.seed)
    groups: dict[int, list[int]] = {}
    for index in range(n):
        groups.setdefault(0 if labels is None else int(labels[index]), []).append(index)
    held_out: list[int] = []
    for _, members in sorted(groups.items()):
        count = max(1, round(EVALUATE_SHARE * len(members))) if len(members) > 1 else 0
        held_out += random.permutation(np.array(members))[:count].tolist()
    if not held_out:
        raise BadData(wanted.name, f"{n} images can't be divided to train and evaluate", "give more images")
    chosen = set(held_out)
    return [i for i in range(n) if i not in chosen], sorted(chosen)


def as_array(name: str, what: str, value: Any) -> NDArray[Any]:
    """A numpy array of a user's array, tensor or nested list.

    Raises:
        BadData: it isn't numeric.
    """
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # numpy has no bfloat16.
        value = value.float() if value.is_floating_point() else value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        raise BadData(name, f"{what} is ragged: its items have different shapes", "give one array") from None
    if array.dtype.kind not in "uif":
        raise BadData(
            name, f"{what} is an array of {array.dtype.name}", "store numbers: uint8 pixels, float32, int64 labels"
        )
    return array


def images_of(value: Any, wanted: Wanted) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Images as uint8 or float32 (N, C, H, W) from (N, C, H, W), (N, H, W, C), (N, H, W) or flat (N, C*H*W).

    Raises:
        BadData: another shape, integers outside 0 to 255, NaN or infinity.
    """
    import numpy as np

    array = as_array(wanted.name, "the images", value)
    if len(array) == 0:
        raise BadData(wanted.name, "a split is empty", "give at least one image for training and for evaluation")
    given = array.shape
    if array.ndim == 2 and wanted.shape is not None and array.shape[1] == math.prod(wanted.shape):
        array = array.reshape(-1, *wanted.shape)
    elif array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        if _channels_last(array.shape[1:], wanted.shape):
            array = array.transpose(0, 3, 1, 2)
    else:
        raise BadData(wanted.name, f"the images have the shape {given}", "give (N, C, H, W), (N, H, W, C) or (N, H, W)")
    check_shape(wanted, (array.shape[1], array.shape[2], array.shape[3]))
    if array.dtype.kind in "ui":
        if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):
            raise BadData(
                wanted.name,
                f"integer images lie in {array.min()} to {array.max()}",
                "give pixels from 0 to 255, or normalized float32",
            )
        return np.require(array, np.uint8, ("C", "W"))
    bad = int(np.count_nonzero(~np.isfinite(array).reshape(len(array), -1).all(1)))
    if bad:
        raise BadData(wanted.name, f"{bad} of {len(array)} images hold NaN or infinity", "remove or repair them")
    return np.require(array, np.float32, ("C", "W"))


def _channels_last(given: tuple[int, ...], wanted: tuple[int, int, int] | None) -> bool:
    if wanted is not None and given == wanted:
        return False
    if wanted is not None and given == (wanted[1], wanted[2], wanted[0]):
        return True
    return given[2] in (1, 3) and given[0] not in (1, 3)


def check_shape(wanted: Wanted, shape: tuple[int, int, int]) -> None:
    """Raise BadData if the network takes images of another shape than ``shape``."""
    if wanted.shape is None or wanted.shape == shape:
        return
    c, h, w = wanted.shape
    if shape[0] != c:
        raise BadData(
            wanted.name,
            f"images have {shape[0]} channel{'s' * (shape[0] != 1)}, the network takes {c}",
            "convert the images, or choose a network for them",
        )
    raise BadData(
        wanted.name,
        f"images have {shape[2]}x{shape[1]} pixels, the network takes {w}x{h}",
        f"resize the images to {w}x{h}, or choose a network for them",
    )


def too_small(name: str, file: Path, size: tuple[int, int], shape: tuple[int, int, int]) -> BadData:
    """The error about an image file of ``size`` (width, height) that can't fill the network's input."""
    return BadData(
        name,
        f"{file} has {size[0]}x{size[1]} pixels, the network takes {shape[2]}x{shape[1]}",
        "give larger images, or choose a network for small ones",
    )


def labels_of(value: Any, images: NDArray[Any], wanted: Wanted) -> NDArray[np.int64] | NDArray[np.float32]:
    """Class indices int64 (N,), or targets float32 of the images' shape.

    Raises:
        BadData: another shape or count, or labels that aren't whole numbers.
    """
    import numpy as np

    array = as_array(wanted.name, "the labels", value)
    if len(array) != len(images):
        raise BadData(wanted.name, f"{len(images)} images but {len(array)} labels", "give one label an image")
    if array.shape == images.shape and array.ndim == 4:
        if not np.isfinite(array).all():
            raise BadData(wanted.name, "targets hold NaN or infinity", "remove or repair them")
        return np.require(array, np.float32, ("C", "W"))
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise BadData(
            wanted.name,
            f"the labels have the shape {array.shape}",
            "give class indices of shape (N,); argmax(1) makes them from one-hot rows",
        )
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.round(array)).all()):
        raise BadData(wanted.name, "the labels aren't whole numbers", "give class indices 0, 1, 2, ...")
    return array.astype(np.int64)


def check_classes(wanted: Wanted, labels: NDArray[Any]) -> None:
    """Raise BadData if a label isn't a class of the network, or if there is one class only."""
    import numpy as np

    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (wanted.num_classes is not None and high >= wanted.num_classes):
        limit = f"0 to {wanted.num_classes - 1}" if wanted.num_classes is not None else "0 or more"
        outside = low if low < 0 else high
        raise BadData(
            wanted.name,
            f"label {outside} isn't a class of the network ({limit})",
            "correct the labels, or choose a network with as many outputs as there are classes",
        )
    if len(np.unique(labels)) < 2:
        raise BadData(wanted.name, f"every label is {low}: there is one class only", "give two classes or more")


def from_arrays(
    wanted: Wanted,
    train: tuple[Any, Any],
    evaluate: tuple[Any, Any] | None,
    classes: Sequence[str] | None = None,
    augment: Augmentation | None = None,
    divisible: bool = True,
) -> Data:
    """A data set of arrays.

    Args:
        wanted: what the network takes.
        train: images and labels; None for labels means that the images are their own targets.
        evaluate: the same for evaluation; None divides ``train`` (see :func:`divide`).
        classes: names; the numbers by default.
        augment: see :class:`Data`.
        divisible: False uses all of ``train`` for both where ``evaluate`` is None.

    Raises:
        BadData: the arrays can't be used.
    """
    import numpy as np
    import torch

    x, y = _checked(wanted, *train)
    if evaluate is not None:
        x_eval, y_eval = _checked(replace(wanted, shape=(x.shape[1], x.shape[2], x.shape[3])), *evaluate)
        if (y is None) != (y_eval is None) or (y is not None and y_eval is not None and y.ndim != y_eval.ndim):
            raise BadData(wanted.name, "training and evaluation have different kinds of labels", "give both the same")
        if x.dtype != x_eval.dtype:
            raise BadData(
                wanted.name,
                f"training images are {x.dtype.name}, evaluation images {x_eval.dtype.name}",
                "give both as uint8 pixels or both as normalized float32",
            )
    elif divisible:
        flat = y if y is not None and y.ndim == 1 else None
        first, second = divide(None if flat is None else flat.tolist(), len(x), wanted)
        x, x_eval = x[first], x[second]
        y, y_eval = (None, None) if y is None else (y[first], y[second])
    else:
        x_eval, y_eval = x, y
    task: Any = "classification" if y is not None and y.ndim == 1 else "reconstruction"
    names: tuple[str, ...] = ()
    if task == "classification" and y is not None and y_eval is not None:
        for part in (y, y_eval):
            check_classes(wanted, part)
        count = wanted.num_classes or int(max(y.max(), y_eval.max())) + 1
        names = tuple(classes) if classes is not None else tuple(str(i) for i in range(count))
    if x.dtype == np.uint8:
        mean, std = wanted.normalization(x.shape[1])
    else:
        mean, std = (0.0,) * x.shape[1], (1 / 255,) * x.shape[1]
    splits = [
        ArraySplit(torch.from_numpy(a), None if b is None else torch.from_numpy(b), mean, std)
        for a, b in ((x, y), (x_eval, y_eval))
    ]
    digest = splits[1].digest(names)
    return Data(wanted.name, task, splits[0], splits[1], names, digest, mean, std, augment)


def _checked(wanted: Wanted, images: Any, labels: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
    array = images_of(images, wanted)
    return array, (None if labels is None else labels_of(labels, array, wanted))
