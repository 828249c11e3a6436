"""What a teacher says of the images that all trainings of a job draw, asked once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.types import Context

MOST_BYTES = 2**26

COMPARED = 256
"""Training inputs on which a network is compared with its teacher."""

AT_ONCE = 64
"""Of them in one pass: what a batch of training holds is held without gradients here, not four times that."""


@dataclass
class Lessons:
    """One order and augmentation of images for every candidate, with the teacher's outputs on them.

    Small students cost less than their teacher's pass over the images, which would be the same for each of them. And
    what has seen the same images is compared more sharply. Results don't depend on what is kept, only on ``seed``.

    Attributes:
        seed: of the images' order and augmentation.
        most_bytes: of outputs that are kept; what comes after them is asked for again.
    """

    seed: int
    most_bytes: int = MOST_BYTES
    _outputs: list[Tensor] = field(default_factory=list)
    _bytes: int = 0

    def images(self) -> torch.Generator:
        """A generator (CPU) that draws the images from the first one on."""
        import torch

        return torch.Generator().manual_seed(self.seed)

    def output(self, number: int, ask: Callable[[], Tensor]) -> Tensor:
        """The teacher's output on batch ``number`` of those that :meth:`images` draws; ``ask`` computes it."""
        if number < len(self._outputs):
            return self._outputs[number]
        found = ask()
        self._bytes += found.numel() * found.element_size()
        if number == len(self._outputs) and self._bytes <= self.most_bytes:
            self._outputs.append(found)
        return found


def of(context: Context, teacher: Any, batch_size: int) -> Lessons | None:
    """Those of a job's trainings that have this teacher and so many images a batch; None without a teacher.

    Args:
        context: whose ``shared`` keeps them.
        teacher: kept with them, so that no other can be taken for it.
        batch_size: images a batch.
    """
    if teacher is None:
        return None
    known: dict[tuple[int, int], tuple[Any, Lessons]] = context.shared.setdefault("lessons", {})
    key = id(teacher), batch_size
    if key not in known:
        known[key] = teacher, Lessons(context.seed)
    return known[key][1]


def compared(context: Context, teacher: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """The :data:`COMPARED` training inputs, and the teacher's output on them, which it is asked for once a job: both
    for :func:`compress.training.unexplained`."""
    import torch

    from compress.lending import lent

    known: dict[int, tuple[Any, Tensor, Tensor]] = context.shared.setdefault("compared", {})
    if id(teacher) not in known:
        inputs = context.data.train.inputs(COMPARED, torch.Generator().manual_seed(context.seed))
        with torch.no_grad(), lent(teacher, "cpu"):
            known[id(teacher)] = teacher, inputs, torch.cat([teacher(part) for part in inputs.split(AT_ONCE)])
    _, inputs, outputs = known[id(teacher)]
    return inputs, outputs


__all__ = ["AT_ONCE", "COMPARED", "Lessons", "compared", "of"]
