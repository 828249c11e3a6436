"""The bundle: everything that a device needs to run a candidate, and to check that it runs it right.

``manifest.json`` names every file with its hash, the network's input and output, the plan and the
accuracy that was measured; ``golden.npz`` holds inputs and the outputs that belong to them; ``run.py``
needs nothing but numpy and onnxruntime. A bundle holds no timing and no date: the same job gives the
same bytes.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from compress.errors import CheckFailed
from compress.export.manifest import GOLDEN, MANIFEST, MODEL, FileEntry, Manifest, read_manifest, sha256
from compress.serial import write_atomic, write_json

GOLDEN_INPUTS = 8


def write_golden(path: Path, inputs: npt.NDArray[np.float32], outputs: npt.NDArray[np.float32]) -> None:
    """Inputs and outputs (N, ...) as an .npz whose bytes depend on nothing else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in (("inputs", inputs), ("outputs", outputs)):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), content.getvalue())
    write_atomic(path, buffer.getvalue())


def finish(folder: Path, manifest: Manifest) -> Manifest:
    """Add ``run.py``, ``README.md`` and the manifest to a folder that holds the model and golden data."""
    import jinja2

    write_atomic(folder / "run.py", _template("run.py").encode())
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )  # Markdown, not HTML
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    readme = environment.from_string(_template("README.md.j2")).render(
        manifest=manifest, accuracy=manifest.accuracy, held=held
    )
    write_atomic(folder / "README.md", readme.encode())
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    shipped = [name for name in names if name not in (MANIFEST, "candidate.json") and not name.startswith(".")]
    entries = tuple(FileEntry(name, sha256(folder / name), (folder / name).stat().st_size) for name in shipped)
    complete = replace(manifest, files=entries)
    write_json(folder / MANIFEST, complete)
    return complete


def _template(name: str) -> str:
    return resources.files("compress.export").joinpath("templates", name).read_text(encoding="utf-8")


def damage(bundle: Path, manifest: Manifest) -> list[str]:
    """What is wrong with a bundle's files: missing, altered, outside the bundle, or not in the manifest."""
    wrong = []
    root = bundle.resolve()
    listed = {entry.path for entry in manifest.files}
    for entry in manifest.files:
        path = (bundle / entry.path).resolve()
        if not path.is_relative_to(root):
            wrong.append(f"{entry.path} lies outside the bundle")
        elif not path.is_file():
            wrong.append(f"{entry.path} is missing")
        elif sha256(path) != entry.sha256:
            wrong.append(f"{entry.path} has been changed (its SHA-256 differs from the manifest's)")
    return wrong + [f"the manifest doesn't list {name}" for name in (GOLDEN, MODEL) if name not in listed]


def copy(source: Path, destination: Path) -> None:
    """Copy a bundle's files, and only those, to ``destination``, which appears whole or not at all.

    Raises:
        CheckFailed: the source is damaged.
    """
    manifest = read_manifest(source)
    wrong = damage(source, manifest)
    if wrong:
        raise CheckFailed(str(source), wrong)
    temporary = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name in [*(entry.path for entry in manifest.files), MANIFEST]:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, temporary / name)
        if destination.exists():
            shutil.rmtree(destination)
        temporary.rename(destination)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


__all__ = ["GOLDEN_INPUTS", "copy", "damage", "finish", "sha256", "write_golden"]
