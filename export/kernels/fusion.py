"""Operators that a back end joins: a convolution and the residual addition behind it, bit for bit the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from compress.integer.program import Add, Convolution, Op, Program


@dataclass(frozen=True, eq=False, slots=True)
class ConvolutionAdd(Op):
    """``add`` of ``convolution``'s result and another tensor. Inputs: the convolution's, the other one.

    Attributes:
        convolution, add: the operators as they were.
        own: which of ``add``'s inputs the convolution's result is.
        zero_points: of ``add``'s inputs.
    """

    convolution: Convolution
    add: Add
    own: int
    zero_points: tuple[int, int]


def fuse(program: Program) -> Program:
    """The program with additions drawn into convolutions whose result nothing else reads.

    The joined operator stands where the addition stood.
    """
    uses = Counter(name for op in program.ops for name in op.inputs)
    makers = {op.output: op for op in program.ops}
    replaced: dict[str, ConvolutionAdd] = {}
    gone: set[str] = set()
    position = {op.output: index for index, op in enumerate(program.ops)}
    for op in program.ops:
        if not isinstance(op, Add) or len(op.inputs) != 2 or op.inputs[0] == op.inputs[1]:
            continue
        shapes = {program.tensors[name].shape for name in (*op.inputs, op.output)}
        if len(shapes) != 1:
            continue
        fitting = [
            index
            for index, name in enumerate(op.inputs)
            if isinstance(makers.get(name), Convolution)
            and uses[name] == 1
            and name not in program.outputs
            and name not in gone
        ]
        if not fitting:
            continue
        # The later of two is the one whose other addend is there already.
        own = max(fitting, key=lambda index: position[op.inputs[index]])
        convolution = makers[op.inputs[own]]
        assert isinstance(convolution, Convolution)
        if convolution.requantize is None or convolution.depthwise:
            continue
        zero_points = tuple(program.tensors[name].zero_point for name in op.inputs)
        gone.add(convolution.output)
        replaced[op.output] = ConvolutionAdd(
            convolution.name,
            (convolution.inputs[0], op.inputs[1 - own]),
            op.output,
            convolution,
            op,
            own,
            (zero_points[0], zero_points[1]),
        )
    ops = [replaced.get(op.output, op) for op in program.ops if op.output not in gone]
    tensors = {name: tensor for name, tensor in program.tensors.items() if name not in gone}
    return replace(program, ops=tuple(ops), tensors=tensors)


__all__ = ["ConvolutionAdd", "fuse"]
