"""Labels of axis elements, and the classes that operators tie them into.

Every index of every axis of every parameter and activation that could be pruned has an integer label.
An operator that forces two indices to live or die together (an addition, a convolution's input and
its weight) *ties* their labels; what must stay (the network's output, a channel that a literal in the
source addresses) is *fixed* with a reason. Since ties are between single indices, permutations,
repeats (a flatten in front of a linear layer), concatenations and paddings need no special cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Fix:
    """Why labels have to stay: the operator, where it stands, the reason."""

    operator: str
    path: str
    reason: str


@dataclass
class Labels:
    """The labels given out so far, the ties between them and the ones that are fixed."""

    count: int = 0
    fixes: list[Fix] = field(default_factory=list)
    _left: list[Indices] = field(default_factory=list)
    _right: list[Indices] = field(default_factory=list)
    _fixed: list[tuple[Indices, int]] = field(default_factory=list)

    def fresh(self, n: int) -> Indices:
        """``n`` new labels, tied to nothing."""
        self.count += n
        return np.arange(self.count - n, self.count, dtype=np.int64)

    def tie(self, a: Indices, b: Indices) -> None:
        """Element by element, ``a[i]`` and ``b[i]`` live or die together. Shapes broadcast."""
        a, b = np.broadcast_arrays(a, b)
        self._left.append(a.ravel())
        self._right.append(b.ravel())

    def fix(self, labels: Indices, why: Fix) -> None:
        """``labels`` have to stay."""
        self.fixes.append(why)
        self._fixed.append((labels.ravel(), len(self.fixes) - 1))

    def classes(self) -> tuple[Indices, dict[int, Fix]]:
        """The class of each label, and why each class that is fixed has to stay (the first reason)."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        left, right = _joined(self._left), _joined(self._right)
        matrix = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(self.count, self.count))
        _, classes = connected_components(matrix, directed=False)
        fixed: dict[int, Fix] = {}
        for labels, index in self._fixed:
            for each in np.unique(classes[labels]):
                fixed.setdefault(int(each), self.fixes[index])
        return classes.astype(np.int64), fixed


def _joined(parts: Sequence[Indices]) -> Indices:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
