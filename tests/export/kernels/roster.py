"""Every case, in one order: convolutions, other integer operators, float32."""

from __future__ import annotations

from tests.export.kernels.cases import CASES, Case, case, numbers, requantize, single, weights
from tests.export.kernels.roster_convolutions import SHAPES, convolution

# isort: split
from tests.export.kernels import roster_integers  # noqa: F401  # it adds its cases

# isort: split
from tests.export.kernels import roster_floats  # noqa: F401  # as above

__all__ = ["CASES", "SHAPES", "Case", "case", "convolution", "numbers", "requantize", "single", "weights"]
