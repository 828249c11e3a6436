"""Layouts that spare convolutions the test for the image's border."""

from __future__ import annotations

from collections.abc import Mapping

from compress.export.kernels.code import Layout
from compress.export.kernels.isa import Isa
from compress.integer.program import Convolution, FloatConvolution, Program


def needed(
    op: Convolution | FloatConvolution, image: tuple[int, ...], out: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """Rows above, columns left, rows below, columns right of an image (H, W, C) that the windows reach."""
    found = []
    for k in range(2):
        before = op.padding[k]
        span = (op.weight.shape[1 + k] - 1) * op.dilations[k]
        behind = (out[k] - 1) * op.strides[k] + span - before - (image[k] - 1)
        found.append((before, max(behind, 0)))
    (top, bottom), (left, right) = found
    return top, left, bottom, right


def halos(program: Program, isa: Isa) -> Mapping[str, Layout]:
    """A halo for every image that a convolution pads, as wide as its widest consumer asks for.

    None on bare metal, where a border costs more memory than it saves time.
    """
    if isa.triple.split("-")[-1] in ("elf", "eabi", "eabihf"):
        return {}
    wide: dict[str, tuple[int, int, int, int]] = {}
    for op in program.ops:
        if not isinstance(op, (Convolution, FloatConvolution)):
            continue
        image, out = program.tensors[op.inputs[0]].shape, program.tensors[op.output].shape
        if len(image) != 3 or len(out) != 3:
            continue
        here, known = needed(op, image, out), wide.get(op.inputs[0], (0, 0, 0, 0))
        a, b, c, d = (max(x, y) for x, y in zip(here, known, strict=True))
        wide[op.inputs[0]] = a, b, c, d
    return {name: Layout(program.tensors[name].shape[2], halo) for name, halo in wide.items() if any(halo)}


__all__ = ["halos", "needed"]
