"""What a finished program can do without: copies that only pad in front of a convolution, views of views, dead code."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from compress.export.lowering.builder import strides_of
from compress.integer import program as p


def tidied(program: p.Program) -> p.Program:
    """The same network with fewer operators."""
    return _live(_padding(_views(program)))


def _views(program: p.Program) -> p.Program:
    """Views of views read the first tensor; what has the shape already is read itself."""
    origin: dict[str, str] = {}
    ops: list[p.Op] = []
    for op in program.ops:
        inputs = tuple(origin.get(name, name) if isinstance(op, p.View) else name for name in op.inputs)
        op = replace(op, inputs=inputs)
        if isinstance(op, p.View):
            origin[op.output] = inputs[0]
        ops.append(op)
    return replace(program, ops=tuple(ops))


def _padding(program: p.Program) -> p.Program:
    """A copy that surrounds an image with zeros, read by a convolution alone, becomes its padding."""
    uses = Counter(name for op in program.ops for name in op.inputs)
    made = {op.output: op for op in program.ops}
    ops: list[p.Op] = []
    for op in program.ops:
        source = made.get(op.inputs[0]) if op.inputs else None
        if isinstance(op, (p.Convolution, p.FloatConvolution)) and isinstance(source, p.Copy):
            border = _border(program, source)
            if border is not None and uses[source.output] == 1 and source.output not in program.outputs:
                padding = tuple(a + b for a, b in zip(op.padding, border, strict=True))
                op = replace(op, inputs=source.inputs, padding=padding)  # type: ignore[arg-type]  # four of them
        ops.append(op)
    return replace(program, ops=tuple(ops))


def _border(program: p.Program, copy: p.Copy) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) of zeros that a copy puts around an image; None if it does anything else."""
    inner, outer = program.tensors[copy.inputs[0]], program.tensors[copy.output]
    if copy.fill != inner.zero_point or len(inner.shape) != 3 or len(outer.shape) != 3:
        return None
    held, out = strides_of(inner.shape), strides_of(outer.shape)
    if copy.extents != inner.shape or copy.in_strides != held or copy.out_strides != out or copy.in_offset:
        return None
    top, rest = divmod(copy.out_offset, out[0])
    left, channel = divmod(rest, out[1])
    if channel or inner.shape[2] != outer.shape[2]:
        return None
    return top, left, outer.shape[0] - inner.shape[0] - top, outer.shape[1] - inner.shape[1] - left


def _live(program: p.Program) -> p.Program:
    """Without operators that no output depends on, and their tensors."""
    needed = set(program.outputs)
    kept: list[p.Op] = []
    for op in reversed(program.ops):
        if op.output in needed:
            needed.update(op.inputs)
            kept.append(op)
    ops = tuple(reversed(kept))
    tensors = {name: tensor for name, tensor in program.tensors.items() if name in needed or name in program.inputs}
    return replace(program, ops=ops, tensors=tensors)
