"""Layers quantized in training one block after the other, in the order of HAWQ (Dong et al., ICCV 2019).

The block with the largest ``sensitivity x squared rounding error`` comes first, so that what is hardest to make up for
has the longest training, and weights that are still real numbers to make up for it. The sensitivity is HAWQ-V2's (Dong
et al., NeurIPS 2020), the mean trace of the block's Hessian against the network's own predictions. The rounding error
is the expected one of a uniform grid, a twelfth of the squared distance between neighbouring values for each weight:
weights that are already on their grid no longer show their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.graph.interpret import Steps
from compress.graph.segments import segments
from compress.graph.trace import Network, layer_name
from compress.quantize.allocation import block_order
from compress.quantize.hessian import traces
from compress.quantize.perturbation import weight_of
from compress.quantize.quantizers import weight_quantizer
from compress.types import Grid, Progress, Quantization

INPUTS = 64
"""Calibration inputs for the traces: only their order counts."""

TOLERANCE = 0.2
"""Relative standard error of a trace that is enough."""

SHARE = 0.5
"""The share of the training after which every block is quantized."""


def groups(
    model: nn.Module,
    network: Network,
    quantization: Quantization,
    inputs: Tensor,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[tuple[str, ...], ...]:
    """The quantized weights by block, in the order in which the blocks are to be quantized.

    Args:
        model: the network whose trace is ``network``.
        network: the trace; its blocks are the runs of operators between tensors through which everything flows.
        quantization: of its weights.
        inputs: calibration inputs (N, ...).
        generator: the source of randomness, on the CPU.
        progress: told what is measured.
    """
    steps = Steps.of(network)
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    for segment in segments(steps):
        read = [weight_of(steps, node) for node in steps.nodes[segment.first : segment.last + 1]]
        names = [name for name in dict.fromkeys(read) if name in quantization.weights and name not in taken]
        fresh = [name for name in names if name is not None]
        if fresh:
            found[segment.exit] = fresh
            taken |= set(fresh)
    progress("sensitivity of the blocks")
    batches = [inputs[:INPUTS]] if network.dynamic_batch else list(inputs[:INPUTS].split(1))
    measured = traces(model, batches, generator=generator, tolerance=TOLERANCE)
    sizes = {name: steps.parameters[name].numel() for name in quantization.weights}
    sensitivity = {}
    for block, members in found.items():
        seen = [name for name in members if layer_name(name) in measured]
        total = math.fsum(max(0.0, measured[layer_name(name)].value) for name in seen)
        sensitivity[block] = total / max(1, sum(sizes[name] for name in seen))
    errors = {name: squared_error(grid, sizes[name]) for name, grid in quantization.weights.items()}
    return tuple(tuple(found[block]) for block in block_order(found, sensitivity, errors))


def squared_error(grid: Grid, weights: int) -> float:
    """The expected ``||Q(W) - W||^2`` of so many weights on ``grid``."""
    gap = 2.0 if grid.signed and grid.bits == 1 else 1.0
    return weights / len(grid.scale) * math.fsum((gap * scale) ** 2 for scale in grid.scale) / 12


def quantized_groups(step: int, steps: int, count: int) -> int:
    """How many of ``count`` groups are quantized in step ``step`` of ``steps``, from 0: the first from the start."""
    if count < 2:
        return count
    return min(count, 1 + math.floor(step * (count - 1) / max(1.0, SHARE * steps)))


def activate(student: nn.Module, order: Sequence[Sequence[str]], number: int) -> None:
    """Let the first ``number`` groups' weights be quantized in ``student``, and the others pass."""
    for position, names in enumerate(order):
        for name in names:
            weight_quantizer(student, name).active = position < number
