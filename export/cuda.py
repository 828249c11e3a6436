"""The CUDA module of a bundle: compiled from ``model.onnx``, with what checks it on the device."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

import numpy as np

from compress.errors import BadInput
from compress.export.compiled import FLOAT_TOLERANCE, in_float, outputs_of
from compress.export.cuda_module import CudaModule, build
from compress.export.kernels import cuda
from compress.export.library.interface import ends
from compress.export.lowering import lower
from compress.export.made import Made
from compress.export.manifest import GOLDEN, MODEL
from compress.integer.program import Program
from compress.serial import to_json, write_atomic, write_json
from compress.types import Target

FOLDER, ABOUT, REFERENCE, RUNNER = "cuda", "network.json", "reference.npy", "run_cuda.py"


@dataclass(frozen=True, eq=False)
class CudaCompiled:
    """A module and the program that it computes; as :class:`compress.export.compiled.Compiled`, without a library."""

    program: Program
    module: CudaModule
    library: None = None

    @property
    def in_float(self) -> bool:
        """Whether some of its arithmetic is in float32."""
        return in_float(self.program)


def make(folder: Path, target: Target) -> Made:
    """The module as the artifact of TVM; see :func:`write`."""
    module = write(folder, target)
    size = module.path.stat().st_size
    return Made(module.path, size, None, module.program.notes, CudaCompiled(module.program, module))


def write(folder: Path, target: Target) -> CudaModule:
    """The module for a target's GPU below ``folder/cuda``, and ``run_cuda.py`` beside ``model.onnx``.

    Args:
        folder: holds ``model.onnx`` and the golden inputs.
        target: with a ``gpu``.

    Raises:
        BadInput: an operator can't be lowered or has no kernel, or there is no compiler; named.
    """
    program = lower(folder / MODEL)
    if len(program.inputs) != 1 or len(program.outputs) != 1:
        raise BadInput("a CUDA module takes one input and gives one output")
    made = build(program, target, folder / FOLDER)
    program = made.program
    inputs, outputs = ends(cuda.assemble(program, made.gpu), program.file_shapes)
    golden = np.load(folder / GOLDEN, allow_pickle=False)["inputs"]
    wanted = np.stack([outputs_of(program, {program.inputs[0]: x})[program.outputs[0]] for x in golden])
    content = io.BytesIO()
    np.save(content, wanted, allow_pickle=False)
    write_atomic(folder / FOLDER / REFERENCE, content.getvalue())
    about = {
        "gpu": made.gpu,
        "triple": target.triple,
        "cpu": target.cpu,
        "input": to_json(inputs[0]),
        "output": to_json(outputs[0]),
        "tolerance": FLOAT_TOLERANCE if in_float(program) else 0.0,
        "tvm": metadata.version("apache-tvm"),
    }
    write_json(folder / FOLDER / ABOUT, about)
    script = resources.files("compress.export").joinpath("templates", RUNNER).read_text(encoding="utf-8")
    write_atomic(folder / RUNNER, script.encode())
    return made


__all__ = ["FOLDER", "RUNNER", "CudaCompiled", "make", "write"]
