"""The bundle: everything that a device needs to run a candidate, and to check that it runs it right.

``manifest.json`` names every file with its hash, the network's input and output, the plan and the
accuracy that was measured; ``golden.npz`` holds inputs and the outputs that belong to them; ``run.py``
needs nothing but numpy and onnxruntime. A bundle holds no timing and no date: the same job gives the
same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.errors import CheckFailed
from compress.results import Accuracy
from compress.serial import from_json, write_atomic, write_json
from compress.types import Plan

SCHEMA = 1
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
GOLDEN_INPUTS = 8


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One end of the network: name, shape (batch first, 1), dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the bundle by its hash."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds. ``mean`` and ``std`` are those of ``(x / 255 - mean) / std``; ``tolerance`` is
    how far, relative to the largest golden output, a device's outputs may lie from the golden ones."""

    model: str
    target: str
    plan: Plan
    plan_digest: str
    input: TensorSpec
    output: TensorSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    task: str
    dataset: str
    dataset_sha256: str
    accuracy: Accuracy | None
    tolerance: float
    compress_version: str
    runtimes: Mapping[str, str] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    files: tuple[FileEntry, ...] = ()
    schema: int = SCHEMA


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    readme = environment.from_string(_template("README.md.j2")).render(manifest=manifest, accuracy=manifest.accuracy)
    write_atomic(folder / "README.md", readme.encode())
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    shipped = [name for name in names if name not in (MANIFEST, "candidate.json") and not name.startswith(".")]
    entries = tuple(FileEntry(name, sha256_of(folder / name), (folder / name).stat().st_size) for name in shipped)
    complete = Manifest(**{**_fields(manifest), "files": entries})
    write_json(folder / MANIFEST, complete)
    return complete


def _fields(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}


def _template(name: str) -> str:
    return resources.files("compress.export").joinpath("templates", name).read_text(encoding="utf-8")


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of a bundle.

    Raises:
        CheckFailed: it is missing, damaged or of another version.
    """
    path = bundle / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("schema") != SCHEMA:
            raise CheckFailed(
                str(bundle), [f"{MANIFEST} has schema {document.get('schema')!r}, this version reads {SCHEMA}"]
            )
        return from_json(Manifest, document)
    except FileNotFoundError:
        raise CheckFailed(str(bundle), [f"there is no {MANIFEST}: give the folder of a bundle"]) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckFailed(str(bundle), [f"{MANIFEST} can't be read ({type(error).__name__}: {error})"]) from error


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
        elif sha256_of(path) != entry.sha256:
            wrong.append(f"{entry.path} has been changed (its SHA-256 differs from the manifest's)")
    return wrong + [f"the manifest doesn't list {name}" for name in (GOLDEN, "model.onnx") if name not in listed]


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


__all__ = [
    "GOLDEN",
    "MANIFEST",
    "FileEntry",
    "Manifest",
    "TensorSpec",
    "copy",
    "damage",
    "finish",
    "read_manifest",
    "sha256_of",
    "write_golden",
]
