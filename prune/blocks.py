"""Whole residual blocks go first, channels make up the rest: for devices whose time goes into starting operators.

A block that computes ``x + branch(x)`` is worth what the output changes when its branch gives zero, to first
order and with the cross terms (:mod:`compress.prune.sensitivity`):

    E_v <g, branch(x)>^2,   g the gradient of v . f(x) at the sum.

Blocks go in the order of that per multiply-accumulate saved, as long as the goal isn't overshot, or until a
goal in latency or RAM is met. What is left is rebuilt against the original network's tensors
(:mod:`compress.prune.refit`), and pruned by :class:`~compress.prune.reconstruct.Reconstruct` to the goal.
Removing residual blocks by their effect is Veit et al., *Residual Networks Behave Like Ensembles of
Relatively Shallow Networks*, NeurIPS 2016; the measure and the rebuilding are our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from compress.graph.blocks import Block
from compress.graph.costs import layer_operators
from compress.graph.fold import fold_batch_norm, foldable
from compress.graph.groups import Dependencies, find
from compress.graph.interpret import Steps, affordable
from compress.graph.moments import readers
from compress.graph.segments import Kept, Segment, segments
from compress.graph.surgery import planned, proven, remove_blocks
from compress.graph.trace import Network, trace
from compress.prune.amounts import Limits
from compress.prune.counter import Cost, Counter
from compress.prune.goal import Goal
from compress.prune.recalibrate import as_in_training
from compress.prune.reconstruct import Reconstruct
from compress.prune.refit import BATCH_SIZE, Pair, rebuild
from compress.prune.sensitivity import IMAGES, signs_like
from compress.prune.write_back import write_back
from compress.types import Context, Note, State


@dataclass(frozen=True, slots=True)
class Blocks:
    """Remove residual blocks, then channels, until ``goal`` is met; ``iterations`` as in ``Reconstruct``."""

    goal: Goal
    iterations: int = 60
    label: ClassVar[str] = "remove whole blocks"

    def __call__(self, state: State, context: Context) -> State:
        """The state with a smaller network; layers of removed blocks keep no channel in its plan."""
        inputs = context.data.train.inputs(context.samples, torch.Generator().manual_seed(context.seed))
        network = trace(state.model, (inputs[:2],))
        dependencies = proven(state.model, find(network))
        counter = Counter.of(network, dependencies, context.target, self.goal)
        limits = Limits.of(self.goal, counter)
        if limits.met(counter, counter.all_units):
            return state
        skip = set(self.goal.skip)
        free = [block for block in dependencies.blocks if not skip & set(block.layers)]
        if not free:
            why = "no module of the network computes x + branch(x), so channels alone are pruned"
            state = replace(state, notes=(*state.notes, Note("", "blocks", why)))
            return Reconstruct(self.goal, self.iterations)(state, context)
        inputs = inputs[: affordable(network)]
        batch = BATCH_SIZE if network.dynamic_batch else 1
        gone = _chosen(state.model, network, counter, free, limits, inputs, batch, context)
        model = remove_blocks(state.model, gone)
        if gone:
            iterations = 0 if self.goal.tuned_after else self.iterations
            _rebuild(model, state.model, network, dependencies, gone, inputs, batch, iterations, context)
        plan = planned(state.plan, dependencies, (), gone)
        notes = state.notes + tuple(Note(block.path, "block", "removed whole") for block in gone)
        state = replace(state, model=model.eval(), plan=plan, notes=notes)
        return Reconstruct(self._rest(model, inputs, counter), self.iterations)(state, context)

    def _rest(self, model: nn.Module, inputs: Tensor, counter: Counter) -> Goal:
        """The goal in fractions of the network that has lost its blocks."""
        network = trace(model, (inputs[:2],))
        now = Counter.of(network, find(network))
        macs, params = now.counts(now.all_units)
        full = counter.counts(counter.all_units)
        return replace(
            self.goal,
            macs=None if self.goal.macs is None else min(1.0, self.goal.macs * full[0] / macs),
            params=None if self.goal.params is None else min(1.0, self.goal.params * full[1] / params),
        )


def _chosen(
    model: nn.Module,
    network: Network,
    counter: Counter,
    free: Sequence[Block],
    limits: Limits,
    inputs: Tensor,
    batch: int,
    context: Context,
) -> list[Block]:
    """The blocks to remove: the least damage for what they save first."""
    context.progress("measure what each block does to the output")
    damage = damages(Steps.of(network), free, inputs[:IMAGES], batch, context.seed)
    operators = layer_operators(network)
    macs = {b.path: sum(o.macs for o in operators if o.path in b.layers) for b in free}
    params = {b.path: sum(o.params for o in operators if o.path in b.layers) for b in free}
    order = sorted(free, key=lambda b: (damage[b.path] / max(macs[b.path], 1), b.path))
    total = sum(o.macs for o in operators), sum(p.numel() for p in model.parameters())
    gone: list[Block] = []
    for block in order:
        if any(block.path.startswith(f"{other.path}.") or other.path.startswith(f"{block.path}.") for other in gone):
            continue
        after = total[0] - macs[block.path], total[1] - params[block.path]
        if limits.needs_device:
            trial = trace(remove_blocks(model, gone), (inputs[:2],))
            none = replace(counter.dependencies, groups=())
            seen = Counter.of(trial, none, context.target, counter.goal)
            if limits.holds(seen.cost(())):
                break
        elif _overshoots(limits, Cost(*total), Cost(*after)):
            continue
        gone, total = [*gone, block], after
    return gone


def _overshoots(limits: Limits, before: Cost, after: Cost) -> bool:
    """True if nothing is left to save, or if a limit that is met already would be undercut."""
    if limits.holds(before):
        return True
    tight = [(limits.macs, after.macs), (limits.params, after.params)]
    return all(limit is None or found < limit for limit, found in tight)


def damages(steps: Steps, blocks: Sequence[Block], inputs: Tensor, batch: int, seed: int) -> dict[str, float]:
    """Block (module path) -> mean squared change of the output, to first order, when its branches give zero.

    Args:
        steps: of the network.
        blocks: to look at.
        inputs: (N, ...).
        batch: inputs at a time.
        seed: of the random signs.
    """
    nodes = {node.name: node for node in steps.nodes}
    generator = torch.Generator().manual_seed(seed)
    squares = dict.fromkeys((block.path for block in blocks), 0.0)
    names = [(block.path, name, position) for block in blocks for name, position in block.sums.items()]
    trained = [tensor for name, tensor in steps.parameters.items() if name.endswith("weight")]
    for tensor in trained:
        tensor.requires_grad_(True)
    for x in inputs.split(batch):
        with torch.enable_grad():
            environment = steps.start((x,))
            steps.run(environment, steps.nodes)
            output = environment[steps.output]
            value = (output * signs_like(output, generator)).sum()
            gradients = torch.autograd.grad(value, [environment[name] for _, name, _ in names])
        moved: dict[str, Tensor] = {}
        for (path, name, position), gradient in zip(names, gradients, strict=True):
            branch = nodes[name].args[position]
            assert isinstance(branch, fx.Node)
            change = (gradient * environment[branch.name].detach()).flatten(1).sum(1)
            moved[path] = moved.get(path, torch.zeros_like(change)) + change
        for path, change in moved.items():
            squares[path] += float(change.double().square().sum())
    for tensor in trained:
        tensor.requires_grad_(False)
    return {path: total / len(inputs) for path, total in squares.items()}


def _rebuild(
    model: nn.Module,
    original: nn.Module,
    network: Network,
    dependencies: Dependencies,
    gone: Sequence[Block],
    inputs: Tensor,
    batch: int,
    iterations: int,
    context: Context,
) -> None:
    """Rebuild ``model``, which has lost ``gone``, in place against ``original``."""
    folded, _ = fold_batch_norm(original, network)
    traced = trace(folded, (inputs[:2],))
    sums = {name: position for block in gone for name, position in block.sums.items()}

    def bypass(graph: fx.Graph) -> None:
        for node in graph.nodes:
            if node.name in sums:
                node.target, node.kwargs = torch.ops.aten.alias.default, {}
                node.args = (node.args[1 - sums[node.name]],)

    whole = Steps.of(traced).to(context.device)
    passing = Steps.of(traced, bypass).to(context.device)
    kept = Kept(dependencies, frozenset())
    cut = _merged(segments(whole, kept), whole, set(sums))
    inside = tuple(f"{block.path}." for block in gone)
    weights = {name for name in whole.parameters if not name.startswith(inside)}
    by_weight = readers(passing, dependencies, weights)
    rebuild(
        Pair(whole, passing, kept),
        cut,
        {name: each for name, each in by_weight.items() if len(each) == 1 and _feeds_sum(each[0].node)},
        inputs.to(context.device),
        iterations=iterations,
        generator=torch.Generator().manual_seed(context.seed),
        progress=context.progress,
        batch=batch,
    )
    pairs, _ = foldable(original, network)
    left = {norm: layer for norm, layer in pairs.items() if not norm.startswith(inside)}
    seen = as_in_training(context.data, inputs.to(context.device), context.generator)
    write_back(model, left, passing, seen, batch)


def _feeds_sum(node: fx.Node) -> bool:
    return len(node.users) == 1 and next(iter(node.users)).target is torch.ops.aten.add.Tensor


def _holds(steps: Steps, segment: Segment, names: set[str]) -> bool:
    return any(node.name in names for node in steps.nodes[segment.first : segment.last + 1])


def _merged(cut: Sequence[Segment], steps: Steps, names: set[str]) -> tuple[Segment, ...]:
    """The segments, each that holds one of ``names`` joined to the one before, which can make up for it."""
    found: list[Segment] = []
    for segment in cut:
        if found and _holds(steps, segment, names):
            before = found.pop()
            segment = Segment(before.first, segment.last, before.entry, segment.exit)
        found.append(segment)
    return tuple(found)
