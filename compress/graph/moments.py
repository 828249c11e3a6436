"""Second-order statistics of the layers that read prunable channels.

For a layer with weight matrix ``W`` (out, K), bias ``b`` and inputs ``x`` (K,), a column a position, the
squared error of other weights ``V`` and bias ``c`` is

    E ||W x + b - V x - c||^2 = tr(D G D^T),   D = [W - V, b - c],   G = E [x; 1] [x; 1]^T,

so that ``G`` (K + 1, K + 1) is all that is needed to remove inputs and to refit what stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from compress.graph.groups import CONSUMES, Dependencies, Slot
from compress.graph.interpret import Steps
from compress.graph.trace import argument, kind, shape
from compress.types import Progress

ROWS_PER_COLUMN = 128
"""Positions that are looked at for each column of a layer's input: enough for ``G`` to be well conditioned."""

BLOCK = 128
"""Rows of ``G`` that are computed in one product, from the diagonal on."""

MOST_COLUMNS = 6144
"""Layers with more inputs than this are left to their producers' magnitude: ``G`` would not fit."""


@dataclass(frozen=True)
class Reader:
    """One layer that reads prunable channels, as a matrix product.

    Attributes:
        node: the operator.
        weight: its weight's name.
        groups: of a grouped convolution, whose groups are products of their own; else 1.
        taps: columns of the matrix an input channel (a kernel's size).
    """

    node: fx.Node
    weight: str
    groups: int
    taps: int

    @property
    def slot(self) -> Slot:
        """The slot along which it reads."""
        return self.weight, CONSUMES[kind(self.node)]

    def columns(self, x: Tensor) -> Tensor:
        """Input (N, ...) as (groups, N, K, positions)."""
        if kind(self.node) == "linear":
            flat = x.reshape(x.shape[0], -1, x.shape[-1])
            return flat.transpose(1, 2)[None]
        if kind(self.node) == "conv1d":
            x = x[:, :, None]
        size, *rest = (self._pair(name) for name in ("kernel", "stride", "padding", "dilation"))
        stride, padding, dilation = rest
        found = F.unfold(x, size, dilation, padding, stride)
        return found.view(x.shape[0], self.groups, -1, found.shape[-1]).transpose(0, 1)

    def rows(self, y: Tensor) -> Tensor:
        """Output (N, ...) as (groups, N, out, positions)."""
        if kind(self.node) == "linear":
            return y.reshape(y.shape[0], -1, y.shape[-1]).transpose(1, 2)[None]
        return y.reshape(y.shape[0], self.groups, -1, math.prod(y.shape[2:])).transpose(0, 1)

    def extent(self, x: Tensor) -> tuple[int, int]:
        """Columns of the matrix, and positions a row, for an input (rows, ...)."""
        if kind(self.node) == "linear":
            return x.shape[-1], math.prod(x.shape[1:-1])
        return x.shape[1] // self.groups * self.taps, math.prod(shape(self.node)[2:])

    @property
    def positions(self) -> int:
        """Of its output, for one input."""
        size = shape(self.node)
        return math.prod(size[1:-1] if kind(self.node) == "linear" else size[2:])

    def matrix(self, weight: Tensor) -> Tensor:
        """Weight as (groups, out, K)."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def unit_columns(self, indices: Sequence[int]) -> list[int]:
        """The columns of the input channels ``indices``."""
        return [i * self.taps + tap for i in indices for tap in range(self.taps)]

    def _pair(self, name: str) -> tuple[int, int]:
        if name == "kernel":
            weight = self.node.args[1]
            assert isinstance(weight, fx.Node)
            size = tuple(weight.meta["val"].shape[2:])
            return (1, int(size[0])) if len(size) == 1 else (int(size[0]), int(size[1]))
        given = argument(self.node, name)
        if kind(self.node) == "conv1d":
            first = given if isinstance(given, int) else given[0]
            return {"stride": (1, first), "padding": (0, first), "dilation": (1, first)}[name]
        return (given, given) if isinstance(given, int) else (int(given[0]), int(given[-1]))


def reader_of(steps: Steps, node: fx.Node) -> Reader | None:
    """The layer at ``node`` as a matrix product; None where it can't be written as one that fits."""
    if kind(node) not in ("linear", "conv1d", "conv2d"):
        return None
    weight = node.args[1]
    name = steps.constants.get(weight.name) if isinstance(weight, fx.Node) else None
    if name is None or isinstance(argument(node, "padding"), str):
        return None
    groups = int(argument(node, "groups", 1)) if kind(node) != "linear" else 1
    size = steps.parameters[name].shape
    taps = math.prod(size[2:])
    return Reader(node, name, groups, taps) if size[1] * taps <= MOST_COLUMNS else None


