"""Rows and columns of a window that slides over an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.export.kernels.code import Placed
from compress.export.kernels.convolutions import image
from compress.export.kernels.emitted import flat
from compress.integer.program import Convolution, FloatConvolution


@dataclass(frozen=True, slots=True)
class Axis:
    """Rows or columns of a convolution.

    Attributes:
        size, out, kernel, stride, dilation, before: of the input, the output, the window; ``before`` is padding.
        pitch, out_pitch, tap: elements from one to the next in the input, the output and the window.
        free: no window leaves the memory.
    """

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    before: int
    pitch: int
    out_pitch: int
    tap: int
    free: bool

    @property
    def inner(self) -> tuple[int, int]:
        """First output index whose window lies in memory, and the one behind the last."""
        if self.free:
            return 0, self.out
        low = -(-self.before // self.stride)
        high = (self.size - 1 - (self.kernel - 1) * self.dilation + self.before) // self.stride + 1
        high = min(high, self.out)
        return (low, high) if low < high else (0, 0)

    def taps(self, index: Any) -> tuple[Any, Any]:
        """First tap inside the image of the window of an output index, and the one behind the last."""
        from tvm.tirx.script import builder as T

        start = index * self.stride - self.before
        low, high = 0 - start, self.size - start
        if self.dilation > 1:
            low, high = ((edge + self.dilation - 1) // self.dilation for edge in (low, high))
        if isinstance(index, int):
            low = max(low, 0)
            return low, max(min(high, self.kernel), low)
        low = T.max(low, 0)
        return low, T.max(T.min(high, self.kernel), low)


def axes_of(op: Convolution | FloatConvolution, x: Placed, y: Placed) -> tuple[Axis, Axis]:
    """Rows and columns, arranged so that there are many columns."""
    shape, out = image(x.tensor.shape), image(y.tensor.shape)
    pitches, out_pitches = _pitches(x), _pitches(y)
    halo = x.layout.halo if x.layout is not None else (0, 0, 0, 0)
    found = []
    for k in range(2):
        size, count, kernel = shape[k], out[k], op.weight.shape[1 + k]
        before = op.padding[k]
        behind = (count - 1) * op.strides[k] + (kernel - 1) * op.dilations[k] - before - (size - 1)
        free = halo[k] >= before and halo[k + 2] >= behind
        tap = op.weight.shape[2] if k == 0 else 1
        pitch, out_pitch = pitches[k], out_pitches[k]
        found.append(Axis(size, count, kernel, op.strides[k], op.dilations[k], before, pitch, out_pitch, tap, free))
    rows, columns = found
    pointwise = rows.kernel == columns.kernel == 1 and rows.stride == columns.stride == 1 and not any(op.padding)
    if pointwise and columns.out < 4 and rows.out > 1 and flat(x) and flat(y):
        count = rows.out * columns.out
        one = Axis(1, 1, 1, 1, 1, 0, rows.pitch, rows.out_pitch, 1, True)
        return one, Axis(count, count, 1, 1, 1, 0, columns.pitch, columns.out_pitch, 1, True)
    return (columns, rows) if columns.size == columns.out == 1 else (rows, columns)


def _pitches(place: Placed) -> tuple[int, int]:
    shape = image(place.tensor.shape)
    if len(place.tensor.shape) == 3:
        return place.strides[0], place.strides[1]
    return shape[1] * shape[2], shape[2]


__all__ = ["Axis", "axes_of"]
