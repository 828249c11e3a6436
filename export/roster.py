"""The runtimes that artifacts are made for: one file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from compress.export import onnxruntime, tensorrt, tvm
from compress.export.made import Made
from compress.results import Unavailable
from compress.types import State, Target

Exporter = Callable[[State, Path, Target], "Made | Unavailable"]

EXPORTERS: Mapping[str, Exporter] = {
    onnxruntime.RUNTIME: onnxruntime.make,
    tvm.RUNTIME: tvm.make,
    tensorrt.RUNTIME: tensorrt.make,
}
"""Runtime -> what makes its artifact in a folder that already holds ``model.onnx``."""
