"""The data set behind a user's DataLoader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.data.splits import Indexed
from compress.errors import BadData, CompressError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHUNK = 256


@dataclass(frozen=True, eq=False)
class LoaderSplit(Indexed):
    """The data set behind a DataLoader, by index, so that the order comes from our generator.

    The loader's own sampler and batch size are not used; its ``collate_fn`` and workers are.

    Attributes:
        name: the data set, for error messages.
        loader: a ``torch.utils.data.DataLoader`` over a map-style data set.
        indices: which of its items belong to this split.
        shape: channels, height and width of one image.
        mean, std: see :class:`Split`.
    """

    name: str
    loader: Any
    indices: tuple[int, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many images there are."""
        return len(self.indices)

    def taken(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        """See :meth:`compress.data.splits.Indexed.taken`."""
        import torch

        images, labels = zip(*self.raw(CHUNK, index.tolist()), strict=True)
        return torch.cat(images), None if labels[0] is None else torch.cat(labels)

    def parts(
        self, index: Tensor, size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See :meth:`compress.data.splits.Indexed.parts`; the loader's workers read ahead over the whole of it."""
        return self.raw(size, index.tolist())

    def raw(self, batch_size: int, positions: list[int]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Images and labels as the loader's data set has them, at ``positions`` in the split."""
        import torch
        from torch.utils.data import DataLoader

        # Without a generator of its own a DataLoader draws from the global one.
        loader: Any = DataLoader(
            self.loader.dataset,
            batch_size=batch_size,
            sampler=[self.indices[i] for i in positions],
            collate_fn=self.loader.collate_fn,
            num_workers=self.loader.num_workers,
            generator=torch.Generator().manual_seed(0),
        )
        for batch in guarded(self.name, loader):
            yield pair(self.name, batch)


def guarded(name: str, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches of a user's loader; whatever its code raises becomes one line.

    Raises:
        BadData: it raised.
    """
    try:
        yield from batches
    except (CompressError, GeneratorExit):
        raise
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise BadData(name, f"it raised {said}", "correct the code that yields the batches") from error


def pair(name: str, batch: Any) -> tuple[Tensor, Tensor | None]:
    """Images and labels (None if there are none) of one batch that a user's loader made."""
    import torch

    if isinstance(batch, (torch.Tensor,)) or hasattr(batch, "__array__"):
        batch = (batch,)
    if isinstance(batch, dict):
        keys = [("images", "labels"), ("pixel_values", "labels"), ("image", "label"), ("inputs", "labels")]
        found = next(((a, b) for a, b in keys if a in batch), None)
        if found is None:
            raise BadData(name, f"a batch is a dict with the keys {sorted(map(str, batch))}", "yield (images, labels)")
        batch = (batch[found[0]], batch[found[1]]) if found[1] in batch else (batch[found[0]],)
    if not isinstance(batch, (tuple, list)) or not 1 <= len(batch) <= 2:
        raise BadData(name, f"a batch is a {type(batch).__name__}", "yield (images, labels)")
    images = torch.as_tensor(batch[0])
    return images, (torch.as_tensor(batch[1]) if len(batch) == 2 and batch[1] is not None else None)
