"""A program whose ends are what the file's are: called as there, and, where callers hold floats, float32 in its order.

The latter is for devices with an operating system: a run then does all that a run of the file does, the rounding of the
input included, and takes no conversion in another language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from compress.export.lowering.builder import strides_of
from compress.integer import program as p


def named(program: p.Program, outputs: Sequence[str]) -> p.Program:
    """``program`` with its outputs, in their order, called as in the file.

    A result may come to lie in a tensor behind the one that the file's name went to, such as its rearrangement; that
    one then makes way. An output that is an input as well keeps another name.
    """
    names = {old: new for old, new in zip(program.outputs, outputs, strict=True) if new not in program.inputs}
    taken = {name: _free(program, f"{name}.before") for name in names.values() if name in program.tensors}
    return _renamed(program, taken | names)


def with_float_ends(program: p.Program) -> p.Program:
    """``program`` with flat float32 inputs and outputs, elements in the file's order; its ends keep their names."""
    inner = {name: _free(program, f"{name}.inside") for name in (*program.inputs, *program.outputs)}
    inside = _renamed(program, inner)
    tensors = dict(inside.tensors)
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
    return replace(program, tensors=tensors, ops=(*before, *inside.ops, *after))


def _free(program: p.Program, name: str) -> str:
    """``name``, or with a number behind it, as no tensor of the program has it."""
    found, number = name, 1
    while found in program.tensors:
        number += 1
        found = f"{name}_{number}"
    return found


def _renamed(program: p.Program, names: Mapping[str, str]) -> p.Program:
    """The same program with other names of tensors; those that ``names`` lacks stay."""

    def new(name: str) -> str:
        return names.get(name, name)

    return replace(
        program,
        tensors={new(name): replace(tensor, name=new(name)) for name, tensor in program.tensors.items()},
        ops=tuple(replace(op, inputs=tuple(map(new, op.inputs)), output=new(op.output)) for op in program.ops),
        inputs=tuple(map(new, program.inputs)),
        outputs=tuple(map(new, program.outputs)),
        file_shapes={new(name): shape for name, shape in program.file_shapes.items()},
    )


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


__all__ = ["named", "with_float_ends"]
