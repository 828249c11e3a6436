"""Frozen dataclasses to JSON values and back, exactly: ``from_json(T, to_json(value)) == value``."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A JSON value (dict, list, str, number, bool, None) of a dataclass, mapping, sequence or scalar."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    return value


def from_json(kind: type[T], value: Any) -> T:
    """The dataclass (or annotated container) that :func:`to_json` made ``value`` from.

    Raises:
        TypeError: a required field is missing or an unknown one is there.
    """
    return typing.cast(T, _decode(kind, value))


def _decode(kind: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _decode(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return tuple(_decode(kind_of, item) for kind_of, item in zip(kinds, value, strict=True))
    if origin is list:
        return [_decode(arguments[0], item) for item in value]
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return {key: _decode(arguments[1], item) for key, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        fields = {field.name for field in dataclasses.fields(kind)}
        unknown = sorted(set(value) - fields)
        if unknown:
            raise TypeError(f"{kind.__name__} has no field {unknown[0]!r}")
        return kind(**{name: _decode(hints[name], item) for name, item in value.items()})
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def mismatch(kind: Any, value: Any, where: str = "") -> str | None:
    """What in a JSON value doesn't fit the annotated type ``kind``, with the path to it; None if all fits.

    :func:`from_json` trusts its values; what comes from outside is looked at here first.

    Args:
        kind: a dataclass, a scalar type, or tuples, lists, mappings, optionals and literals of them.
        value: what the JSON parser made.
        where: the path to ``value``, ``""`` for the document.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return None if value in arguments else _expected(where, f"one of {', '.join(map(str, arguments))}", value)
    if type(None) in arguments:
        inner = next(a for a in arguments if a is not type(None))
        return None if value is None else mismatch(inner, value, where)
    if origin in (tuple, list):
        if not isinstance(value, list):
            return _expected(where, "a list", value)
        kinds = arguments if origin is tuple and arguments[-1] is not Ellipsis else arguments[:1] * len(value)
        if len(kinds) != len(value):
            return _expected(where, f"a list of {len(kinds)}", value)
        return _first(mismatch(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))
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


def _first(found: Iterable[str | None]) -> str | None:
    return next((each for each in found if each is not None), None)


def _expected(where: str, what: str, value: Any) -> str:
    text = repr(value)
    return f"{where or 'the document'} must be {what}, not {text if len(text) <= 40 else text[:37] + '...'}"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` (through :func:`to_json`) to ``path`` at once: a reader sees the old file or the
    whole new one, also when the process is killed or the disk is full."""
    write_atomic(path, (json.dumps(to_json(value), indent=2, allow_nan=False) + "\n").encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Write bytes to a temporary file beside ``path`` and move it there."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
