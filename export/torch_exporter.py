"""What ``torch.onnx`` does at every export though it needn't; each is undone where torch keeps it, and else left."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType
from typing import Any

_OPERATORS: dict[Any, Any] = {}


@contextlib.contextmanager
def brief() -> Iterator[None]:
    """``torch.onnx.export`` in less than half the time, with the same file.

    Its table of operators is read once (:func:`operators_read_once`), and a network that has nothing to take apart
    isn't traced again (:func:`decomposed_if_needed`).
    """
    with operators_read_once(), decomposed_if_needed():
        yield


@contextlib.contextmanager
def operators_read_once() -> Iterator[None]:
    """Let ``torch.onnx`` read its table of operators once a process, not at every export.

    Reading it parses the source of some 500 functions, which takes nearly as long as the rest of a small network's
    export. Each export gets a copy of the table, as it adds its own translations. Where torch keeps the table
    elsewhere, nothing changes.
    """
    original: Any = None
    with contextlib.suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry as Registry

        original = vars(Registry).get("from_torchlib")
    if not isinstance(original, classmethod):
        yield
        return

    def from_torchlib(cls: Any, *arguments: Any, **named: Any) -> Any:
        key = (arguments, *sorted(named.items()))
        if key not in _OPERATORS:
            _OPERATORS[key] = original.__func__(cls, *arguments, **named)
        table = copy.copy(_OPERATORS[key])
        table.functions = {name: list(functions) for name, functions in table.functions.items()}
        return table

    changed: Any = Registry
    changed.from_torchlib = classmethod(from_torchlib)
    try:
        yield
    finally:
        changed.from_torchlib = original


@contextlib.contextmanager
def decomposed_if_needed() -> Iterator[None]:
    """Let ``torch.onnx`` take a program as it is where each of its operators has an ONNX translation.

    It takes apart those that have none by tracing the whole program anew, which is half of an export, and does so where
    there are none too. The program is then used up: the export writes its casts into it. Where torch does this
    elsewhere, nothing changes.
    """
    passes: Any = None
    original: Callable[[Any, Any], Any] | None = None
    with contextlib.suppress(ImportError):
        from torch.onnx._internal.exporter import _fx_passes

        passes = _fx_passes
        original = getattr(passes, "decompose_with_registry", None)
    if original is None:
        yield
        return

    def decompose(program: Any, registry: Any) -> Any:
        assert original is not None
        return program if _translated(program, registry) else original(program, registry)

    passes.decompose_with_registry = decompose
    try:
        yield
    finally:
        passes.decompose_with_registry = original


def _translated(program: Any, registry: Any) -> bool:
    """Whether every operator is one that has a translation and writes into nothing."""
    import torch

    return all(
        not target._schema.is_mutable and registry.is_registered(target)
        if isinstance(target, torch._ops.OpOverload)
        else isinstance(target, BuiltinFunctionType)  # of sizes, and of what comes in several
        for target in (node.target for node in program.graph.nodes if node.op not in ("placeholder", "output"))
    )


__all__ = ["brief", "decomposed_if_needed", "operators_read_once"]
