"""The artifact for ONNX Runtime: the interchange file itself."""

from __future__ import annotations

from pathlib import Path

from compress.export.made import Made
from compress.results import Unavailable
from compress.types import State, Target

RUNTIME = "onnxruntime"
FILE = "model.onnx"


def make(state: State, folder: Path, target: Target) -> Made | Unavailable:
    """The ONNX file in ``folder``, which ONNX Runtime runs as it is."""
    path = folder / FILE
    return Made(path, path.stat().st_size)
