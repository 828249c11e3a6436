"""Recall by class: of the inputs of each class, the share that the network finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from compress.data import Data
from compress.errors import BadInput, UnknownName


@dataclass(frozen=True)
class Recall:
    """Recall by class before and after pruning, on the same inputs.

    Attributes:
        classes: their names, in the order of the labels.
        before, after: of the given and of the smaller network, in percent; None for a class without inputs.
        n: inputs of each class.
        protected: names of the classes whose recall was not to fall.
    """

    classes: tuple[str, ...]
    before: tuple[float | None, ...]
    after: tuple[float | None, ...]
    n: tuple[int, ...]
    protected: tuple[str, ...] = ()

    @property
    def fallen(self) -> tuple[str, ...]:
        """The protected classes whose recall fell on these inputs."""
        found = zip(self.classes, self.before, self.after, strict=True)
        return tuple(
            name
            for name, before, after in found
            if name in self.protected and before is not None and after is not None and after < before
        )

    def __str__(self) -> str:
        """A table with a row a class; a star marks the protected ones."""
        width = max(len("class"), *(len(name) for name in self.classes)) + 2
        lines = [f"{'class':<{width}}{'before':>8}{'after':>8}{'inputs':>8}"]
        for name, before, after, n in zip(self.classes, self.before, self.after, self.n, strict=True):
            cells = "".join(f"{'-' if each is None else f'{each:.1f}%':>8}" for each in (before, after))
            lines.append(f"{name + (' *' if name in self.protected else ''):<{width}}{cells}{n:>8}")
        return "\n".join(lines)


def recall(
    before: nn.Module,
    after: nn.Module,
    data: Data,
    protected: Sequence[int] = (),
    *,
    device: str = "cpu",
    most: int | None = None,
    seed: int = 0,
) -> Recall | None:
    """Recall by class of two networks on the evaluation split; None where the data have no class labels.

    Args:
        before, after: from inputs to logits (N, K); None is also what other outputs give.
        data: what to measure on.
        protected: indices of the protected classes.
        device: where to compute.
        most: inputs to look at, drawn by ``seed``; None for all, in order.
        seed: of that choice.
    """
    if data.task != "classification":
        return None
    networks = [network.to(device) for network in (before, after)]
    generator = None if most is None else torch.Generator().manual_seed(seed)
    k = len(data.classes)
    hits, n = torch.zeros(2, k, dtype=torch.long), torch.zeros(k, dtype=torch.long)
    with torch.no_grad():
        for inputs, labels in data.evaluate.batches(256, generator, device):
            outputs = [network(inputs) for network in networks]
            if outputs[0].dim() != 2:
                return None
            n += torch.bincount(labels.cpu(), minlength=k)
            for row, output in zip(hits, outputs, strict=True):
                row += torch.bincount(labels[output.argmax(1) == labels].cpu(), minlength=k)
            if most is not None and int(n.sum()) >= most:
                break
    shares = [[100 * h / t if t else None for h, t in zip(row, n.tolist(), strict=True)] for row in hits.tolist()]
    names = tuple(data.classes[each] for each in protected)
    return Recall(data.classes, tuple(shares[0]), tuple(shares[1]), tuple(n.tolist()), names)


def class_indices(wanted: Sequence[int | str], data: Data, option: str) -> tuple[int, ...]:
    """Classes by name or index as indices, each once, ascending.

    Args:
        wanted: an integer is an index; a text is a name, or else an index in digits.
        data: what has the classes.
        option: how the user gave them, for the message.

    Raises:
        BadInput: the data have no class labels, or an index is out of range.
        UnknownName: there is no class of that name; the nearest are named.
    """
    if not wanted:
        return ()
    if isinstance(wanted, str):
        raise BadInput(f"{option}: give a sequence of classes, such as [{wanted!r}]")
    if data.task != "classification":
        raise BadInput(f"{option} needs data with class labels, and {data.name} has none")
    found = set()
    for each in wanted:
        if isinstance(each, str) and each in data.classes:
            found.add(data.classes.index(each))
            continue
        try:
            index = int(each)
        except ValueError:
            raise UnknownName("class", str(each), data.classes, f"{option} takes names or indices") from None
        if not 0 <= index < len(data.classes):
            raise BadInput(f"{option}: there is no class {index}; {data.name} has classes 0 to {len(data.classes) - 1}")
        found.add(index)
    return tuple(sorted(found))