def readers(steps: Steps, dependencies: Dependencies, parameters: set[str]) -> dict[str, list[Reader]]:
    """Weight -> the operators that read prunable channels through it, where they can be written as products.

    Args:
        steps: of the network.
        dependencies: its groups.
        parameters: names of weights to look at.
    """
    consumed = {slot for group in dependencies.groups for slot in group.consumers}
    found: dict[str, list[Reader]] = {}
    for node in steps.nodes:
        reader = reader_of(steps, node)
        if reader is None or reader.weight not in parameters or reader.slot not in consumed:
            continue
        depthwise = reader.groups > 1 and steps.parameters[reader.weight].shape[1] == 1
        if not depthwise:
            found.setdefault(reader.weight, []).append(reader)
    return found


class Moments:
    """Running ``G`` of one weight, float64 (groups, K + 1, K + 1), and the number of positions seen."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.sum: Tensor | None = None
        self.count = 0

    def add(self, columns: Tensor, share: float) -> tuple[Tensor, Tensor | None]:
        """Add ``share`` of the positions of (groups, N, K, positions).

        Returns:
            What was added, (groups, K + 1, taken), and the indices of the positions taken; None for all.
        """
        flat = columns.permute(0, 2, 1, 3).flatten(2)
        total, taken = flat.shape[2], None
        if share < 1:
            chosen = torch.randperm(total, generator=self.generator)[: max(1, math.ceil(share * total))]
            taken = chosen.to(flat.device)
            flat = flat[:, :, taken]
        flat = torch.cat([flat, flat.new_ones(len(flat), 1, flat.shape[2])], 1)
        product = gram(flat)
        self.sum = product if self.sum is None else self.sum + product
        self.count += flat.shape[2]
        return flat, taken

    @property
    def mean(self) -> Tensor:
        """``G``."""
        assert self.sum is not None
        return self.sum / self.count


def products(a: Tensor, b: Tensor) -> Tensor:
    """``a b^T`` of (groups, n, positions) and (groups, m, positions), float64."""
    if _scarce(b):
        a, b = a.double(), b.double()
    return torch.bmm(a, b.transpose(1, 2)).double()


def gram(a: Tensor) -> Tensor:
    """``a a^T`` of (groups, n, positions), float64: as :func:`products`, but below the diagonal blocks it is copied."""
    n = a.shape[1]
    if _scarce(a):
        a = a.double()
    found = a.new_empty(len(a), n, n, dtype=torch.float64)
    for start in range(0, n, BLOCK):
        end = min(n, start + BLOCK)
        found[:, start:end, start:] = torch.bmm(a[:, start:end], a[:, start:].transpose(1, 2))
        found[:, end:, start:end] = found[:, start:end, end:].transpose(1, 2)
    return found


def _scarce(a: Tensor) -> bool:
    """Whether (groups, n, positions) has fewer positions than it takes to show every direction.

    Products are computed in float64 then: in the directions that aren't shown, rounding would be all there is.
    """
    return a.shape[2] < 2 * a.shape[1]


def share_of_positions(columns: int, positions: int) -> float:
    """The share of ``positions`` that :data:`ROWS_PER_COLUMN` asks for."""
    return min(1.0, max(4096, ROWS_PER_COLUMN * columns) / max(1, positions))


def thinned(rows: int, share: float, generator: torch.Generator) -> tuple[Tensor, float]:
    """Which of a tensor's ``rows`` (inputs; windows or tokens in some layers) to look at for ``share`` of all
    positions, and the share of theirs: twice as many rows as positions ask for, since positions of one row are
    alike."""
    count = min(rows, math.ceil(2 * share * rows))
    if count == rows:
        return torch.arange(rows), share
    return torch.randperm(rows, generator=generator)[:count].sort().values, share * rows / count


def damped(matrix: Tensor, share: float = 1e-6) -> Tensor:
    """``matrix`` with a ridge of ``share`` of its mean diagonal, so that it can be inverted."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    ridge = share * diagonal.mean(-1, keepdim=True).clamp_min(1e-12)
    return matrix + torch.diag_embed(ridge.expand_as(diagonal))


