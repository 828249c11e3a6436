"""The artifact for ONNX Runtime: the interchange file itself."""

from __future__ import annotations

from pathlib import Path

from compress.results import Unavailable
from compress.types import State, Target

RUNTIME = "onnxruntime"
FILE = "model.onnx"


def make(state: State, folder: Path, target: Target) -> Path | Unavailable:
    """The ONNX file in ``folder``, which ONNX Runtime runs as it is."""
    return folder / FILE
