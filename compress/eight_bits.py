"""What a candidate's weights narrower than 8 bits are compared with: the same network with those weights in 8 bits.

Every narrow weight is a multiple of its scale, so finer 8-bit grids hold it as it is: for integers up to ``m`` in size

    w = s q = (s / k) (k q),    k = floor(127 / m),

and the two networks differ in how their weights are stored and multiplied, and in nothing else. The 8-bit one is
written, compiled and, where that is possible, timed or counted as the candidate is. It isn't evaluated and doesn't
ship: its files lie in a hidden folder of the candidate's, which no manifest lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from compress.export import onnx as interchange
from compress.export.made import Made
from compress.export.onnxruntime import weight_storage
from compress.figures import Artifact, EightBits, Unavailable
from compress.job import Job, assess
from compress.profiling import artifacts
from compress.types import Grid, Note, Precision, State

BITS = 8
FOLDER = ".8-bits"
"""Of the 8-bit files, in a candidate's folder."""
LARGEST = 127
"""Of the integers of 8-bit weights."""

Make = Callable[[State, str, Path], Made | Unavailable]
"""From a state, a runtime and a folder that holds the ONNX file to the artifact."""


def widened(state: State) -> State | None:
    """The same network with narrow weights in 8 bits; None where no weight is narrower."""
    quantization = state.quantization
    if quantization is None or all(grid.bits >= BITS for grid in quantization.weights.values()):
        return None
    weights = {name: _wide(grid) for name, grid in quantization.weights.items()}
    layers = tuple(replace(layer, precision=_precision(layer.precision)) for layer in state.plan.layers)
    return replace(state, quantization=replace(quantization, weights=weights), plan=replace(state.plan, layers=layers))


def _wide(grid: Grid) -> Grid:
    if grid.bits >= BITS:
        return grid
    finer = LARGEST // max(-grid.low, grid.high)
    return replace(grid, scale=tuple(scale / finer for scale in grid.scale), bits=BITS, narrow=True)


def _precision(held: Precision) -> Precision:
    return Precision(BITS, held.activation_bits, "integer") if held.weight_bits < BITS else held


def beside(
    job: Job, wide: State, found: Sequence[Artifact], candidate: Path, make: Make
) -> tuple[list[Artifact], tuple[Note, ...]]:
    """Artifacts with their 8-bit counterparts, and notes on those that can't be made.

    Args:
        job: what was asked for.
        wide: of :func:`widened`.
        found: the candidate's artifacts.
        candidate: the candidate's folder, with its golden inputs; the files go below it.
        make: what made the artifacts.
    """
    folder = candidate / FOLDER
    folder.mkdir()
    assessed = assess(wide, job.target, job.example, job.shared)
    interchange.export(wide, job.example, folder / interchange.FILE, assessed.network, weight_storage(job.target))
    compared: list[Artifact] = []
    notes: list[Note] = []
    for artifact in found:
        made = make(wide, artifact.runtime, folder)
        if isinstance(made, Unavailable):
            notes.append(Note(artifact.runtime, "comparison with 8 bits", made.reason))
            compared.append(artifact)
            continue
        instructions = None
        if artifact.instructions is not None and made.compiled is not None:
            checking = artifacts.check(made.compiled, candidate)
            instructions = checking.instructions
            if checking.wrong is not None:
                notes.append(Note(artifact.runtime, "comparison with 8 bits", f"not counted: {checking.wrong}"))
        path = (Path("candidates") / candidate.name / made.path.relative_to(candidate)).as_posix()
        eight = EightBits(path, made.bytes, assessed.estimate(made.bytes, artifact.runtime), None, instructions)
        compared.append(replace(artifact, at_8_bits=eight))
    return compared, tuple(notes)


__all__ = ["FOLDER", "beside", "widened"]
