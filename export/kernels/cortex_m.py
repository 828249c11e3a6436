"""Kernels of Cortex-M cores with the DSP extension (M4, M7, M33, M55): ``smlad`` on pairs of int16."""

from __future__ import annotations

from dataclasses import replace

from compress.export.kernels import cortex_m_convolution, cortex_m_depthwise, emit, fusion
from compress.export.kernels.code import Code
from compress.export.kernels.isa import Isa
from compress.integer.program import Op, Program


def code(program: Program, isa: Isa, prefix: str = "kernel") -> Code:
    """The kernels of a program whose 8-bit tensors are signed; all images lie densely.

    Raises:
        BadInput: an operator has no kernel.
    """
    fused = _fused(program)
    room = budgets(fused)
    emitters = (cortex_m_convolution.Emit(room), cortex_m_depthwise.Emit(room))
    return emit.assemble(fused, isa, emitters, prefix=prefix)


def budgets(program: Program) -> dict[str, int]:
    """Scratch memory for each operator, by its output, that leaves the arena as small as it can be.

    What is scratch memory where most memory is held is there for every operator; one that holds less may have more,
    but for a gap as large as its largest tensor, so that the memory plan finds places for all.
    """
    ends = {*program.inputs, *program.outputs}
    last = {name: index for index, op in enumerate(program.ops) for name in op.inputs}
    alive: set[str] = set()
    held, least, largest = {}, {}, {}
    for index, op in enumerate(program.ops):
        alive |= {op.output} - ends
        sizes = [program.tensors[name].bytes for name in alive]
        held[op.output], largest[op.output] = sum(sizes), max(sizes, default=0)
        if (
            isinstance(op, fusion.ConvolutionAdd)
            and last[op.inputs[1]] == index
            and op.inputs[0] != op.inputs[1]
            and {op.inputs[1], op.output} <= alive
        ):
            held[op.output] -= program.tensors[op.output].bytes  # the addition is done in place
        kinds = (cortex_m_convolution, cortex_m_depthwise)
        least[op.output] = max(kind.scratch_bytes(op, program.tensors) for kind in kinds)
        alive -= {name for name in alive if last.get(name, -1) <= index}
    if not held:
        return {}
    peak = max(held[name] + least[name] for name in held)
    common = max(least[name] for name in held if held[name] + least[name] == peak)
    return {name: min(peak - held[name], max(common, peak - held[name] - largest[name])) for name in held}


def _fused(program: Program) -> Program:
    """The program with those additions drawn into convolutions for which there is a kernel."""
    joined = fusion.fuse(program)
    ops: list[Op] = []
    for op in joined.ops:
        if isinstance(op, fusion.ConvolutionAdd) and not cortex_m_convolution.fusable(op):
            ops += [op.convolution, op.add]
        else:
            ops.append(op)
    used = {name for op in ops for name in (*op.inputs, op.output)} | set(program.inputs) | set(program.outputs)
    tensors = {name: tensor for name, tensor in program.tensors.items() if name in used}
    return replace(joined, ops=tuple(ops), tensors=tensors)


__all__ = ["budgets", "code"]
