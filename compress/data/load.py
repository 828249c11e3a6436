"""``--data``: from a word or a path to a data set."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from compress.data.augment import Affine, CropFlip
from compress.data.checks import Sizes, Wanted, from_arrays
from compress.data.files import (
    CIFAR10_CLASSES,
    choose_keys,
    download_dir,
    find_cifar10,
    find_mnist,
    homes,
    read_cifar10,
    read_mnist,
    read_npz,
)
from compress.data.files import candidates as places
from compress.data.folders import read_folder
from compress.data.image_files import images_in
from compress.data.photographs import find_bsd400, find_set11, from_files, set11
from compress.data.python import from_python
from compress.data.splits import Data
from compress.errors import BadData, UnknownName
from compress.usercode import call, is_user_code, load_user_code

HINT = "or a folder of images, an .npz file, or FILE.py:FUNCTION"


@dataclass(frozen=True)
class Published:
    """A published data set, whose files lie somewhere on this machine or nowhere.

    Attributes:
        folder: below ``$COMPRESS_DATA_DIR``, or the user's cache.
        find: the folder that holds the files at or below a given one; None if none does.
        what: has to be put there.
        downloaded: torchvision can fetch it.
    """

    folder: str
    find: Callable[[Path], Path | None]
    what: str
    downloaded: bool = False

    def found(self, homes: Iterable[Path]) -> Path | None:
        """The folder with its files at or below the first of ``homes`` that has them."""
        return next((found for home in homes if (found := self.find(home)) is not None), None)


PUBLISHED = {
    "mnist": Published("mnist", find_mnist, "the four idx files of MNIST (train-images-idx3-ubyte.gz, ...)", True),
    "cifar10": Published(
        "cifar10",
        find_cifar10,
        "the folder cifar-10-batches-bin or cifar-10-batches-py of CIFAR-10's official archive",
        True,
    ),
    "set11": Published("recon", find_set11, "the folders Set11 and BSD400 (and T91)"),
    "bsd400": Published("recon", find_bsd400, "the folder BSD400"),
}
NAMES = ("digits", *PUBLISHED)


def is_here(spec: str) -> bool:
    """False for a published data set whose files aren't on this machine; nothing is downloaded."""
    name, _, folder = spec.partition(":")
    known = PUBLISHED.get(name)
    return known is None or known.found(homes(known.folder, folder)) is not None


def load(
    spec: str,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    input_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    sizes: Sizes | None = None,
) -> Data:
    """Load a data set by its name or path.

    ``digits`` ships with scikit-learn. ``mnist[:DIR]`` and ``cifar10[:DIR]`` are read from their
    published files in DIR, in ``$COMPRESS_DATA_DIR/NAME`` or in the user's cache, and downloaded where
    torchvision is installed. ``set11[:DIR]`` and ``bsd400[:DIR]`` are photographs to reconstruct, in DIR
    or in ``$COMPRESS_DATA_DIR/recon`` (:mod:`compress.data.photographs`). A folder of class folders is
    classification, a flat folder of images reconstruction. An ``.npz`` has ``x_train``, ``y_train``,
    ``x_test``, ``y_test``, or ``images`` and ``labels``. ``FILE.py:FUNCTION`` returns anything that
    :func:`from_python` takes.

    Args:
        spec: as above. Relative paths are looked for below ``$COMPRESS_DATA_DIR`` first.
        mean, std: one number or one a channel; ImageNet's by default.
        input_shape: channels, height, width that the network takes; None if not known. MNIST's 28x28
            images get a black border of 2 pixels where the network takes 32x32.
        num_classes: the network's outputs; None if not known.
        seed: of the division where the data has none; equal for all runs that are to be compared.
        sizes: which image sizes the network takes, where it takes many.

    Raises:
        BadData: the data is missing, damaged or doesn't fit the network; the message says what to do.
        UnknownName: there is neither such a name nor such a path.
        BadInput: the user's file raised.
    """
    wanted = Wanted(spec, input_shape, num_classes, mean, std, seed, sizes)
    name, _, folder = spec.partition(":")
    if spec == "digits":
        return _digits(wanted)
    if name == "mnist":
        return _mnist(wanted, folder)
    if name == "cifar10":
        return _cifar10(wanted, folder)
    if name == "set11":
        return set11(wanted, _find(wanted, name, folder))
    if name == "bsd400":
        return from_files(wanted, images_in(_find(wanted, name, folder)))
    if is_user_code(spec):
        made = call(load_user_code(spec, "data"), "data")
        return from_python(
            made, name=spec, mean=mean, std=std, input_shape=input_shape, num_classes=num_classes, seed=seed
        )
    path = next((p for p in places(spec) if p.exists()), None)
    if path is None:
        if spec.endswith(".npz") or os.sep in spec or spec.startswith((".", "~")):
            raise BadData(spec, "there is no such file or folder", f"give one that exists, {', '.join(NAMES)}")
        raise UnknownName("data", spec, NAMES, HINT)
    if path.is_dir():
        return read_folder(wanted, path)
    if path.suffix == ".npz":
        return _npz(wanted, path)
    raise BadData(spec, "it is neither a folder nor an .npz", f"give one of {', '.join(NAMES)}, {HINT}")


