"""Register blocks that are measured rather than modelled: what ``--tune SECONDS`` does on this machine.

The kernels of this project come at once: their register block is chosen by a model
(:mod:`compress.export.kernels.dot_blocks`). Tuning lets MetaSchedule sample others and times them, for the layers with
the most multiply-accumulates first; its database stays in a file and is used again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np

from compress import __version__
from compress.errors import BadInput
from compress.export.kernels import backends, dot_blocks
from compress.export.kernels.dot_blocks import Block, Shape
from compress.export.kernels.isa import Isa
from compress.integer import program as p
from compress.integer.signedness import with_signedness
from compress.profiling import session
from compress.profiling.search_blocks import Records
from compress.types import Progress

FEW = 8
"""Blocks that are searched for a shape: the model's best ones."""
WORTH = 0.98
"""Another block is taken where it needs at most this share of the model's choice's time."""


def database(isa: Isa) -> Path:
    """The folder of MetaSchedule's database of this machine, below ``$XDG_DATA_HOME/compress/metaschedule``.

    A measurement holds for a processor, an instruction set, and the versions that make the code.
    """
    machine = f"{session.machine()}; {isa.cpu}; compress {__version__}; tvm {metadata.version('apache-tvm')}"
    return session.user_data() / "metaschedule" / hashlib.sha256(machine.encode()).hexdigest()[:16]


def tune(
    program: p.Program, seconds: float, progress: Progress, folder: Path | None = None, seed: int = 0
) -> dict[Shape, Block]:
    """The blocks for the shapes of a program's convolutions; those that aren't known are searched for.

    Args:
        program: of any signedness.
        seconds: for searching, about; a trial that was begun is finished. 0 uses what is known.
        progress: told which layer is timed and what is left.
        folder: of the database; by default :func:`database`.
        seed: of what is sampled.

    Raises:
        BadInput: there are no kernels for this machine.
    """
    isa = backends.host()
    if isa is None:
        raise BadInput("--tune: there are no kernels for this machine's processor")
    records = Records(folder or database(isa), isa, progress)
    program = with_signedness(program, isa.signed)
    end = time.monotonic() + seconds
    layers = [op for op in program.ops if isinstance(op, p.Convolution)]
    layers.sort(key=lambda op: -program.tensors[op.output].elements * int(np.prod(op.weight.shape[1:])))
    blocks: dict[Shape, Block] = {}
    for number, op in enumerate(layers, start=1):
        alone = _alone(program, op)
        with dot_blocks.asked() as shapes:
            backends.assemble(alone, isa)
        for shape, dot in shapes.items():
            if shape in blocks:
                continue
            arguments = (shape.width, shape.vectors, shape.kernel, shape.stride, shape.dilation, shape.steps)
            candidates = dot_blocks.ranked(dot, *arguments)[:FEW]
            times = records.seconds(shape, candidates)
            left = end - time.monotonic()
            if len(times) < len(candidates) and left > 0:
                progress(f"tune {op.name}, layer {number} of {len(layers)}, {left:.0f} s left")
                records.search(alone, shape, candidates, lambda: end - time.monotonic(), seed)
                times = records.seconds(shape, candidates)
            if times:
                blocks[shape] = _best(times, candidates[0])
    return blocks


def _best(times: Mapping[Block, float], model: Block) -> Block:
    """The block of the shortest time; the model's choice unless another is clearly faster."""
    best = min(times, key=lambda block: times[block])
    return best if model not in times or times[best] < WORTH * times[model] else model


def _alone(program: p.Program, op: p.Op) -> p.Program:
    """The program of one operator."""
    names = (*op.inputs, op.output)
    tensors = {name: program.tensors[name] for name in names}
    shapes = {name: tensors[name].shape for name in names}
    return p.Program(tensors, (op,), op.inputs, (op.output,), shapes)


def described(blocks: Mapping[Shape, Block]) -> list[str]:
    """The blocks in words, for the record of a run."""
    return [
        f"{shape.dot} {shape.width}x{shape.vectors} k{shape.kernel} s{shape.stride}: "
        f"{block.pixels} pixels, {block.vectors} vectors, {block.taps} taps"
        for shape, block in sorted(blocks.items(), key=lambda each: repr(each[0]))
    ]


__all__ = ["database", "described", "tune"]
