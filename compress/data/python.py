"""Data from Python: DataLoaders, arrays, tensors, generators of batches, and what factories return."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compress.data.checks import Wanted, check_classes, check_shape, divide, from_arrays, images_of, labels_of
from compress.data.files import choose_keys
from compress.data.loader_split import CHUNK, LoaderSplit, guarded, pair
from compress.data.splits import Data
from compress.errors import BadData

if TYPE_CHECKING:
    from compress.metric import Task

FORMS = "give a DataLoader, an (inputs, labels) pair, a ((inputs, labels), (inputs, labels)) pair or batches"


def from_python(
    data: Any,
    *,
    evaluate: Any = None,
    name: str = "data",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    input_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    divisible: bool = True,
    seed: int = 0,
) -> Data:
    """A data set of what a program has in hand.

    Args:
        data: a :class:`Data` (returned as it is); a DataLoader over a map-style data set (read item by
            item when needed); a pair (inputs, labels) of arrays or tensors, inputs (N, C, H, W),
            (N, H, W, C) or (N, H, W), labels (N,), or None for reconstruction; inputs alone; a pair of
            such things, to train and to evaluate on; a dict with the keys of an ``.npz``
            (``x_train``, ...) or with ``train`` and ``evaluate``; or an iterable of batches
            ``(images, labels)``, read to its end once and kept.
        evaluate: what to evaluate on, in any of these forms; None takes it from ``data``.
        name: for messages and results.
        mean, std: one number or one a channel, for integer pixels; ImageNet's by default. Floating-point
            inputs are taken as normalized already.
        input_shape: channels, height, width that the network takes; None if not known.
        num_classes: the network's outputs; None if not known.
        divisible: where there is nothing else to evaluate on, hold a fifth of ``data`` out; False uses
            all of it for both (for calibration alone).
        seed: of that division.

    Raises:
        BadData: it isn't one of these forms, or its contents can't be used.
    """
    if isinstance(data, Data):
        return data
    wanted = Wanted(name, input_shape, num_classes, mean, std, seed)
    train, found = _parts(wanted, data)
    held_out = evaluate if evaluate is not None else found
    if _is_loader(train) and (held_out is None or _is_loader(held_out)):
        return _from_loaders(wanted, train, held_out, divisible)
    return from_arrays(
        wanted,
        _arrays(wanted, train),
        None if held_out is None else _arrays(wanted, held_out),
        divisible=divisible,
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_loader(value: Any) -> bool:
    """A DataLoader whose items can be asked for by index."""
    from torch.utils.data import DataLoader, IterableDataset

    return isinstance(value, DataLoader) and not isinstance(value.dataset, IterableDataset)


def _is_labels(value: Any) -> bool:
    return value is None or _is_array(value) or (isinstance(value, list) and all(isinstance(v, int) for v in value))


def _parts(wanted: Wanted, data: Any) -> tuple[Any, Any]:
    """What to train on, and what to evaluate on or None."""
    if isinstance(data, Mapping):
        for key in ("evaluate", "eval", "val", "test"):
            if "train" in data and key in data:
                return data["train"], data[key]
        train, evaluate = choose_keys(wanted.name, [str(key) for key in data])
        picked = [None if k is None else (data[k[0]], data[k[1]] if k[1] else None) for k in (train, evaluate)]
        return picked[0], picked[1]
    if isinstance(data, (tuple, list)) and len(data) == 2 and not (_is_array(data[0]) and _is_labels(data[1])):
        return data[0], data[1]
    return data, None


def _arrays(wanted: Wanted, source: Any) -> tuple[Any, Any]:
    """Images and labels (or None) of one split."""
    import numpy as np

    if _is_array(source):
        return source, None
    if isinstance(source, (tuple, list)) and len(source) == 2 and _is_array(source[0]) and _is_labels(source[1]):
        return source[0], source[1]
    if isinstance(source, Mapping):
        (key, label_key), _ = choose_keys(wanted.name, [str(key) for key in source])
        return source[key], source[label_key] if label_key else None
    if not isinstance(source, Iterable) or isinstance(source, (str, bytes)):
        raise BadData(wanted.name, f"it is a {type(source).__name__}", FORMS)
    images_found, labels_found = [], []
    for batch in guarded(wanted.name, source):
        images, labels = pair(wanted.name, batch)
        array = images_of(images, wanted)
        images_found.append(array)
        if labels is not None:
            labels_found.append(labels_of(labels, array, wanted))
    if not images_found:
        raise BadData(wanted.name, "it yields no batches", FORMS)
    if labels_found and len(labels_found) != len(images_found):
        raise BadData(wanted.name, "some batches have labels and some have none", "yield (images, labels)")
    try:
        return np.concatenate(images_found), np.concatenate(labels_found) if labels_found else None
    except ValueError as error:
        raise BadData(wanted.name, f"batches differ in shape ({error})", "yield images of one size") from None


def _from_loaders(wanted: Wanted, train: Any, evaluate: Any, divisible: bool) -> Data:
    import numpy as np

    n = len(train.dataset)
    if n == 0 or (evaluate is not None and len(evaluate.dataset) == 0):
        raise BadData(wanted.name, "a split is empty", "give at least one image to train and to evaluate on")
    first, second = list(range(n)), list(range(n))
    if evaluate is None and divisible:
        first, second = divide(_known_labels(train.dataset), n, wanted)
    parts = [(train, first), (train, second) if evaluate is None else (evaluate, list(range(len(evaluate.dataset))))]

    # A sample from all over the training split, for data sets often are in the order of their classes.
    sample = [first[i] for i in np.random.default_rng(0).permutation(len(first))[:CHUNK].tolist()]
    probe = LoaderSplit(wanted.name, train, tuple(sample), (0, 0, 0), (), ())
    images, labels = next(iter(probe.raw(CHUNK, list(range(probe.n)))))
    if images.ndim != 4:
        raise BadData(
            wanted.name, f"a batch of images has the shape {tuple(images.shape)}", "give batches (N, C, H, W)"
        )
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    check_shape(wanted, shape)
    array = images_of(images, wanted)
    mean, std = (0.0,) * shape[0], (1 / 255,) * shape[0]
    if array.dtype == np.uint8:
        mean, std = wanted.normalization(shape[0])
    splits = [LoaderSplit(wanted.name, loader, tuple(i), shape, mean, std) for loader, i in parts]
    digest, evaluated = _read_through(replace(wanted, shape=shape), splits[1])
    task: Task = "reconstruction"
    classes: tuple[str, ...] = ()
    if labels is not None and labels.ndim == 1:
        task = "classification"
        found = np.concatenate([labels_of(labels, array, wanted), *evaluated])
        check_classes(wanted, found)
        classes = tuple(str(i) for i in range(wanted.num_classes or int(found.max()) + 1))
    return Data(wanted.name, task, splits[0], splits[1], classes, digest, mean, std)


def _known_labels(dataset: Any) -> list[int] | None:
    """The labels of a data set that has them at hand, so that it can be divided by class."""
    targets = getattr(dataset, "targets", None)
    if targets is None and len(getattr(dataset, "tensors", ())) == 2:
        targets = dataset.tensors[1]
    try:
        labels = [int(label) for label in targets] if targets is not None else []
    except (TypeError, ValueError):
        return None
    return labels if len(labels) == len(dataset) else None


def _read_through(wanted: Wanted, split: LoaderSplit) -> tuple[str, list[Any]]:
    """The digest of a split and the class labels of its batches, each of which is checked."""
    state = hashlib.sha256(repr((split.n, split.shape)).encode())
    found: list[Any] = []
    for images, labels in split.raw(CHUNK, list(range(split.n))):
        array = images_of(images, wanted)
        state.update(array.tobytes())
        if labels is not None:
            y = labels_of(labels, array, wanted)
            state.update(y.tobytes())
            if y.ndim == 1:
                found.append(y)
    return state.hexdigest(), found
