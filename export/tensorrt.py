"""What a bundle holds for TensorRT: the strongly typed file and the program that builds the engine on the device."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from compress.errors import BadInput
from compress.export.made import Made
from compress.export.manifest import MODEL
from compress.export.tensorrt_file import typed
from compress.results import Unavailable
from compress.serial import write_atomic
from compress.types import Note, State, Target

RUNTIME = "tensorrt"
FOLDER = "engine"
"""Of the typed files, in the bundle. A folder named tensorrt beside the builder would stand in the import's way."""
TYPED, TYPED_DLA = "model.onnx", "model.dla.onnx"
BUILDER = "build_engine.py"
DLA = "dla"


def make(state: State, folder: Path, target: Target) -> Made | Unavailable:
    """Write the typed file and the builder; the engine itself only the device can build, and the reason says how."""
    try:
        write(folder, DLA in target.accelerators)
    except BadInput as error:
        return Unavailable(RUNTIME, f"no typed file for TensorRT: {error.sentence}")
    where = "on a machine with that GPU" if target.triple is None else f"on the {target.title} itself"
    return Unavailable(
        RUNTIME,
        f"an engine can only be built {where}: copy the bundle there and run python {BUILDER}, or let "
        "compress profile BUNDLE --device ssh://USER@HOST do it (nobody has run it on a board yet)",
    )


def write(folder: Path, dla: bool = False) -> tuple[Note, ...]:
    """The typed form of ``model.onnx`` below ``folder/engine``, and the builder beside ``model.onnx``.

    Args:
        folder: a bundle, or one that is being made.
        dla: the file for a DLA too.

    Raises:
        BadInput: ``model.onnx`` isn't symmetric.
    """
    made = typed(folder / MODEL)
    (folder / FOLDER).mkdir(exist_ok=True)
    write_atomic(folder / FOLDER / TYPED, made.content)
    if dla:
        write_atomic(folder / FOLDER / TYPED_DLA, typed(folder / MODEL, dla=True).content)
    script = resources.files("compress.export").joinpath("templates", BUILDER).read_text(encoding="utf-8")
    write_atomic(folder / BUILDER, script.encode())
    return made.notes


__all__ = ["BUILDER", "FOLDER", "RUNTIME", "TYPED", "TYPED_DLA", "make", "write"]
