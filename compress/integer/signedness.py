"""A program with all its 8-bit tensors signed, or all unsigned, as a device's dot product wants them.

Adding 128 to an integer and to its zero point changes nothing that it stands for, so every result stays the same
but for that shift; see :func:`compress.integer.reference.run`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from compress.integer import program as p

OTHER: dict[str, p.DType] = {"uint8": "int8", "int8": "uint8"}


def with_signedness(program: p.Program, signed: bool) -> p.Program:
    """``program`` with every 8-bit tensor int8 (``signed``) or uint8. Its inputs and outputs change type too."""
    kept = "int8" if signed else "uint8"
    offset = -128 if signed else 128
    changed = {name for name, tensor in program.tensors.items() if tensor.dtype in OTHER and tensor.dtype != kept}
    tensors = {
        name: replace(tensor, dtype=OTHER[tensor.dtype], zero_point=tensor.zero_point + offset)
        if name in changed
        else tensor
        for name, tensor in program.tensors.items()
    }
    ops = tuple(_shifted(op, offset) if op.output in changed else op for op in program.ops)
    return replace(program, tensors=tensors, ops=ops)


def _shifted(op: p.Op, offset: int) -> p.Op:
    """The operator with its result moved by ``offset``. Tables are by distance from the input's lowest integer, so
    inputs need no change."""
    changes: dict[str, Any] = {}
    requantize = getattr(op, "requantize", None)
    if isinstance(requantize, p.Requantize):
        changes["requantize"] = replace(
            requantize,
            zero_point=requantize.zero_point + offset,
            low=requantize.low + offset,
            high=requantize.high + offset,
        )
    if isinstance(op, (p.Add, p.Softmax)):
        changes["zero_point"] = op.zero_point + offset
    if isinstance(op, (p.Add, p.Softmax, p.Quantize)):
        changes |= {"low": op.low + offset, "high": op.high + offset}
    if isinstance(op, p.Copy) and op.fill is not None:
        changes["fill"] = op.fill + offset
    if isinstance(op, p.Lookup):
        moved = op.table.astype(np.int64) + offset
        changes["table"] = moved.astype(np.int8 if offset < 0 else np.uint8)
    if isinstance(op, p.Constant):
        changes["value"] = (op.value.astype(np.int64) + offset).astype(np.int8 if offset < 0 else np.uint8)
    return replace(op, **changes) if changes else op


__all__ = ["with_signedness"]
