"""The artifact for ONNX Runtime: the interchange file itself."""

from __future__ import annotations

from pathlib import Path

from compress.export.made import Made
from compress.results import Unavailable
from compress.types import Signedness, State, Target

RUNTIME = "onnxruntime"
FILE = "model.onnx"


def make(state: State, folder: Path, target: Target) -> Made | Unavailable:
    """The ONNX file in ``folder``, which ONNX Runtime runs as it is."""
    path = folder / FILE
    return Made(path, path.stat().st_size)


def weight_storage(target: Target) -> Signedness:
    """How 8-bit weights of files for a target are stored: unsigned where signed ones saturate, on x86 without VNNI.

    See :func:`compress.export.onnx_forms.unsigned_weights`.
    """
    from compress.export.kernels import backends

    isa = backends.isa_of(target)
    return "unsigned" if isa is not None and isa.dot == "avx2" else "signed"
