"""The artifact for TVM: a library compiled for the device."""

from __future__ import annotations

from pathlib import Path

from compress.results import Unavailable
from compress.types import State, Target

RUNTIME = "tvm"


def make(state: State, folder: Path, target: Target) -> Path | Unavailable:
    """No library yet: TVM reads quantized ONNX as float arithmetic, which would ship a slower network
    than the file says, so nothing is compiled until the integer lowering is there."""
    return Unavailable(
        RUNTIME,
        "this version has no integer lowering yet, "
        "and TVM alone would compile the quantized layers as float arithmetic; "
        "model.onnx holds the integers",
    )
