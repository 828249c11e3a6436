"""A program whose ends are what the file's are: float32, in the file's order.

For devices with an operating system, whose programs hold floats: a run then does all that a run of the file does, the
rounding of the input included, and takes no conversion in another language.
"""

from __future__ import annotations

from dataclasses import replace

from compress.export.lowering.builder import strides_of
from compress.integer import program as p


def with_float_ends(program: p.Program) -> p.Program:
    """``program`` with flat float32 inputs and outputs, elements in the file's order; its ends keep their names."""
    inner = {name: f"{name}.inside" for name in (*program.inputs, *program.outputs)}
    tensors = {inner.get(name, name): replace(t, name=inner.get(name, name)) for name, t in program.tensors.items()}
    ops = [
        replace(op, inputs=tuple(inner.get(name, name) for name in op.inputs), output=inner.get(op.output, op.output))
        for op in program.ops
    ]
    before: list[p.Op] = []
    after: list[p.Op] = []
    for name in program.inputs:
        held, shape = program.tensors[name], program.file_shapes[name]
        tensors[name] = p.Tensor(name, (held.elements,), "float32")
        source = name
        if held.dtype != "float32":
            source = f"{name}.rounded"
            tensors[source] = replace(held, name=source, shape=(held.elements,))
            before.append(p.Quantize(f"{name}.round", (name,), source, *p.LIMITS[held.dtype]))
        before.append(_moved(f"{name}.arrange", source, inner[name], held.shape, shape, into=True))
    for name in program.outputs:
        held, shape = program.tensors[name], program.file_shapes[name]
        tensors[name] = replace(held, shape=(held.elements,))
        after.append(_moved(f"{name}.arrange", inner[name], name, held.shape, shape, into=False))
    return replace(program, tensors=tensors, ops=(*before, *ops, *after))


def _moved(
    name: str, source: str, target: str, shape: tuple[int, ...], file_shape: tuple[int, ...], *, into: bool
) -> p.Op:
    """Between a tensor of ``shape`` and the same values, flat, in the file's order."""
    if not (len(shape) == 3 and len(file_shape) == 3):
        return p.View(name, (source,), target)  # anything but an image lies in the file's order
    channels, height, width = file_shape
    if channels == 1 or height * width == 1:
        return p.View(name, (source,), target)
    here, there = strides_of(shape), (width, 1, height * width)
    given, taken = (there, here) if into else (here, there)
    return p.Copy(name, (source,), target, shape, given, taken)


__all__ = ["with_float_ends"]
