"""Leave residual blocks out, and rebuild what is left against the original network's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compress.graph.blocks import Block
from compress.graph.costs import layer_operators
from compress.graph.fold import fold_batch_norm, foldable
from compress.graph.groups import Dependencies, find
from compress.graph.interpret import Steps, affordable
from compress.graph.moments import readers
from compress.graph.segments import Kept, Segment, segments
from compress.graph.surgery import proven, remove_blocks
from compress.graph.trace import Network
from compress.graph.traces import traced
from compress.prune.block_worth import followed, lasting_damages
from compress.prune.counter import Counter
from compress.prune.known import calibration_inputs, known
from compress.prune.recalibrate import as_in_training
from compress.prune.refit import BATCH_SIZE, Pair, rebuild
from compress.prune.write_back import write_back
from compress.types import Context


@dataclass(frozen=True)
class BlockStudy:
    """What is known of a network's blocks before one is left out.

    Attributes:
        model: the network, which is kept so that no other one can be taken for it.
        network, dependencies: its trace and its groups.
        blocks: those that may go, in the order of execution.
        folded: the trace with its batch norms folded.
        inputs: calibration inputs, as many as memory holds.
        batch: how many run at a time.
        damage, follows: see :mod:`compress.prune.block_worth`.
        macs, params, elements: of the layers of each block; elements are those of their outputs.
    """

    model: nn.Module
    network: Network
    dependencies: Dependencies
    blocks: tuple[Block, ...]
    folded: Network
    inputs: Tensor
    batch: int
    damage: Mapping[str, float]
    follows: Mapping[str, str]
    macs: Mapping[str, int]
    params: Mapping[str, int]
    elements: Mapping[str, int]


def study(model: nn.Module, skip: Sequence[str], context: Context) -> BlockStudy:
    """The study of ``model``, made once for all candidates of a job; layers in ``skip`` keep their blocks."""
    key = ("blocks", id(model), tuple(skip), context.samples)
    held = known(context)
    if key not in held:
        held[key] = _study(model, skip, context)
    found: BlockStudy = held[key]
    return found


def _study(model: nn.Module, skip: Sequence[str], context: Context) -> BlockStudy:
    inputs, _ = calibration_inputs(context)
    network = traced(model, (inputs[:2],), context.shared)
    dependencies = proven(model, find(network))
    blocks = tuple(block for block in dependencies.blocks if not set(skip) & set(block.layers))
    inputs = inputs[: affordable(network)].to(context.device)
    batch = BATCH_SIZE if network.dynamic_batch else 1
    folded, damage, follows = network, dict[str, float](), dict[str, str]()
    if blocks:
        context.progress("measure what each block does to the output")
        folded = traced(fold_batch_norm(model, network)[0], (inputs[:2].cpu(),), context.shared)
        steps = Steps.of(folded).to(context.device)
        damage = lasting_damages(steps, blocks, inputs, batch, context.seed)
        follows = followed(steps, blocks)
    operators = {b.path: [o for o in layer_operators(network) if o.path in b.layers] for b in blocks}
    return BlockStudy(
        model,
        network,
        dependencies,
        blocks,
        folded,
        inputs,
        batch,
        damage,
        follows,
        {path: sum(o.macs for o in each) for path, each in operators.items()},
        {path: sum(o.params for o in each) for path, each in operators.items()},
        {path: sum(o.output_elements for o in each) for path, each in operators.items()},
    )


def without(found: BlockStudy, gone: Sequence[Block], iterations: int, context: Context) -> nn.Module:
    """A copy of the network without ``gone``, rebuilt with ``iterations`` of descent a segment; made once a job."""
    key = ("without blocks", id(found.model), tuple(block.path for block in gone), iterations, context.samples)
    held = known(context)
    if key not in held:
        model = remove_blocks(found.model, gone)
        if gone:
            _rebuild(model, found, gone, iterations, context)
        held[key] = found.model, model.eval()
    smaller: nn.Module = held[key][1]
    return smaller


def counts(found: BlockStudy, gone: Sequence[Block], context: Context) -> tuple[float, int]:
    """(Multiply-accumulates, parameters) of the network without ``gone``; counted once a job."""
    key = ("counts without blocks", id(found.model), tuple(block.path for block in gone))
    held = known(context)
    if key not in held:
        network = found.network
        if gone:
            network = traced(remove_blocks(found.model, gone), (found.inputs[:2].cpu(),), context.shared)
        counter = Counter.of(network, find(network))
        held[key] = found.model, counter.counts(counter.all_units)
    numbers: tuple[float, int] = held[key][1]
    return numbers


def _rebuild(model: nn.Module, found: BlockStudy, gone: Sequence[Block], iterations: int, context: Context) -> None:
    """Rebuild ``model``, which has lost ``gone``, in place against the original."""
    inputs, dependencies = found.inputs, found.dependencies
    sums = {name: position for block in gone for name, position in block.sums.items()}
    whole = Steps.of(found.folded).to(context.device)
    passing = Steps.of(found.folded, _bypassing(sums)).to(context.device)
    kept = Kept(dependencies, frozenset())
    inside = tuple(f"{block.path}." for block in gone)
    weights = {name for name in whole.parameters if not name.startswith(inside)}
    by_weight = readers(passing, dependencies, weights)
    rebuild(
        Pair(whole, passing, kept),
        _merged(segments(whole, kept), whole, set(sums)),
        {name: each for name, each in by_weight.items() if len(each) == 1 and _feeds_sum(each[0].node)},
        inputs,
        iterations=iterations,
        generator=torch.Generator().manual_seed(context.seed),
        progress=context.progress,
        batch=found.batch,
    )
    pairs, _ = foldable(found.model, found.network)
    stay = {norm: layer for norm, layer in pairs.items() if not norm.startswith(inside)}
    generator = torch.Generator().manual_seed(context.seed)
    write_back(model, stay, passing, as_in_training(context.data, inputs, generator), found.batch)


def _bypassing(sums: Mapping[str, int]) -> Callable[[fx.Graph], None]:
    """Makes the additions in ``sums`` pass on the operand that isn't at the position given."""

    def bypass(graph: fx.Graph) -> None:
        for node in graph.nodes:
            if node.name in sums:
                node.target, node.kwargs = torch.ops.aten.alias.default, {}
                node.args = (node.args[1 - sums[node.name]],)

    return bypass


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


__all__ = ["BlockStudy", "counts", "study", "without"]
