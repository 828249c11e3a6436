"""Average pooling of windows that lie inside the image: vectors over channels, a window's pixels one after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from compress.export.kernels.building import function, pointer
from compress.export.kernels.code import Placed
from compress.export.kernels.dot import Dot
from compress.export.kernels.dot_convolution import placed_image, span
from compress.export.kernels.dot_requantize import Epilogue, Sum
from compress.export.kernels.dot_strategies import strategies
from compress.export.kernels.emitted import Emitted
from compress.export.kernels.isa import Isa
from compress.export.kernels.vectors import assign, cast, let, load, variable
from compress.integer.program import Op, Pool

VECTORS = 4
"""Channel vectors side by side."""


def emit(op: Op, placed: Mapping[str, Placed], isa: Isa, symbol: str) -> Emitted | None:
    """An average without padding and with one multiplier."""
    if not isinstance(op, Pool) or op.kind != "average" or any(op.padding) or op.requantize is None:
        return None
    source, target = placed[op.inputs[0]], placed[op.output]
    if source.tensor.dtype != ("int8" if isa.signed else "uint8") or op.requantize.multiplier.size != 1:
        return None
    dot = next(iter(strategies(isa)), None)
    if dot is None:
        return None
    widths = [w for w in (16, 8, 4) if w <= dot.lanes]
    channels = source.tensor.shape[-1]
    lanes = next((w for w in widths if channels % w == 0), None)
    if lanes is None:
        return None
    count = next(n for n in range(VECTORS, 0, -1) if channels // lanes % n == 0)
    return _emitted(op, replace(dot, lanes=lanes), source, target, count, symbol)


def _emitted(op: Pool, dot: Dot, source: Placed, target: Placed, count: int, symbol: str) -> Emitted:
    """``count`` vectors of ``dot.lanes`` channels at a time."""
    assert op.requantize is not None
    (height, width, channels), (out_pitch, out_pixel, _) = placed_image(target)
    _, (pitch, pixel, _) = placed_image(source)
    lanes = dot.lanes
    bias = np.full(channels, -source.tensor.zero_point * op.kernel[0] * op.kernel[1], np.int32)
    epilogue = Epilogue(dot, op.requantize, bias)
    constants = epilogue.constants(np.arange(channels).reshape(-1, lanes))
    names = ("bias", "multiplier", "rounding", "shift")
    pointers = [pointer("x", source), pointer("y", target)]
    pointers += [(name, str(c.dtype), c.size) for name, c in zip(names, constants, strict=True)]
    with function(symbol, pointers, height if height > 1 else None) as body:
        x, y, *arrays = body.buffers
        rows = (0, height) if body.first is None else (body.first, body.last)
        with span(*rows) as row, span(0, width) as column, span(0, channels // lanes // count) as block:
            vectors = [block * count + v for v in range(count)]
            sums = [variable("int32", lanes) for _ in vectors]
            for v in range(count):
                assign(sums[v], load(arrays[0], vectors[v] * lanes, lanes))
            corner = row * (op.strides[0] * pitch) + column * (op.strides[1] * pixel) + source.origin
            with span(0, op.kernel[0]) as i, span(0, op.kernel[1]) as j:
                at = corner + i * pitch + j * pixel
                for v in range(count):
                    assign(sums[v], sums[v][0] + cast(let(load(x, at + vectors[v] * lanes, lanes)), "int32"))
            base = row * out_pitch + column * out_pixel + target.origin + block * (count * lanes)
            done = [Sum(sums[v][0], vectors[v], v * lanes, lanes) for v in range(count)]
            epilogue.store(done, arrays, y, base, None, 0)
    return Emitted(body.done, tuple(constants))


__all__ = ["emit"]
