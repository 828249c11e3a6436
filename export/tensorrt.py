"""The artifact for TensorRT: an engine, which only the device that it is for can build."""

from __future__ import annotations

from pathlib import Path

from compress.export.made import Made
from compress.results import Unavailable
from compress.types import State, Target

RUNTIME = "tensorrt"


def make(state: State, folder: Path, target: Target) -> Made | Unavailable:
    """No engine yet: this version writes the file that TensorRT reads, and doesn't build from it."""
    return Unavailable(
        RUNTIME,
        f"an engine can only be built on the {target.title} itself: copy the bundle there and run "
        "trtexec --onnx=model.onnx --stronglyTyped --saveEngine=model.engine (not verified on a board yet)",
    )
