"""The artifact for ONNX Runtime: the interchange file itself."""

from __future__ import annotations

from pathlib import Path

from compress.export.made import Made
from compress.results import Unavailable
from compress.types import Note, State, Target

RUNTIME = "onnxruntime"
FILE = "model.onnx"
WIDE = 7
"""Weights of more bits than this saturate sums of two products in 16 bits: 2 * 255 * 64 < 2 ** 15 <= 2 * 255 * 127."""


def make(state: State, folder: Path, target: Target) -> Made | Unavailable:
    """The ONNX file in ``folder``, which ONNX Runtime runs as it is."""
    path = folder / FILE
    return Made(path, path.stat().st_size, notes=_saturating(state, target))


def _saturating(state: State, target: Target) -> tuple[Note, ...]:
    """Where x86 lacks VNNI, ONNX Runtime's fast kernel isn't exact with wide weights."""
    from compress.export.kernels import backends

    isa = backends.isa_of(target)
    if isa is None or isa.dot != "avx2" or state.quantization is None:
        return ()
    wide = sum(WIDE < grid.bits <= 8 for grid in state.quantization.weights.values())
    if not wide:
        return ()
    why = (
        f"{wide} of {len(state.quantization.weights)} layers may lose accuracy in ONNX Runtime: where x86 lacks VNNI, it "
        f"adds pairs of 8-bit products in 16 bits, and they saturate; weights of {WIDE} bits or fewer fit, and compiled "
        "libraries are exact"
    )
    return (Note(RUNTIME, "8-bit weights", why),)
