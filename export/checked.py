"""Reading a bundle that may be damaged or made to harm: strictly, and without running anything in it."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.errors import CheckFailed
from compress.export.bundle import GOLDEN, MANIFEST, SCHEMA, Manifest
from compress.serial import from_json

MODEL = "model.onnx"
LARGEST_MANIFEST = 64 * 2**20


def manifest(bundle: Path) -> Manifest:
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
        if path.stat().st_size > LARGEST_MANIFEST:
            raise ValueError(f"{path.stat().st_size} bytes are too many")
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            schema = document.get("schema") if isinstance(document, dict) else None
            raise ValueError(f"schema {schema!r}, this version reads {SCHEMA}")
        wrong = mismatch(Manifest, document, "")
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


def mismatch(kind: Any, value: Any, where: str) -> str | None:
    """What in a JSON value doesn't fit the annotated type ``kind``, with the path to it; None if all fits.

    Args:
        kind: a dataclass, a scalar type, or tuples, mappings, optionals and literals of them.
        value: what the JSON parser made.
        where: the path to ``value``, ``""`` for the document.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return None if value in arguments else _expected(where, f"one of {', '.join(map(str, arguments))}", value)
    if type(None) in arguments:
        inner = next(a for a in arguments if a is not type(None))
        return None if value is None else mismatch(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            return _expected(where, "a list", value)
        return _first(mismatch(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            return _expected(where, "an object", value)
        return _first(mismatch(arguments[1], item, f"{where}.{key}") for key, item in value.items())
    if dataclasses.is_dataclass(kind):
        return _dataclass_mismatch(kind, value, where)
    if kind is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return None if fits else _expected(where, "a number", value)
    if kind is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else _expected(where, "an integer", value)
    if kind is Any or isinstance(value, kind):
        return None
    return _expected(where, "text" if kind is str else kind.__name__, value)


def _dataclass_mismatch(kind: Any, value: Any, where: str) -> str | None:
    if not isinstance(value, dict):
        return _expected(where, "an object", value)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            return f"{_path(where, key)} is unknown"
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in value and not optional:
            return f"{_path(where, name)} is missing"
    return _first(mismatch(hints[name], item, _path(where, name)) for name, item in value.items())


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _first(found: typing.Iterable[str | None]) -> str | None:
    return next((each for each in found if each is not None), None)


def _expected(where: str, what: str, value: Any) -> str:
    text = repr(value)
    return f"{where or 'the document'} must be {what}, not {text if len(text) <= 40 else text[:37] + '...'}"


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


def golden(bundle: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The golden inputs and outputs, float32 (N, ...).

    Raises:
        CheckFailed: the file isn't what a bundle holds; nothing is unpickled.
    """
    path = bundle / GOLDEN
    try:
        with zipfile.ZipFile(path) as archive:
            # A bundle stores them uncompressed; anything larger than the file itself was made to exhaust memory.
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed")
        with np.load(path, allow_pickle=False) as arrays:
            inputs, outputs = (np.asarray(arrays[name]) for name in ("inputs", "outputs"))
    except Exception as error:  # numpy and zipfile raise whatever the damage leads to
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckFailed(str(bundle), [f"{GOLDEN} can't be read ({said})"]) from None
    for name, array in (("inputs", inputs), ("outputs", outputs)):
        if array.dtype != np.float32 or array.ndim < 1 or len(array) == 0 or not np.isfinite(array).all():
            raise CheckFailed(str(bundle), [f"{GOLDEN}: {name} must be finite float32 numbers"])
    if len(inputs) != len(outputs):
        raise CheckFailed(str(bundle), [f"{GOLDEN} holds {len(inputs)} inputs and {len(outputs)} outputs"])
    return inputs, outputs


def self_contained(bundle: Path) -> str | None:
    """Why the bundle's ONNX file must not be loaded: it is damaged, or reads other files; None if it may be."""
    import onnx

    try:
        model = onnx.load(bundle / MODEL, load_external_data=False)
    except Exception as error:  # protobuf raises whatever the damage leads to
        return f"{MODEL} can't be read ({' '.join(str(error).split())[:160]})"
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        tensors = [*graph.initializer, *(s.values for s in graph.sparse_initializer)]
        for node in graph.node:
            for attribute in node.attribute:
                graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                tensors += [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
            return f"{MODEL} reads weights from other files"
    return None


__all__ = ["MODEL", "golden", "manifest", "mismatch", "self_contained"]