def _digits(wanted: Wanted) -> Data:
    import numpy as np

    from compress.data.digits import arrays

    images, labels, chosen = arrays()
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[chosen] = True
    train, evaluate = ((images[mask], labels[mask]) for mask in (~held_out, held_out))
    return from_arrays(wanted, train, evaluate, tuple("0123456789"), Affine())


def _mnist(wanted: Wanted, folder: str) -> Data:
    import numpy as np

    parts = read_mnist(wanted.name, _find(wanted, "mnist", folder))
    if wanted.shape is not None and wanted.shape[1:] == (32, 32):
        parts = tuple((np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2))), y) for x, y in parts)  # type: ignore[assignment]  # still two
    return from_arrays(wanted, *parts, tuple("0123456789"), Affine())


def _cifar10(wanted: Wanted, folder: str) -> Data:
    home = _find(wanted, "cifar10", folder)
    return from_arrays(wanted, *read_cifar10(wanted.name, home), CIFAR10_CLASSES, CropFlip())


def _npz(wanted: Wanted, path: Path) -> Data:
    arrays = read_npz(wanted.name, path)
    train, evaluate = choose_keys(wanted.name, list(arrays))
    parts = [None if k is None else (arrays[k[0]], arrays[k[1]] if k[1] else None) for k in (train, evaluate)]
    classes = tuple(str(c) for c in arrays["classes"]) if "classes" in arrays else None
    assert parts[0] is not None
    return from_arrays(wanted, parts[0], parts[1], classes)


def _find(wanted: Wanted, name: str, folder: str) -> Path:
    known = PUBLISHED[name]
    looked = homes(known.folder, folder)
    found = known.found(looked)
    if found is None and known.downloaded and not folder:
        _download(name)
        found = known.find(download_dir(name))
    if found is not None:
        return found
    target = looked[0] if folder else download_dir(known.folder)
    raise BadData(
        wanted.name,
        f"nothing found in {' or '.join(map(str, looked))}",
        f"put {known.what} into {target}, or name its folder: --data {name}:DIR",
    )


def _download(name: str) -> None:
    """Let torchvision fetch the data, if it is installed and there is a network; else nothing happens."""
    home = download_dir(name)
    # torchvision's import fails in many ways where it doesn't fit the installed torch, and so does a download.
    with contextlib.suppress(Exception):
        from torchvision import datasets

        home.mkdir(parents=True, exist_ok=True)
        for train in (True, False):
            (datasets.MNIST if name == "mnist" else datasets.CIFAR10)(str(home), train=train, download=True)
