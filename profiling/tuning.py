"""Register blocks that are measured rather than modelled: what ``--tune SECONDS`` does on this machine.

TVM's own tuner, MetaSchedule, mutates schedules of whole loop nests and takes about a minute a layer. These kernels
have one thing to choose, the register block (:mod:`compress.export.kernels.dot_blocks`), so that is what is timed:
the model's best few for each layer's shape, in turns, the layers with the most multiply-accumulates first. What was
found is kept in a file and used again.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np

from compress import __version__
from compress.errors import BadInput
from compress.export.kernels import backends, dot_blocks
from compress.export.kernels.dot_blocks import Block, Shape
from compress.export.kernels.isa import Isa
from compress.export.library import building
from compress.export.library.loader import Library
from compress.integer import program as p
from compress.integer.signedness import with_signedness
from compress.profiling import session, timer
from compress.serial import write_json
from compress.types import Progress

SCHEMA = 1
FEW = 8
"""Blocks that are timed for a shape: the model's best ones."""
WORTH = 0.98
"""Another block is taken where it needs at most this share of the model's choice's time."""
ROUNDS, SLICE_S = 6, 0.004


def database() -> Path:
    """Where what was found is kept: ``$XDG_DATA_HOME/compress/blocks.json``."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "compress" / "blocks.json"


def machine(isa: Isa) -> str:
    """What a measurement holds for: processor, instruction set, and the versions that make the code."""
    return f"{session.machine()}; {isa.cpu}; compress {__version__}; tvm {metadata.version('apache-tvm')}"


def known(isa: Isa, path: Path | None = None) -> dict[Shape, Block]:
    """The blocks that were found on this machine; a file that is damaged or of another version counts as empty."""
    try:
        document = json.loads((path or database()).read_text(encoding="utf-8"))
        entries = document["machines"].get(machine(isa), []) if document["schema"] == SCHEMA else []
        return {Shape(**entry["shape"]): Block(**entry["block"]) for entry in entries}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _keep(isa: Isa, blocks: Mapping[Shape, Block], path: Path) -> None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        machines = dict(document["machines"]) if document["schema"] == SCHEMA else {}
    except (OSError, ValueError, TypeError, KeyError):
        machines = {}
    machines[machine(isa)] = [{"shape": asdict(shape), "block": asdict(block)} for shape, block in blocks.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"schema": SCHEMA, "machines": machines})


def tune(program: p.Program, seconds: float, progress: Progress, path: Path | None = None) -> dict[Shape, Block]:
    """Time blocks for the shapes of a program's convolutions that aren't known yet, for about ``seconds``.

    Args:
        program: of any signedness.
        seconds: when to stop; a shape that was begun is finished. 0 uses what is known.
        progress: told which layer is timed and what is left.
        path: of the file of what was found; by default :func:`database`.

    Returns:
        All blocks that are known for this machine, those of other programs too.

    Raises:
        BadInput: there are no kernels for this machine.
    """
    isa = backends.host()
    if isa is None:
        raise BadInput("--tune: there are no kernels for this machine's processor")
    place = path or database()
    program = with_signedness(program, isa.signed)
    blocks = known(isa, place)
    end = time.monotonic() + seconds
    layers = [op for op in program.ops if isinstance(op, p.Convolution)]
    layers.sort(key=lambda op: -program.tensors[op.output].elements * int(np.prod(op.weight.shape[1:])))
    for number, op in enumerate(layers, start=1):
        left = end - time.monotonic()
        if left <= 0:
            break
        alone = _alone(program, op)
        with dot_blocks.asked() as shapes:
            backends.assemble(alone, isa)
        for shape, dot in shapes.items():
            if shape in blocks:
                continue
            progress(f"tune {op.name}, layer {number} of {len(layers)}, {left:.0f} s left")
            arguments = (shape.width, shape.vectors, shape.kernel, shape.stride, shape.dilation, shape.steps)
            blocks[shape] = _fastest(alone, isa, shape, dot_blocks.ranked(dot, *arguments)[:FEW])
            _keep(isa, blocks, place)
    return blocks


def _alone(program: p.Program, op: p.Op) -> p.Program:
    """The program of one operator."""
    names = (*op.inputs, op.output)
    tensors = {name: program.tensors[name] for name in names}
    shapes = {name: tensors[name].shape for name in names}
    return p.Program(tensors, (op,), op.inputs, (op.output,), shapes)


def _fastest(program: p.Program, isa: Isa, shape: Shape, candidates: tuple[Block, ...]) -> Block:
    """The candidate of the shortest median; the first one, the model's, unless another is clearly faster."""
    with ExitStack() as stack:
        jobs = {}
        for index, block in enumerate(candidates):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            with dot_blocks.fixed({shape: block}):
                code = backends.assemble(program, isa)
            built = building.build(code, isa, folder, file_shapes=program.file_shapes)
            if built.linked_path is None:
                return candidates[0]
            library = stack.enter_context(Library(built.linked_path))
            inputs = [np.full(end.shape, 1, end.dtype) for end in library.interface.inputs]
            jobs[str(index)] = library.prepared(inputs)
        found = timer.interleaved(jobs, "", {}, rounds=ROUNDS, slice_s=SLICE_S)
    times = [found[str(index)].latency_s for index in range(len(candidates))]
    best = int(np.argmin(times))
    return candidates[best] if times[best] < WORTH * times[0] else candidates[0]


def described(blocks: Mapping[Shape, Block]) -> list[str]:
    """The blocks in words, for the record of a run."""
    return [
        f"{shape.dot} {shape.width}x{shape.vectors} k{shape.kernel} s{shape.stride}: "
        f"{block.pixels} pixels, {block.vectors} vectors, {block.taps} taps"
        for shape, block in sorted(blocks.items(), key=lambda each: repr(each[0]))
    ]


__all__ = ["database", "described", "known", "tune"]
