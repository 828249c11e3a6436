"""Rebuild what a pruned network computes, segment by segment, from the original network's tensors.

In each segment, first the layers that lost inputs are solved anew by least squares on what the smaller
network really feeds them,

    min_{V, c} sum ||t - V x - c||^2,    V = V_0 + (B - V_0 G) G^-1,

``x`` the smaller network's input, ``V_0`` its weights, ``t`` the original layer's output and, in front of a
residual addition, the difference that the other operand has collected on the way, so that errors of earlier
layers are corrected. Then all weights of the segment descend (Adam) on the squared distance of its last tensor to the
original's, behind the activation function, since errors that a ReLU cuts off don't count. What didn't
lower that distance on inputs that it wasn't fitted to is undone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from compress.graph.groups import PRODUCES
from compress.graph.interpret import BATCH, Environment, Steps
from compress.graph.moments import Reader, damped, normal_equations
from compress.graph.segments import Kept, Segment, other_operand
from compress.graph.trace import argument, kind

BATCH_SIZE = 64
STEP_ELEMENTS = 2**22
"""Elements of a segment's tensors that a step of descent looks at: of large ones fewer inputs, each of which has
many positions, but 16 at least."""

RATE = 0.012
"""Adam's step, as a share of a tensor's root mean square."""


@dataclass(frozen=True)
class Pair:
    """The original network and the smaller one: the same operators on other sizes."""

    original: Steps
    smaller: Steps
    kept: Kept


def rebuild(
    pair: Pair,
    cut: Sequence[Segment],
    readers: Mapping[str, Sequence[Reader]],
    inputs: Tensor,
    *,
    iterations: int,
    generator: torch.Generator,
    progress: Callable[[str], None],
    batch: int = BATCH_SIZE,
) -> None:
    """Refit the parameters of ``pair.smaller`` in place.

    Args:
        pair: both networks.
        cut: the segments.
        readers: weight -> the operators of the smaller network that read pruned channels through it.
        inputs: calibration inputs (N, ...).
        iterations: of descent a segment; 0 for least squares alone.
        generator: the source of randomness.
        progress: told which segment is rebuilt.
        batch: inputs at a time; 1 where the network's code fixes that.
    """
    before = after = inputs
    changed = False
    for number, segment in enumerate(cut, start=1):
        nodes = pair.smaller.nodes[segment.first : segment.last + 1]
        names = _weights(pair.smaller, nodes)
        touched = any(pair.smaller.parameters[n].shape != pair.original.parameters[n].shape for n in names)
        touched = touched or any(
            a.target is not b.target
            for a, b in zip(nodes, pair.original.nodes[segment.first : segment.last + 1], strict=True)
        )
        if not (touched or changed):
            before = after = _through(pair.original, segment, before, batch)
            continue
        progress(f"rebuild segment {number} of {len(cut)}")
        changed = True
        original_end = _solve_readers(pair, segment, readers, before, after, generator, batch)
        wanted = pair.kept.of(segment.exit, original_end)
        if iterations and batch > 1:
            _descend(pair.smaller, segment, names, after, wanted, iterations, generator, batch)
        if segment is not cut[-1]:
            before, after = original_end, _through(pair.smaller, segment, after, batch)


def _weights(steps: Steps, nodes: Sequence[fx.Node]) -> list[str]:
    """The floating-point parameters that ``nodes`` read, each once."""
    names: dict[str, None] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            name = steps.constants.get(source.name)
            if name is not None and steps.parameters[name].is_floating_point():
                names[name] = None
    return list(names)


def _reads(steps: Steps, node: fx.Node, readers: Mapping[str, Sequence[Reader]]) -> str | None:
    weight = node.args[1] if kind(node) in PRODUCES and len(node.args) > 1 else None
    name = steps.constants.get(weight.name) if isinstance(weight, fx.Node) else None
    return name if name in readers else None


def _through(steps: Steps, segment: Segment, x: Tensor, batch: int) -> Tensor:
    """The segment's last tensor for its first, ``batch`` at a time."""
    with torch.no_grad():
        return torch.cat([_run(steps, segment, part)[segment.exit] for part in x.split(batch)])


def _run(steps: Steps, segment: Segment, x: Tensor) -> Environment:
    environment = _begin(segment, x)
    steps.run(environment, steps.nodes[segment.first : segment.last + 1])
    return environment


def _solve_readers(
    pair: Pair,
    segment: Segment,
    readers: Mapping[str, Sequence[Reader]],
    before: Tensor,
    after: Tensor,
    generator: torch.Generator,
    batch: int,
) -> Tensor:
    """Least squares for every layer of the smaller network that lost inputs, in order of execution.

    Returns:
        The original's last tensor, (N, ...).
    """
    old = [_begin(segment, part) for part in before.split(batch)]
    new = [_begin(segment, part) for part in after.split(batch)]
    with torch.no_grad():
        for at in range(segment.first, segment.last + 1):
            node, twin = pair.original.nodes[at], pair.smaller.nodes[at]
            for environment in old:
                pair.original.run(environment, [node])
            weight = _reads(pair.smaller, twin, readers)
            if weight is not None and len(readers[weight]) == 1:
                _solve(pair, at, readers[weight][0], old, new, generator)
            for environment in new:
                pair.smaller.run(environment, [twin])
            for source in {each.name for each in node.all_input_nodes}:
                if pair.original.last_use.get(source) == at and source != segment.exit:
                    for environment in (*old, *new):
                        environment.pop(source, None)
    return torch.cat([environment[segment.exit] for environment in old])


