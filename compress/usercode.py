"""Running ``FILE.py:factory`` of the user, with every failure told in one line."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from compress.errors import BadInput, CompressError, UnknownName


@dataclass(frozen=True)
class UserCode:
    """A name in a user's file.

    Attributes:
        spec: as it was given, ``FILE.py:NAME``.
        file: the file.
        module: the file, run.
        value: what the name stands for.
    """

    spec: str
    file: Path
    module: ModuleType
    value: Any


def is_user_code(spec: str) -> bool:
    """True for ``FILE.py:NAME`` and for ``FILE.py``, which lacks its name."""
    return spec.endswith(".py") or ".py:" in spec


def load_user_code(spec: str, kind: str) -> UserCode:
    """Run the file and look the name up. The file's folder is on ``sys.path`` from then on.

    Args:
        spec: ``FILE.py:NAME``.
        kind: ``"model"`` or ``"data"``, for messages.

    Raises:
        BadInput: the file isn't there or raises.
        UnknownName: it has no such name.
    """
    path, separator, name = spec.rpartition(":")
    if not separator or path.endswith(":"):
        raise BadInput(f"{kind} {spec}: no function is named; write {spec.rstrip(':')}:FUNCTION")
    file = Path(path).expanduser()
    if not file.is_file():
        raise BadInput(f"{kind} {spec}: there is no file {path}; give the path of a Python file")
    resolved = file.resolve()
    # One name a file, so that running it twice gives the same classes and pickle finds them.
    module_name = f"_compress_user_{hashlib.sha256(str(resolved).encode()).hexdigest()[:12]}"
    if module_name not in sys.modules:
        _run(module_name, resolved, f"{kind} {spec}")
    module = sys.modules[module_name]
    value = module
    for part in name.split("."):
        if not hasattr(value, part):
            public = [n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n))]
            raise UnknownName(f"function in {path}", name, public)
        value = getattr(value, part)
    return UserCode(spec, resolved, module, value)


def _run(module_name: str, file: Path, what: str) -> None:
    specification = importlib.util.spec_from_file_location(module_name, file)
    if specification is None or specification.loader is None:
        raise BadInput(f"{what}: {file} can't be imported; give a file that ends in .py")
    module = importlib.util.module_from_spec(specification)
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    sys.modules[module_name] = module
    try:
        with guarded(what, file):
            specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise


@contextmanager
def guarded(what: str, file: Path | None = None) -> Iterator[None]:
    """Turn whatever the user's code raises into one line.

    Args:
        what: the option and its value, the beginning of the line.
        file: the user's file, whose line is told.

    Raises:
        BadInput: something was raised inside, ``SystemExit`` included; our own errors pass.
    """
    try:
        yield
    except (CompressError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        where = _line(error, file)
        said = " ".join(str(error).split())[:300]
        raise BadInput(
            f"{what}: {where}{type(error).__name__}{': ' + said if said else ''}; correct the file and run again"
        ) from error


def _line(error: BaseException, file: Path | None) -> str:
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{Path(error.filename).name} line {error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    if file is not None:
        for frame in reversed(frames):
            if Path(frame.filename) == file:
                return f"{file.name} line {frame.lineno}: "
    return ""


def call(code: UserCode, kind: str, **arguments: Any) -> Any:
    """What the name gives: the result of calling it, or itself where it can't be called."""
    function: Callable[..., Any] = code.value
    if not callable(function):
        return function
    with guarded(f"{kind} {code.spec}", code.file):
        return function(**arguments)
