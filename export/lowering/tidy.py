"""What a finished program can do without: copies that only pad in front of a convolution, views of views, dead code.

And what is the same under another shape: a measuring convolution of few channels as one of many.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from compress.export.lowering.builder import strides_of
from compress.integer import program as p


def tidied(program: p.Program) -> p.Program:
    """The same network with fewer operators."""
    return _live(_views(_strips(_padding(program))))


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


def _strips(program: p.Program) -> p.Program:
    """A convolution of one-bit weights that reads strips of pixels side by side reads the strips as channels.

    With a stride as wide as the kernel and nothing padded, the ``w`` pixels of ``C`` channels that a kernel's row reads
    lie one behind the other, so an image (H, W, C) is one of (H, W / w, w C) and the kernel (O, h, w, C) one of
    (O, h, 1, w C): the same memory, sums of the same products. Sensing layers are such, and kernels that add one-bit
    weights want many channels.
    """
    tensors = dict(program.tensors)
    ops: list[p.Op] = []
    for op in program.ops:
        if isinstance(op, p.Convolution) and op.weight_bits == 1 and _side_by_side(op, tensors[op.inputs[0]]):
            outputs, height, width, channels = op.weight.shape
            image = tensors[op.inputs[0]]
            rows, columns, _ = image.shape
            strips = replace(image, name=f"{op.name}_strips", shape=(rows, columns // width, width * channels))
            tensors[strips.name] = strips
            ops.append(p.View(strips.name, (image.name,), strips.name))
            op = replace(
                op,
                inputs=(strips.name,),
                weight=op.weight.reshape(outputs, height, 1, width * channels),
                strides=(op.strides[0], 1),
            )
        ops.append(op)
    return replace(program, ops=tuple(ops), tensors=tensors)


def _side_by_side(op: p.Convolution, image: p.Tensor) -> bool:
    """Whether a convolution's windows lie side by side in a row, without padding, over the whole of it."""
    width = op.weight.shape[2]
    return (
        op.groups == 1
        and width > 1
        and op.strides[1] == width
        and op.dilations[1] == 1
        and not any(op.padding)
        and len(image.shape) == 3
        and image.shape[1] % width == 0
    )


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
