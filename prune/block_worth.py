"""What each residual block is worth that the rest can't make up for, and the order in which blocks go.

A block computes ``x + branch(x)``. Without it, the layer in front, the last that wrote to ``x``, can be refitted to add
what the branch did, as far as that is linear in what this layer reads:

    branch(x) ~ V h + c,   V and c by least squares over inputs and positions.

What is left of it, ``e = branch(x) - p (V h + c)``, with ``p`` the slope of a ReLU on the way, changes the output along
random signs ``v`` by ``<g, e>`` to first order, ``g`` the gradient of ``v . f(x)`` at the sum. A block's damage is

    E_v <g, e>^2.

What goes first is what does the least damage for what it saves. Blocks that follow one another directly share the layer
in front, so each of a run of n counts n times: on ResNet-56 the damage of five to eight blocks after rebuilding follows
that, where their plain sum misses it by up to three times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compress.graph.blocks import PASSES_ON, Block
from compress.graph.interpret import Environment, Steps, probe_batch
from compress.graph.moments import NormalEquations, Reader, damped, reader_of
from compress.graph.trace import kind
from compress.prune.sensitivity import IMAGES, applied, signs_like

MOST_COLUMNS = 2304
"""Layers in front that read more than this aren't taken to make up for anything: the equations would not fit."""


@dataclass(frozen=True)
class InFront:
    """The layer that wrote last to what a block reads.

    Attributes:
        reader: it, as a matrix product.
        gate: what a ReLU between it and the block reads; None if there is none.
    """

    reader: Reader
    gate: str | None


def damages(
    steps: Steps,
    blocks: Sequence[Block],
    inputs: Tensor,
    batch: int,
    seed: int,
    made_up: Mapping[str, tuple[InFront, Tensor]] | None = None,
) -> dict[str, float]:
    """Block (module path) -> mean squared change of the output, to first order, when its branches give zero.

    Args:
        steps: of the network.
        blocks: to look at.
        inputs: (N, ...).
        batch: inputs at a time.
        seed: of the random signs.
        made_up: block -> the layer in front and what is added to its matrix, (groups, out, K + 1); the others have
            nothing that makes up for them.
    """
    made_up = made_up or {}
    squares = dict.fromkeys((block.path for block in blocks), 0.0)
    for environment, gradients in _passes(steps, blocks, inputs, batch, seed):
        moved: dict[str, Tensor] = {}
        for block, name, branch in _branches(steps, blocks):
            error = environment[branch.name]
            if block.path in made_up:
                front, change = made_up[block.path]
                instead = applied(steps, environment, front.reader, change)
                error = error - (instead if front.gate is None else instead * (environment[front.gate] > 0))
            change_of_output = (gradients[name] * error).flatten(1).sum(1)
            moved[block.path] = moved.get(block.path, torch.zeros_like(change_of_output)) + change_of_output
        for path, found in moved.items():
            squares[path] += float(found.double().square().sum())
    return {path: total / len(inputs) for path, total in squares.items()}


def lasting_damages(steps: Steps, blocks: Sequence[Block], inputs: Tensor, batch: int, seed: int) -> dict[str, float]:
    """The damages of blocks after the layers in front have made up for what they can.

    Args:
        steps: of the network with its batch norms folded.
        blocks, inputs, batch, seed: as of :func:`damages`; the first :data:`~compress.prune.sensitivity.IMAGES` inputs
            are looked at.
    """
    inputs, batch = inputs[:IMAGES], probe_batch(steps, batch)
    return damages(steps, blocks, inputs, batch, seed, fitted(steps, blocks, inputs, batch, seed))


def fitted(
    steps: Steps, blocks: Sequence[Block], inputs: Tensor, batch: int, seed: int
) -> dict[str, tuple[InFront, Tensor]]:
    """Block -> the layer in front of it, and the matrix (groups, out, K + 1) that comes nearest to its branch."""
    fronts: dict[str, tuple[InFront, str]] = {}
    for block, name, branch in _branches(steps, blocks):
        front = in_front(steps, name, block)
        if front is not None and len(block.sums) == 1:
            fronts[block.path] = front, branch.name
    generator = torch.Generator().manual_seed(seed)
    equations = {path: NormalEquations(front.reader, generator) for path, (front, _) in fronts.items()}
    with torch.no_grad():
        for x in inputs.split(batch):
            environment = steps.start((x,))
            steps.run(environment, steps.nodes)
            for path, (front, branch_name) in fronts.items():
                read = steps.value(environment, front.reader.node.args[0])
                equations[path].add(read, environment[branch_name], len(x) / len(inputs))
    found = {}
    for path, (front, _) in fronts.items():
        moments, cross = equations[path].means
        found[path] = front, torch.linalg.solve(damped(moments), cross.transpose(1, 2)).transpose(1, 2)
    return found


