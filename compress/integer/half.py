"""A program whose convolutions in float take their operands as float16, where a device's tensor cores do.

Sums stay in float32, and so does everything else: no tensor is stored in float16. The largest errors are those of
rounding an operand, 2^-11 of it. :func:`spelled_out` says the same in operators that every back end has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from compress.integer import program as p
from compress.integer.reference import rounded


def with_half(program: p.Program, fits: Callable[[p.FloatConvolution, p.Program], bool]) -> p.Program:
    """``program`` with ``half`` set at its float convolutions that ``fits`` says yes to."""
    ops = tuple(
        replace(op, half=True) if isinstance(op, p.FloatConvolution) and fits(op, program) else op for op in program.ops
    )
    return replace(program, ops=ops)


def spelled_out(program: p.Program) -> p.Program:
    """``program`` with what ``half`` stands for as operators of its own, and rounded weights: the same results."""
    tensors, ops = dict(program.tensors), list[p.Op]()
    for op in program.ops:
        if not (isinstance(op, p.FloatConvolution) and op.half):
            ops.append(op)
            continue
        source = op.inputs[0]
        name = f"{source}.half"
        if name not in tensors:
            tensors[name] = replace(tensors[source], name=name)
            ops.append(p.FloatElementwise(name, (source,), name, "half"))
        weight = np.asarray(rounded(op.weight), np.float32)
        ops.append(replace(op, inputs=(name,), weight=weight, half=False))
    return replace(program, tensors=tensors, ops=tuple(ops))


__all__ = ["spelled_out", "with_half"]