def collect(
    steps: Steps, found: Sequence[Reader], inputs: Tensor, batch: int, generator: torch.Generator, progress: Progress
) -> dict[str, Tensor]:
    """Node -> ``G`` of what each reader reads, in one pass over ``inputs`` (N, ...), ``batch`` at a time."""
    moments = {reader.node.name: Moments(generator) for reader in found}
    by_node = {reader.node.name: reader for reader in found}
    done = 0
    with torch.no_grad():
        for x in inputs.split(batch):
            progress(f"statistics of inputs {done} to {done + len(x)} of {len(inputs)}")
            done += len(x)
            environment = steps.start((x,))
            for at, node in enumerate(steps.nodes):
                reader = by_node.get(node.name)
                if reader is not None:
                    value = steps.value(environment, node.args[0])
                    width, positions = reader.extent(value)
                    share = share_of_positions(width, len(inputs) * len(value) * positions // len(x))
                    taken, share = thinned(len(value), share, generator)
                    moments[node.name].add(reader.columns(value[taken.to(value.device)]), share)
                steps.run(environment, [node])
                for source in {each.name for each in node.all_input_nodes}:
                    if steps.last_use.get(source) == at:
                        environment.pop(source, None)
    return {name: each.mean.cpu() for name, each in moments.items()}


class NormalEquations:
    """``G = E [x; 1] [x; 1]^T``, (groups, K + 1, K + 1), and ``E t [x; 1]^T``, (groups, out, K + 1), float64.

    Args:
        reader: the layer.
        generator: picks positions where there are more than enough.
    """

    def __init__(self, reader: Reader, generator: torch.Generator) -> None:
        self.reader, self.generator = reader, generator
        self.moments = Moments(generator)
        self.cross: Tensor | None = None

    def add(self, x: Tensor, target: Tensor, part: float) -> None:
        """Add the layer's input ``x`` and the output ``target`` that is wanted, both with inputs along the first axis,
        which are the share ``part`` of all inputs."""
        reader, generator = self.reader, self.generator
        width, positions = reader.extent(x)
        share = share_of_positions(width, round(len(x) * positions / part))
        chosen, share = thinned(len(x), share, generator)
        chosen = chosen.to(x.device)
        columns, rows = reader.columns(x[chosen]), reader.rows(target[chosen])
        added, taken = self.moments.add(columns, share)
        wanted = rows.permute(0, 2, 1, 3).flatten(2)
        product = products(wanted if taken is None else wanted[:, :, taken], added)
        self.cross = product if self.cross is None else self.cross + product

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Both means."""
        assert self.cross is not None
        return self.moments.mean, self.cross / self.moments.count


def normal_equations(
    reader: Reader, batches: Iterable[tuple[Tensor, Tensor, float]], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The :class:`NormalEquations` of all ``batches``: what :meth:`NormalEquations.add` takes."""
    equations = NormalEquations(reader, generator)
    for x, target, part in batches:
        equations.add(x, target, part)
    return equations.means
