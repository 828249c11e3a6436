"""What stands behind the sums of a convolution on a GPU, whatever made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.kernels.building import Rescaling, constant, pointer, requantized
from compress.export.kernels.code import Placed
from compress.export.kernels.vectors import clamp
from compress.integer.program import Convolution, FloatConvolution


@dataclass(frozen=True, eq=False, slots=True)
class Ending:
    """What stands behind a convolution's sums: constants of each channel, and what they make of a sum."""

    op: Convolution | FloatConvolution
    dtype: str

    @property
    def factors(self) -> Rescaling | None:
        """Of an output of 8 bits."""
        if isinstance(self.op, FloatConvolution) or self.op.requantize is None:
            return None
        return Rescaling.of(self.op.requantize, self.op.weight.shape[0])

    @property
    def constants(self) -> tuple[NDArray[Any], ...]:
        """One number a channel in each."""
        if isinstance(self.op, FloatConvolution):
            return ()
        factors = self.factors
        if factors is not None:
            return factors.tables
        assert self.op.scale is not None
        return (np.broadcast_to(self.op.scale, self.op.weight.shape[:1]).astype(np.float32),)

    def result(self, total: Any, channel: Any, tables: list[Any]) -> Any:
        """What is stored for a channel's sum."""
        from tvm.tirx.script import builder as T

        if isinstance(self.op, FloatConvolution):
            if not (np.isfinite(self.op.low) or np.isfinite(self.op.high)):
                return total
            return clamp(total, *(constant(limit, "float32") for limit in (self.op.low, self.op.high)))
        numbers = tuple(table[channel] for table in tables)
        factors = self.factors
        if self.op.requantize is not None and factors is not None:
            return requantized(total, numbers, self.op.requantize, factors.high, self.dtype)
        return T.cast(total, "float32") * numbers[0]


def parameters(x: Placed, y: Placed, constants: list[NDArray[Any]]) -> list[tuple[str, str, int]]:
    """A kernel's parameters: input, output, constants."""
    named = [(f"constant{k}", str(each.dtype), each.size) for k, each in enumerate(constants)]
    return [pointer("x", x), pointer("y", y), *named]


__all__ = ["Ending", "parameters"]