def in_front(steps: Steps, name: str, block: Block) -> InFront | None:
    """The layer that wrote last to the stream that ``block``'s sum ``name`` adds to; None if none can be refitted."""
    node = next(node for node in steps.nodes if node.name == name)
    stream, gate = node.args[1 - block.sums[name]], None
    while isinstance(stream, fx.Node):
        reader = reader_of(steps, stream)
        if reader is not None:
            size = steps.parameters[reader.weight].shape
            fits = size[1] * reader.taps <= MOST_COLUMNS and reader.weight not in steps.hardware
            return InFront(reader, gate) if fits else None
        if kind(stream) in ("relu", "relu6") and isinstance(stream.args[0], fx.Node):
            gate = stream.args[0].name
        if kind(stream) == "add":
            written = [each for each in stream.args[:2] if isinstance(each, fx.Node) and len(each.users) == 1]
            stream = next((each for each in written if reader_of(steps, each) is not None), None)
        else:
            stream = stream.args[0] if kind(stream) in PASSES_ON else None
    return None


def followed(steps: Steps, blocks: Sequence[Block]) -> dict[str, str]:
    """Block -> the block that it follows directly, so that one layer stands in front of both."""
    nodes = {node.name: node for node in steps.nodes}
    owner = {name: block.path for block in blocks for name in block.sums}
    found = {}
    for block in blocks:
        first = list(block.sums)[-1]  # they are listed from the block's end
        stream = nodes[first].args[1 - block.sums[first]]
        while isinstance(stream, fx.Node) and stream.name not in owner:
            stream = stream.args[0] if kind(stream) in PASSES_ON else None
        if isinstance(stream, fx.Node):
            found[block.path] = owner[stream.name]
    return found


def ordered(
    blocks: Sequence[Block], damage: Mapping[str, float], follows: Mapping[str, str], saved: Mapping[str, float]
) -> tuple[tuple[Block, float], ...]:
    """The order in which blocks go, each with the damage of all up to it.

    Args:
        blocks: of one network; one that holds, or lies in, one that has gone is left out.
        damage: of each alone.
        follows: block -> the one that it follows directly.
        saved: what leaving each out saves, above 0.
    """
    followers = {before: path for path, before in follows.items()}
    gone: set[str] = set()

    def run(path: str | None, links: Mapping[str, str]) -> list[str]:
        """The blocks that have gone, from ``path`` on."""
        found = []
        while path is not None and path in gone:
            found.append(path)
            path = links.get(path)
        return found

    def more(path: str) -> float:
        sides = run(follows.get(path), follows), run(followers.get(path), followers)
        before = sum(len(side) * sum(damage[each] for each in side) for side in sides)
        both = [*sides[0], path, *sides[1]]
        return len(both) * sum(damage[each] for each in both) - before

    left_over, found, total = list(blocks), list[tuple[Block, float]](), 0.0
    while left_over:
        risen = {block.path: more(block.path) for block in left_over}
        best = min(left_over, key=lambda block: (risen[block.path] / saved[block.path], block.path))
        total += risen[best.path]
        gone.add(best.path)
        found.append((best, total))
        left_over = [block for block in left_over if not _overlap(block, best)]
    return tuple(found)


def _overlap(a: Block, b: Block) -> bool:
    return a.path == b.path or a.path.startswith(f"{b.path}.") or b.path.startswith(f"{a.path}.")


def _branches(steps: Steps, blocks: Iterable[Block]) -> Iterator[tuple[Block, str, fx.Node]]:
    """Each block's sums, and the operand that its branch makes."""
    nodes = {node.name: node for node in steps.nodes}
    for block in blocks:
        for name, position in block.sums.items():
            branch = nodes[name].args[position]
            assert isinstance(branch, fx.Node)
            yield block, name, branch


def _passes(
    steps: Steps, blocks: Sequence[Block], inputs: Tensor, batch: int, seed: int
) -> Iterator[tuple[Environment, dict[str, Tensor]]]:
    """For each batch the values of all nodes, and the gradients of random signs of the output at the sums."""
    generator = torch.Generator().manual_seed(seed)
    names = [name for block in blocks for name in block.sums]
    trained = [tensor for name, tensor in steps.parameters.items() if name.endswith("weight")]
    try:
        for tensor in trained:
            tensor.requires_grad_(True)
        for x in inputs.split(batch):
            with torch.enable_grad():
                environment = steps.start((x,))
                steps.run(environment, steps.nodes)
                output = environment[steps.output]
                value = (output * signs_like(output, generator)).sum()
                gradients = torch.autograd.grad(value, [environment[name] for name in names])
            with torch.no_grad():
                yield environment, dict(zip(names, gradients, strict=True))
    finally:
        for tensor in trained:
            tensor.requires_grad_(False)


__all__ = ["InFront", "damages", "fitted", "followed", "in_front", "lasting_damages", "ordered"]