def _begin(segment: Segment, x: Tensor) -> Environment:
    return {segment.entry: x, BATCH: len(x)}


def _solve(
    pair: Pair,
    at: int,
    reader: Reader,
    old: Sequence[Environment],
    new: Sequence[Environment],
    generator: torch.Generator,
) -> None:
    """Least squares for one layer of the smaller network, whose inputs are in ``new``, its targets in ``old``."""
    steps, name = pair.smaller, reader.node.name
    bias = argument(reader.node, "bias")
    bias_name = steps.constants.get(bias.name) if isinstance(bias, fx.Node) else None
    other = other_operand(steps, at)
    source = reader.node.args[0]
    assert isinstance(source, fx.Node)
    inputs = sum(environment[BATCH] for environment in new)

    def batches() -> Iterator[tuple[Tensor, Tensor, float]]:
        for a, b in zip(old, new, strict=True):
            target = pair.kept.of(name, a[name])
            if other is not None and other in a and other in b:
                target = target + pair.kept.of(other, a[other]) - b[other]
            yield b[source.name], target, b[BATCH] / inputs

    gram, wanted = normal_equations(reader, batches(), generator)
    start = reader.matrix(steps.parameters[reader.weight]).double()
    if bias_name is None:
        gram, wanted = gram[:, :-1, :-1], wanted[:, :, :-1]
    else:
        start = torch.cat([start, steps.parameters[bias_name].double().view(reader.groups, -1, 1)], 2)
    # Solved for the change: in directions that no input shows, the weights stay what they were.
    change = torch.linalg.solve(damped(gram), (wanted - start @ gram).transpose(1, 2)).transpose(1, 2)
    solved = (start + change).to(steps.parameters[reader.weight])
    if not torch.isfinite(solved).all():
        return
    if bias_name is not None:
        steps.parameters[bias_name] = solved[..., -1].flatten()
        solved = solved[..., :-1]
    steps.parameters[reader.weight] = solved.reshape(steps.parameters[reader.weight].shape)


def _descend(
    steps: Steps,
    segment: Segment,
    names: Sequence[str],
    x: Tensor,
    wanted: Tensor,
    iterations: int,
    generator: torch.Generator,
    batch: int,
) -> None:
    """Adam on the distance to ``wanted``; undone if it doesn't generalize."""
    test = max(1, len(x) // 8)
    if len(x) - test < 1:
        return
    scale = float(wanted.square().mean().clamp_min(1e-12))
    start = {name: steps.parameters[name] for name in names}
    trained = [n for n in names if not n.endswith(("running_mean", "running_var")) and n not in steps.hardware]
    base = _distance(steps, segment, x[:test], wanted[:test], batch)
    if not trained:
        return
    leaves = {name: start[name].detach().clone().requires_grad_(True) for name in trained}
    rates = {name: RATE * max(float(leaf.detach().square().mean().sqrt()), 1e-3) for name, leaf in leaves.items()}
    optimizer = torch.optim.Adam([{"params": [leaf], "lr": rates[name]} for name, leaf in leaves.items()])
    steps.parameters.update(leaves)
    size = max(16, STEP_ELEMENTS // max(x[0].numel(), wanted[0].numel()))
    for step, index in enumerate(_batches(test, len(x), min(batch, size), iterations, generator)):
        with torch.enable_grad():
            index = index.to(x.device)
            made = _run(steps, segment, x.index_select(0, index))[segment.exit]
            loss = F.mse_loss(made, wanted.index_select(0, index)) / scale
            optimizer.zero_grad()
            loss.backward()
        factor = 0.5 * (1 + math.cos(math.pi * step / iterations))
        for group, name in zip(optimizer.param_groups, leaves, strict=True):
            group["lr"] = rates[name] * factor
        optimizer.step()
    steps.parameters.update({name: leaf.detach() for name, leaf in leaves.items()})
    now = _distance(steps, segment, x[:test], wanted[:test], batch)
    if not now <= base:
        steps.parameters.update(start)


def _batches(first: int, end: int, batch: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """``count`` random batches of the indices ``first`` to ``end``."""
    for _ in range(count):
        yield torch.randint(first, end, (min(batch, end - first),), generator=generator)


def _distance(steps: Steps, segment: Segment, x: Tensor, wanted: Tensor, batch: int) -> float:
    with torch.no_grad():
        return float((_through(steps, segment, x, batch) - wanted).square().mean())
