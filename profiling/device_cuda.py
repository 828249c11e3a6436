"""A bundle's CUDA module for its device, compiled again from the bundle's ONNX file: no program of a bundle is run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress import targets
from compress.errors import BadInput, CheckFailed
from compress.export import cuda, cuda_module
from compress.export.manifest import GOLDEN, MODEL
from compress.profiling.ssh import Sent

GPU_TARGET = "gpu"
"""Whose numbers a target is made of where only the GPU and the host count."""
HOW = "built again from model.onnx, for the bundle's GPU and processor"


def there(bundle: Path) -> bool:
    """Whether the bundle holds a CUDA module."""
    return (bundle / cuda.FOLDER / cuda.ABOUT).is_file()


def missing(bundle: Path, python: str, probe: Mapping[str, Any]) -> str | None:
    """What the device or this machine lacks for the module, in a sentence that says what to do; None if nothing.

    Args:
        bundle: one that holds a module.
        python: the device's interpreter.
        probe: what the device said of itself.
    """
    wanted, found = _about(bundle)["tvm"], probe["packages"].get("apache-tvm")
    if found is None or probe["packages"].get("numpy") is None:
        return f"TVM's runtime isn't installed there: {python} -m pip install numpy apache-tvm=={wanted}"
    if found != wanted:
        return (
            f"the module is for TVM {wanted}, there is {found}: {python} -m pip install apache-tvm=={wanted}, "
            "or make the bundle again with the other"
        )
    try:
        cuda_module.find_compiler()
    except BadInput as error:
        return f"its module is compiled again here, and {error.sentence}"
    return None


def files(bundle: Path, folder: Path) -> list[Sent]:
    """The module with what checks and times it, made in ``folder``, which exists.

    Raises:
        BadInput: it can't be compiled here; why.
        CheckFailed: its description is damaged.
    """
    about = _about(bundle)
    target = replace(targets.load(GPU_TARGET), gpu=about["gpu"], triple=about["triple"], cpu=about["cpu"])
    for name in (MODEL, GOLDEN):
        shutil.copyfile(bundle / name, folder / name)
    cuda.write(folder, target)
    names = [cuda.RUNNER, GOLDEN, *(f"{cuda.FOLDER}/{name}" for name in (cuda_module.FILE, cuda.ABOUT, cuda.REFERENCE))]
    return [Sent(name, folder / name) for name in names]


def _about(bundle: Path) -> dict[str, Any]:
    path = bundle / cuda.FOLDER / cuda.ABOUT
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(found[name], str) for name in ("gpu", "tvm")):
            raise ValueError("gpu and tvm must be names")
        if not all(found[name] is None or isinstance(found[name], str) for name in ("triple", "cpu")):
            raise ValueError("triple and cpu must be names or null")
    except (KeyError, TypeError, ValueError) as error:
        wrong = f"{cuda.FOLDER}/{cuda.ABOUT} is damaged or of an earlier version: {error}"
        raise CheckFailed(str(bundle), [wrong]) from None
    return dict(found)


__all__ = ["HOW", "files", "missing", "there"]
