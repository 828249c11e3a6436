"""Inputs that aren't images, as they are: text, sound, volumes, tables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compress.data.loader_split import guarded, pair
from compress.data.splits import Data, Indexed
from compress.errors import BadData

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.metric import Task


@dataclass(frozen=True, eq=False)
class TensorSplit(Indexed):
    """Inputs of any shape in memory, handed out unchanged.

    Attributes:
        values: (N, ...), of the type that the network takes.
        labels: int64 (N,) classes, float32 (N, ...) targets, or None where the inputs are their own targets.
        mean, std: nothing is subtracted, nothing scaled.
    """

    values: Tensor
    labels: Tensor | None
    mean: tuple[float, ...] = field(default=(0.0,), init=False)
    std: tuple[float, ...] = field(default=(1 / 255,), init=False)

    @property
    def n(self) -> int:
        """How many inputs there are."""
        return int(self.values.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.values.shape[1:])

    def taken(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        """See :meth:`compress.data.splits.Indexed.taken`."""
        return self.values[index], None if self.labels is None else self.labels[index]

    def decoded(self, inputs: Tensor) -> Tensor:
        """As they are."""
        return inputs

    def normalized(self, values: Tensor) -> Tensor:
        """As they are."""
        return values


def from_tensors(data: Any, like: Tensor, name: str = "data") -> Data:
    """A data set for calibration of inputs that aren't images; the same inputs are its evaluation split.

    Args:
        data: inputs (N, ...); an (inputs, labels) pair, where whole numbers (N,) are classes and anything else is the
            target of a regression; or an iterable of such batches, read to its end once.
        like: a batch of what the network takes; only its shape and type matter.
        name: for messages.

    Raises:
        BadData: it isn't one of these forms, an input has another shape than those of ``like``, the labels are fewer or
            more than the inputs, a class is below 0, an input or a target isn't finite.
    """
    import torch

    values, labels = _read(data, name)
    if values.shape[1:] != like.shape[1:]:
        given, wanted = (" x ".join(map(str, x.shape[1:])) for x in (values, like))
        raise BadData(
            name, f"its inputs are {given}, the example is {wanted}", "give data and example_inputs of one shape"
        )
    values = values.to(like.dtype)
    if values.is_floating_point() and not torch.isfinite(values).all():
        raise BadData(name, "some inputs hold NaN or infinity", "remove or repair them")
    task: Task = "reconstruction"
    classes: tuple[str, ...] = ()
    if labels is not None:
        if len(labels) != len(values):
            raise BadData(name, f"{len(values)} inputs but {len(labels)} labels", "give one label an input")
        if labels.dim() == 1 and not labels.is_floating_point():
            if len(labels) and int(labels.min()) < 0:
                raise BadData(name, "some labels are below 0", "number the classes from 0")
            task, classes = "classification", tuple(str(i) for i in range(int(labels.max()) + 1))
            labels = labels.long()
        else:
            labels = labels.float()
            if not torch.isfinite(labels).all():
                raise BadData(name, "some targets hold NaN or infinity", "remove or repair them")
    split = TensorSplit(values, labels)
    digest = hashlib.sha256(repr((tuple(values.shape), str(values.dtype))).encode())
    digest.update(values.contiguous().numpy().tobytes())
    if labels is not None:
        digest.update(labels.contiguous().numpy().tobytes())
    return Data(name, task, split, split, classes, digest.hexdigest(), split.mean, split.std)


def _read(data: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """All inputs, and all labels where there are any."""
    import torch

    def array(value: Any) -> bool:
        return hasattr(value, "shape") and hasattr(value, "dtype")

    def labelled(value: Any) -> bool:
        two = isinstance(value, (tuple, list)) and len(value) == 2 and all(array(each) for each in value)
        if not two or len(value[0].shape) < 2 or not len(value[1].shape):
            return False
        # A list, and a pair of one shape, are batches of inputs; else the second holds a label or a target an input.
        return len(value[1].shape) == 1 or (isinstance(value, tuple) and value[0].shape[1:] != value[1].shape[1:])

    if array(data) or labelled(data):
        found = [pair(name, data)]
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        found = [pair(name, batch) for batch in guarded(name, data)]
    else:
        raise BadData(
            name, f"it is a {type(data).__name__}", "give inputs, an (inputs, labels) pair or batches of them"
        )
    if not found or sum(len(values) for values, _ in found) == 0:
        raise BadData(name, "it holds no inputs", "give one at least")
    labels = [batch for _, batch in found if batch is not None]
    if labels and len(labels) != len(found):
        raise BadData(name, "some batches have labels and some have none", "yield (inputs, labels)")
    try:
        return torch.cat([values for values, _ in found]), torch.cat(labels) if labels else None
    except RuntimeError as error:
        raise BadData(name, f"batches differ in shape ({error})", "yield inputs of one size") from None
