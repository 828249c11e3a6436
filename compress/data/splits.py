"""What a data set is once it is loaded: two splits that hand out normalized batches.

Images leave a split as float32 NCHW, ``(x / 255 - mean) / std`` with one mean and standard deviation
a channel. Inputs that arrive as floating-point numbers are taken as normalized already: their split
has ``mean = 0`` and ``std = 1 / 255``, with which that formula is the identity.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from compress.errors import BadData
from compress.metric import Task
from compress.types import Note

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.data.augment import Augmentation

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Split(Protocol):
    """Images with their labels (classification) or with themselves as targets (reconstruction)."""

    @property
    def n(self) -> int:
        """How many images there are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input: channels, height and width of an image."""

    @property
    def mean(self) -> tuple[float, ...]:
        """What is subtracted from x / 255, one number a channel."""

    @property
    def std(self) -> tuple[float, ...]:
        """What the difference is divided by, one number a channel."""

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        device: str = "cpu",
        augment: Augmentation | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go once through the split.

        Args:
            batch_size: images a batch, 1 or more; the last batch may be smaller.
            generator: on the CPU; shuffles and augments. None: in order, nothing changed.
            device: where the tensors end up.
            augment: applied to each batch if there is a generator.

        Yields:
            Images, float32 (B, C, H, W), normalized; and labels, int64 (B,), or for reconstruction
            the targets, float32 (B, C, H, W), normalized.

        Raises:
            BadData: a file can't be read, or an image has another size than ``shape``.
        """

    def inputs(self, n: int, generator: torch.Generator) -> Tensor:
        """At most ``n`` images drawn without repetition, float32 (min(n, self.n), C, H, W), normalized."""

    def whole(self, pieces: Iterable[tuple[Tensor, Tensor]], /) -> Iterator[tuple[Tensor, Tensor]]:
        """What was made of all batches in order, and what was wanted, as it is to be compared.

        Args:
            pieces: batches (N, C, H, W) of both.
        """


@dataclass(frozen=True)
class Data:
    """A data set: what to train and calibrate on, and what to measure accuracy on.

    Attributes:
        name: as the user gave it.
        task: labels are classes, or the images are their own targets.
        train, evaluate: disjoint, unless the user gave one split that can't be divided.
        classes: a name for each class, empty for reconstruction.
        sha256: digest of the evaluation split's content, labels included.
        mean, std: see :class:`Split`.
        augment: changes of the training images that leave their labels true; None for none.
        notes: what was left out, and how images of other sizes were treated.
    """

    name: str
    task: Task
    train: Split
    evaluate: Split
    classes: tuple[str, ...]
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augmentation | None = None
    notes: tuple[Note, ...] = ()


def as_images(data: Data) -> Data:
    """The same images as their own targets, for a network that reconstructs them.

    Raises:
        BadData: they are labelled, and only a user's code or a folder's order tells them from their labels.
    """
    if data.task == "reconstruction":
        return data
    if not (isinstance(data.train, ArraySplit) and isinstance(data.evaluate, ArraySplit)):
        raise BadData(data.name, "its images have labels, and the network makes images", "give a flat folder of images")
    train, evaluate = (replace(split, labels=None) for split in (data.train, data.evaluate))
    return replace(data, task="reconstruction", train=train, evaluate=evaluate, classes=(), sha256=evaluate.digest())


def order(n: int, generator: torch.Generator | None) -> Tensor:
    """The indices of ``n`` images: a permutation if there is a generator."""
    import torch

    return torch.arange(n) if generator is None else torch.randperm(n, generator=generator)


def constants(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """``mean`` and ``std`` as float32 (1, C, 1, 1) on the scale of pixels, 0 to 255."""
    import torch

    shape = (1, -1, 1, 1)
    return (
        torch.tensor(mean, dtype=torch.float64).mul(255).float().view(shape),
        torch.tensor(std, dtype=torch.float64).mul(255).float().view(shape),
    )


class Indexed(ABC):
    """A :class:`Split` of inputs that have numbers: what it holds says only how to take some of them.

    Attributes:
        mean, std: see :class:`Split`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    @abstractmethod
    def n(self) -> int:
        """How many inputs there are."""

    @abstractmethod
    def taken(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        """The inputs of the numbers ``index`` int64 (B,), raw; and their targets, None where inputs are their own.

        A split whose inputs are drawn draws them by ``generator``.
        """

    def parts(
        self, index: Tensor, size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What :meth:`taken` gives of ``index``, ``size`` numbers at a time, the last time fewer."""
        for start in range(0, len(index), size):
            yield self.taken(index[start : start + size], generator)

    def finished(
        self,
        inputs: Tensor,
        targets: Tensor | None,
        generator: torch.Generator | None = None,
        device: str = "cpu",
        augment: Augmentation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A batch as :meth:`Split.batches` yields it, from what :meth:`taken` gave."""
        values = self.decoded(inputs)
        if generator is not None and augment is not None:
            values = augment(values, generator)
        found = self.normalized(values).to(device)
        if targets is None:
            return found, found
        return found, (self.normalized(targets) if targets.is_floating_point() else targets).to(device)

    def decoded(self, inputs: Tensor) -> Tensor:
        """Raw inputs as an augmentation takes them."""
        return inputs.float()

    def normalized(self, values: Tensor) -> Tensor:
        """Decoded inputs, or targets that aren't classes, as a network takes them."""
        mean, std = constants(self.mean, self.std)
        return (values - mean) / std

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        device: str = "cpu",
        augment: Augmentation | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See :meth:`Split.batches`."""
        for inputs, targets in self.parts(order(self.n, generator), batch_size, generator):
            yield self.finished(inputs, targets, generator, device, augment)

    def inputs(self, n: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Split.inputs`."""
        found, _ = self.taken(order(self.n, generator)[:n], generator)
        return self.finished(found, None)[0]

    def whole(self, pieces: Iterable[tuple[Tensor, Tensor]], /) -> Iterator[tuple[Tensor, Tensor]]:
        """See :meth:`Split.whole`; as it comes, where a split doesn't say otherwise."""
        return iter(pieces)


@dataclass(frozen=True, eq=False)
class ArraySplit(Indexed):
    """Images in memory, uint8 kept as uint8 until a batch asks for them.

    Attributes:
        images: uint8 or float32 (N, C, H, W).
        labels: int64 (N,), float32 targets of the images' shape, or None where the images are their
            own targets.
        mean, std: see :class:`Split`.
    """

    images: Tensor
    labels: Tensor | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many images there are."""
        return int(self.images.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.images.shape[1:]
        return int(channels), int(height), int(width)

    def taken(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        """See :meth:`Indexed.taken`."""
        return self.images[index], None if self.labels is None else self.labels[index]

    def digest(self, classes: Sequence[str] = ()) -> str:
        """SHA-256 of shape, number format, images and labels."""
        state = hashlib.sha256(repr((tuple(self.images.shape), str(self.images.dtype), tuple(classes))).encode())
        state.update(self.images.contiguous().numpy().tobytes())
        if self.labels is not None:
            state.update(self.labels.contiguous().numpy().tobytes())
        return state.hexdigest()
