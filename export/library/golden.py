"""Inputs and the outputs that belong to them, as the C programs and the emulator take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.export.library.interface import End, Interface

MOST_BYTES = 1 << 16
"""Golden inputs in C take about this many bytes at most, but one input is always there."""


@dataclass(frozen=True, eq=False)
class Golden:
    """Golden inputs and outputs of a network.

    Attributes:
        inputs, outputs: by name, float32 (N, *file_shape), as they stand in ``golden.npz``.
        tolerance: how far outputs may lie from these, relative to the largest of them; 0 where they come from the
            integer reference, which compiled code equals bit for bit.
    """

    inputs: Mapping[str, npt.NDArray[np.float32]]
    outputs: Mapping[str, npt.NDArray[np.float32]]
    tolerance: float = 0.0

    @property
    def count(self) -> int:
        """How many inputs there are."""
        return len(next(iter(self.inputs.values())))

    @property
    def largest(self) -> float:
        """The largest magnitude among the outputs."""
        return max(float(np.abs(array).max(initial=0.0)) for array in self.outputs.values())

    def first(self, count: int) -> Golden:
        """The first ``count`` of them."""
        inputs = {name: array[:count] for name, array in self.inputs.items()}
        return Golden(inputs, {name: array[:count] for name, array in self.outputs.items()}, self.tolerance)

    def small(self, interface: Interface) -> Golden:
        """As many as a C header should hold."""
        size = sum(end.bytes for end in interface.inputs)
        return self.first(max(1, MOST_BYTES // max(size, 1)))

    def arrays(self, interface: Interface) -> Iterator[tuple[End, npt.NDArray[Any]]]:
        """Inputs as the library takes them, and outputs as floats in the library's order: (N, elements)."""
        for end in interface.inputs:
            yield end, end.to_library(self.inputs[end.name]).reshape(self.count, -1)
        for end in interface.outputs:
            values = np.asarray(self.outputs[end.name], np.float32)
            laid = values.transpose(0, 2, 3, 1) if end.image else values
            yield end, np.ascontiguousarray(laid).reshape(self.count, -1)


__all__ = ["MOST_BYTES", "Golden"]
