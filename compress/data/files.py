"""The file formats of MNIST, CIFAR-10 and ``.npz``, and where the files are looked for."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import BadData

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]
    Labels = NDArray[np.int64]
    Part = tuple[Images, Labels]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "evaluate": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def data_dir() -> Path | None:
    """``$COMPRESS_DATA_DIR`` if it is set."""
    value = os.environ.get("COMPRESS_DATA_DIR")
    return Path(value).expanduser() if value else None


def candidates(path: str) -> list[Path]:
    """Where a relative path is looked for: below ``$COMPRESS_DATA_DIR`` first, then as it stands."""
    given = Path(path).expanduser()
    root = data_dir()
    return [root / given, given] if root is not None and not given.is_absolute() else [given]


def homes(name: str, folder: str | None) -> list[Path]:
    """The folders in which the files of a folder ``name`` (``"mnist"``, ``"recon"``) are looked for."""
    if folder:
        return candidates(folder)
    root = data_dir()
    return ([root / name, root] if root is not None else []) + [download_dir(name)]


def download_dir(name: str) -> Path:
    """Where a download of ``name`` goes: ``$COMPRESS_DATA_DIR/name``, else the user's cache."""
    root = data_dir()
    if root is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "compress"
    return root / name


def read(name: str, path: Path) -> bytes:
    """A whole file, unpacked if it is gzipped.

    Raises:
        BadData: it can't be read, or its end is missing.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise BadData(name, f"{path} can't be read ({error})", "fetch the file again") from None


def find_mnist(folder: Path) -> Path | None:
    """The folder that holds the idx files, at or below ``folder``."""
    for below in (folder, folder / "MNIST" / "raw", folder / "raw", folder / "mnist" / "MNIST" / "raw"):
        if any((below / f"{MNIST_FILES['evaluate'][0]}{end}").is_file() for end in ("", ".gz")):
            return below
    return None


def read_mnist(name: str, folder: Path) -> tuple[Part, Part]:
    """Training and evaluation images uint8 (N, 1, 28, 28) with their labels.

    Raises:
        BadData: a file is missing, cut short or of another format.
    """
    parts: list[Part] = []
    for images, labels in MNIST_FILES.values():
        x, y = _idx(name, folder, images), _idx(name, folder, labels)
        if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
            raise BadData(name, f"{images} and {labels} don't belong together", "fetch both files again")
        parts.append((x[:, None], y.astype("int64")))
    return parts[0], parts[1]


def _idx(name: str, folder: Path, file: str) -> Images:
    import numpy as np

    path = next((p for p in (folder / file, folder / f"{file}.gz") if p.is_file()), None)
    if path is None:
        raise BadData(name, f"{folder} has neither {file} nor {file}.gz", "put the missing file there")
    content = read(name, path)
    # Two zeros, the number format (8: unsigned byte), the number of axes; then each axis, big endian.
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise BadData(name, f"{path} isn't an idx file of bytes", "fetch the file again")
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    array = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if array.size != int(np.prod(shape, dtype=np.int64)):
        raise BadData(name, f"{path} holds {array.size} bytes, its header says {shape}", "fetch the file again")
    return array.reshape(shape)


def find_cifar10(folder: Path) -> Path | None:
    """The folder that holds CIFAR-10's batches, binary before pickled, at or below ``folder``."""
    for below in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
        if (below / "test_batch.bin").is_file() or (below / "test_batch").is_file():
            return below
    return None


def read_cifar10(name: str, folder: Path) -> tuple[Part, Part]:
    """Training and evaluation images uint8 (N, 3, 32, 32) with their labels.

    Raises:
        BadData: a file is missing, cut short, of another format, or a pickle that holds more than arrays.
    """
    import numpy as np

    binary = (folder / "test_batch.bin").is_file()

    def part(stems: Iterable[str]) -> Part:
        batches = []
        for stem in stems:
            path = folder / (f"{stem}.bin" if binary else stem)
            if not path.is_file():
                raise BadData(name, f"{folder} has no {path.name}", "put the missing file there")
            batches.append((_cifar_binary if binary else _cifar_pickle)(name, path))
        return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])

    return part(CIFAR10_TRAIN), part(("test_batch",))


def _cifar_binary(name: str, path: Path) -> Part:
    import numpy as np

    content = np.frombuffer(read(name, path), np.uint8)
    record = 1 + 3 * 32 * 32
    if content.size == 0 or content.size % record:
        raise BadData(name, f"{path} has {content.size} bytes, no multiple of {record}", "fetch the file again")
    rows = content.reshape(-1, record)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def _cifar_pickle(name: str, path: Path) -> Part:
    import numpy as np

    entry = restricted_pickle(name, path)
    try:
        x, y = np.asarray(entry["data"]), np.asarray(entry["labels"])
        if x.dtype != np.uint8 or y.dtype.kind not in "ui" or x.shape != (len(y), 3072):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise BadData(name, f"{path} isn't a batch of CIFAR-10", "fetch the file again") from None
    return x.reshape(-1, 3, 32, 32), y.astype(np.int64)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding}")
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    """Builds lists, dicts, strings, bytes, numbers and numpy arrays; names nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """The few callables that a pickled numpy array names."""
        import numpy as np

        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return np.zeros(1).__reduce_ex__(5)[0]
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def restricted_pickle(name: str, path: Path) -> Any:
    """The value in a pickle that holds only lists, dicts, strings, numbers and numpy arrays.

    Raises:
        BadData: the pickle names anything else (which isn't run), or is damaged.
    """
    try:
        return _ArraysOnly(io.BytesIO(read(name, path)), encoding="latin1").load()
    except BadData:
        raise
    except pickle.UnpicklingError as error:
        raise BadData(
            name, f"{path} isn't a pickle of plain arrays and wasn't run ({error})", "fetch the official file"
        ) from None
    except Exception as error:
        # A damaged pickle can fail in any way at all.
        raise BadData(name, f"{path} is damaged ({type(error).__name__})", "fetch the file again") from None


def read_npz(name: str, path: Path) -> dict[str, NDArray[Any]]:
    """Every array of an ``.npz``, without running any pickle.

    Raises:
        BadData: it isn't an ``.npz``, is damaged, or holds arrays of objects.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise BadData(name, "the file holds one array without a name", "save it by numpy.savez")
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        if "allow_pickle" in str(error) or "Object arrays" in str(error):
            raise BadData(
                name,
                "it holds arrays of objects, which only a pickle could read",
                "save arrays of numbers: uint8 or float32 images, int64 labels",
            ) from None
        raise BadData(name, f"the file can't be read ({error})", "write it again by numpy.savez") from None


def choose_keys(name: str, keys: Sequence[str]) -> tuple[tuple[str, str | None], tuple[str, str | None] | None]:
    """Which keys of an archive or dict hold images and labels, for training and for evaluation.

    Raises:
        BadData: there are no such keys.
    """
    have = set(keys)

    def labels(key: str) -> str | None:
        return key if key in have else None

    for train, evaluate in (("train", "test"), ("train", "val"), ("train", "eval")):
        if f"x_{train}" in have and f"x_{evaluate}" in have:
            return (f"x_{train}", labels(f"y_{train}")), (f"x_{evaluate}", labels(f"y_{evaluate}"))
    for images, label in (("images", "labels"), ("x", "y"), ("inputs", "labels")):
        if images in have:
            return (images, labels(label)), None
    raise BadData(
        name,
        f"it has the keys {', '.join(sorted(have)[:6]) or '(none)'}",
        "name them x_train, y_train, x_test, y_test, or images and labels",
    )
