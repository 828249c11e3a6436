"""A bundle's compiled library, built again from its ONNX file: nothing that a bundle holds is run on the host.

The same versions build the same kernels to the byte, so what is run is what ships; where they differ, it is said.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import BadInput
from compress.export.manifest import MODEL, sha256

if TYPE_CHECKING:
    from compress.export.compiled import Compiled

FOLDER = "library"
SAME, OTHER = "the bundle's, byte for byte", "built again with other versions than the bundle's"


def rebuild(bundle: Path, folder: Path) -> tuple[Compiled, str]:
    """Compile the bundle's ONNX file for what its library is for, into ``folder``; and whether it is the same.

    Raises:
        BadInput: the bundle holds no library.
        CheckFailed: its description is damaged.
    """
    from compress.export.compiled import compile_file
    from compress.export.library import building

    if not (bundle / FOLDER).is_dir():
        raise BadInput(f"bundle {bundle} holds no compiled library; its manifest says why, under 'unavailable'")
    shipped = building.load(bundle / FOLDER)
    compiled = compile_file(bundle / MODEL, shipped.isa, folder, name=shipped.name)
    kernels = f"lib/{shipped.name}_kernels.o"
    same = sha256(bundle / FOLDER / kernels) == sha256(folder / kernels)
    return compiled, SAME if same else OTHER


__all__ = ["FOLDER", "OTHER", "SAME", "rebuild"]
