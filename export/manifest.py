"""The manifest of a bundle: what it says, and how it is read when the bundle may be damaged or made to harm."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from compress.errors import CheckFailed
from compress.results import Accuracy
from compress.serial import from_json, mismatch
from compress.types import Plan

SCHEMA = 1
MANIFEST, GOLDEN, MODEL = "manifest.json", "golden.npz", "model.onnx"
"""The files that every bundle holds."""
LARGEST = 64 * 2**20
"""Bytes; a manifest above this was made to exhaust memory."""


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
    how far, relative to the largest golden output, a device's outputs may lie from the golden ones; ``patterns`` is the
    folder of what the optics show, None for a network that takes images."""

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
    patterns: str | None = None


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(bundle: Path) -> Manifest:
    """The manifest, every value of it of the right type, every path inside the bundle.

    Raises:
        CheckFailed: it is missing, damaged or of another version.
    """
    path = bundle / MANIFEST
    if not path.is_file():
        inner = bundle / "bundle"
        hint = f"give {inner}" if (inner / MANIFEST).is_file() else "give the folder of a bundle"
        raise CheckFailed(str(bundle), [f"there is no {MANIFEST}: {hint}"])
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.stat().st_size} bytes are too many")
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            schema = document.get("schema") if isinstance(document, dict) else None
            raise ValueError(f"schema {schema!r}, this version reads {SCHEMA}")
        wrong = mismatch(Manifest, document)
        if wrong is not None:
            raise ValueError(wrong)
        found = from_json(Manifest, document)
        _sensible(found)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise CheckFailed(str(bundle), [f"{MANIFEST} is damaged: {said}"]) from None
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _sensible(found: Manifest) -> None:
    for entry in found.files:
        path = PurePosixPath(entry.path)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in entry.path:
            raise ValueError(f"the path {entry.path!r} leaves the bundle")
    if not found.input.shape or any(size < 1 for size in (*found.input.shape, *found.output.shape)):
        raise ValueError("input.shape and output.shape must hold numbers above 0")
    if not 0 <= found.tolerance < 1:
        raise ValueError(f"tolerance {found.tolerance!r} must lie in [0, 1)")
    channels = found.input.shape[1] if len(found.input.shape) > 1 else 1
    if not len(found.mean) == len(found.std) == channels or any(s <= 0 for s in found.std):
        raise ValueError(f"mean and std must hold {channels} numbers each, std above 0")


__all__ = ["GOLDEN", "MANIFEST", "MODEL", "SCHEMA", "FileEntry", "Manifest", "TensorSpec", "read_manifest", "sha256"]
