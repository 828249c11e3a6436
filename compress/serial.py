"""Frozen dataclasses to JSON values and back, exactly: ``from_json(T, to_json(value)) == value``."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import types
import typing
from collections.abc import Mapping
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
