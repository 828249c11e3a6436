"""The artifact for TVM: a library without a runtime, or a CUDA module for TVM's, compiled for the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compress.errors import BadInput
from compress.export.made import Made
from compress.results import Unavailable
from compress.types import State, Target

RUNTIME = "tvm"
FOLDER = "library"
"""Of the compiled library, in the bundle."""


def make(state: State, folder: Path, target: Target) -> Made | Unavailable:
    """The library of ``model.onnx`` in ``folder``, for a GPU its CUDA module; or why there is none."""
    from compress.export.compiled import compile_file
    from compress.export.kernels import backends
    from compress.export.manifest import GOLDEN, MODEL

    if target.gpu is not None:
        from compress.export import cuda

        try:
            return cuda.make(folder, target)
        except BadInput as error:
            return Unavailable(RUNTIME, f"no CUDA module: {error.sentence}")
    isa = backends.isa_of(target)
    if isa is None:
        what = "this machine's processor" if target.host else f"{target.title}"
        return Unavailable(RUNTIME, f"there are no kernels for {what}; model.onnx holds the integers")
    golden = folder / GOLDEN
    inputs = np.load(golden, allow_pickle=False)["inputs"] if golden.is_file() else None
    try:
        compiled = compile_file(folder / MODEL, isa, folder / FOLDER, inputs)
    except BadInput as error:
        return Unavailable(RUNTIME, error.sentence)
    built = compiled.library
    linked = built.linked_path
    main = linked if linked is not None else built.folder / "lib" / f"{built.name}_kernels.o"
    return Made(main, built.flash_bytes, built.ram_bytes, compiled.program.notes, compiled)
