"""Pruning with reconstruction: remove what the rest can make up for, and make up for it.

1. For every group, units are eliminated backwards with the exact increase of their readers' squared
   error (:mod:`compress.prune.elimination`), on the original network's activations.
2. The curves so found are scaled to what the removals do to the network's output, to first order
   (:mod:`compress.prune.sensitivity`), which makes groups comparable.
3. Amounts minimize the sum of the curves under the goal (:mod:`compress.prune.allocation`).
4. The smaller network is rebuilt against the original, segment by segment (:mod:`compress.prune.refit`).

Labels are never looked at. The selection is that of optimal brain surgery for whole units (Hassibi and
Stork 1993; for layers Dong et al., *Layer-wise Optimal Brain Surgeon*, NeurIPS 2017), the rebuilding in
the spirit of He et al., *Channel Pruning*, ICCV 2017 (least squares) and Li et al., *BRECQ*, ICLR 2021
(segments); the sensitivity with its cross terms and the joint allocation are our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from compress.graph.attention import with_plain_attention
from compress.graph.fold import fold_batch_norm, foldable
from compress.graph.groups import CONSUMES, Dependencies, Group, Unit
from compress.graph.interpret import Steps, affordable, probe_batch
from compress.graph.moments import Reader, collect, readers
from compress.graph.segments import Kept, segments
from compress.graph.surgery import planned, remove
from compress.graph.trace import Network, argument, kind
from compress.graph.traces import traced
from compress.prune.allocation import allocate, path
from compress.prune.amounts import undershoot
from compress.prune.counter import Counter
from compress.prune.elimination import Problem, eliminate
from compress.prune.goal import Goal, Measure
from compress.prune.known import calibration_inputs, known
from compress.prune.norm import magnitude
from compress.prune.outlook import Outlook
from compress.prune.prunable import prunable
from compress.prune.recalibrate import as_in_training
from compress.prune.refit import BATCH_SIZE, Pair, rebuild
from compress.prune.sensitivity import IMAGES, Probes, curve
from compress.prune.write_back import write_back
from compress.types import Context, Note, State

CHECKPOINTS = (0.93, 0.8, 0.65, 0.5, 0.35, 0.2, 0.08)
"""Shares of a group's units at which its curve is measured."""


@dataclass(frozen=True, slots=True)
class Reconstruct:
    """Prune until ``goal`` is met and rebuild with ``iterations`` of descent a segment.

    0 leaves it at least squares, and so does a goal that says that fine-tuning follows.
    """

    goal: Goal
    iterations: int = 60
    label: ClassVar[str] = "prune with reconstruction"

    def __call__(self, state: State, context: Context) -> State:
        """The state with a smaller network and the plan that says which channels stay."""
        study = study_of(state.model, self.goal, context)
        network, dependencies = study.network, study.dependencies
        counter = Counter.of(network, dependencies, context.target, self.goal)
        notes = state.notes + dependencies.left_alone + network.notes
        kept = allocate(counter, self.goal, context.target.channel_multiple, [each.errors for each in study.paths])
        if kept == counter.all_units:
            return replace(state, notes=tuple(dict.fromkeys(notes)))
        units = [
            group.units[i]
            for group, each, stays in zip(dependencies.groups, study.paths, kept, strict=True)
            for i in each.order[: len(group.units) - stays]
        ]
        model = remove(state.model, dependencies, units)
        left = Kept(dependencies, frozenset(unit.label for unit in units))
        notes += _rebuilt(model, study, left, 0 if self.goal.tuned_after else self.iterations, context)
        if study.unread:
            why = "ranked by magnitude: what reads them can't be refitted"
            notes += tuple(Note(name, "channels", why) for name in study.unread)
        if not self.goal.sees_data:
            notes += (Note("", "calibration", "rebuilt on the example inputs alone; give data= for a better network"),)
        notes += undershoot(counter, self.goal, kept, context.target.channel_multiple)
        plan = planned(state.plan, dependencies, units)
        return replace(state, model=model, plan=plan, notes=tuple(dict.fromkeys(notes)))

    def outlook(self, state: State, context: Context, measure: Measure) -> Iterator[Outlook]:
        """See :func:`compress.prune.outlook.outlook`: the damage is the sum of the curves."""
        study = study_of(state.model, self.goal, context)
        yield from looks(study, study.network, study.dependencies, self.goal, context, measure)


@dataclass(frozen=True)
class _Path:
    """The order in which a group's units go, and the error when 0, 1, ... are gone."""

    order: tuple[int, ...]
    errors: np.ndarray


@dataclass(frozen=True)
class Study:
    """What is known of a network before anything is removed; the same for every goal.

    Attributes:
        model: the network, which is kept so that no other one can be taken for it.
        network, dependencies: its trace and its groups.
        whole: the traced network with its batch norms folded.
        inputs: calibration inputs, as many as memory holds.
        batch: how many run at a time.
        paths: one a group.
        unread: groups whose readers can't be refitted.
    """

    model: nn.Module
    network: Network
    dependencies: Dependencies
    whole: Steps
    inputs: Tensor
    batch: int
    paths: tuple[_Path, ...]
    unread: tuple[str, ...]


def looks(
    study: Study, network: Network, dependencies: Dependencies, goal: Goal, context: Context, measure: Measure
) -> Iterator[Outlook]:
    """What is kept of ``network``, from all of it to the least, by the curves of ``study``.

    Args:
        study: of a network.
        network, dependencies: the same one's, or those of what is left of it without some blocks.
        goal: says in which precision and runtime latencies are predicted.
        context: of the run.
        measure: what networks get smaller by.
    """
    of_slot = {
        slot: each.errors
        for group, each in zip(study.dependencies.groups, study.paths, strict=True)
        for slot in group.producers
    }
    # What a block held on to may be free without it; nothing is known of that.
    groups = tuple(group for group in dependencies.groups if group.producers[0] in of_slot)
    counter = Counter.of(network, replace(dependencies, groups=groups), context.target, goal)
    curves = [of_slot[group.producers[0]] for group in groups]
    for kept, _ in path(counter, measure, context.target.channel_multiple, curves):
        gone = [units - stays for units, stays in zip(counter.all_units, kept, strict=True)]
        damage = sum(float(curve[count]) for curve, count in zip(curves, gone, strict=True))
        yield Outlook(kept, *counter.counts(kept), damage, counter.shrunk(kept), dict(counter.inputs))


def study_of(model: nn.Module, goal: Goal, context: Context) -> Study:
    """The study of ``model``, made once for all candidates of a job."""
    key = ("reconstruct", id(model), goal.skip, context.samples)
    held = known(context)
    if key not in held:
        held[key] = _study(model, goal, context)
    study: Study = held[key]
    return study


def _study(given: nn.Module, goal: Goal, context: Context) -> Study:
    model = with_plain_attention(given)
    inputs, generator = calibration_inputs(context)
    network = traced(model, (inputs[:2],), context.shared)
    dependencies = prunable(model, network, goal.skip)
    folded, _ = fold_batch_norm(model, network)
    whole = Steps.of(traced(folded, (inputs[:2],), context.shared)).to(context.device)
    batch = BATCH_SIZE if network.dynamic_batch else 1
    inputs = inputs.to(context.device)
    found = _paths(whole, dependencies, inputs, batch, generator, context)
    unread = tuple(group.name for g, group in enumerate(dependencies.groups) if g not in found)
    paths = tuple(
        found[g] if g in found else _by_magnitude(model, group, found.values())
        for g, group in enumerate(dependencies.groups)
    )
    # Statistics are streamed; rebuilding holds the activations of all its inputs.
    inputs = inputs[: affordable(network)]
    return Study(given, network, dependencies, whole, inputs, batch, paths, unread)


def _paths(
    whole: Steps,
    dependencies: Dependencies,
    inputs: Tensor,
    batch: int,
    generator: torch.Generator,
    context: Context,
) -> dict[int, _Path]:
    """The path of each group with readers that can be refitted."""
    consumed = {name for group in dependencies.groups for name, _ in group.consumers}
    by_weight = readers(whole, dependencies, consumed)
    flat = [reader for each in by_weight.values() for reader in each]
    if not flat:
        return {}
    moments = collect(whole, flat, inputs, batch, generator, context.progress)
    context.progress("measure how the output depends on each layer")
    probes = Probes(whole, flat, inputs[:IMAGES], probe_batch(whole, batch), context.seed)
    importance = probes.importance()
    paths: dict[int, _Path] = {}
    changes: dict[int, dict[int, list[tuple[Reader, Tensor]]]] = {}
    for g, group in enumerate(dependencies.groups):
        mine = [r for name, axis in group.consumers for r in by_weight.get(name, []) if r.slot == (name, axis)]
        if not mine:
            continue
        context.progress(f"eliminate channels, group {g + 1} of {len(dependencies.groups)}")
        problems = [_problem(whole, r, moments[r.node.name], importance[r.node.name], group.units) for r in mine]
        n = len(group.units)
        points = sorted({min(n - 1, max(1, round(share * n))) for share in CHECKPOINTS} if n > 1 else set())
        found = eliminate(problems, n, points)
        paths[g] = _Path(found.order, found.errors)
        changes[g] = {
            kept: [(r, new - p.weight.float()) for r, p, new in zip(mine, problems, each, strict=True)]
            for kept, each in found.refitted.items()
        }
    context.progress("measure what removals change")
    measured = probes.measured(changes)
    return {g: replace(each, errors=curve(each.errors, measured[g])) for g, each in paths.items()}


def _problem(whole: Steps, reader: Reader, moments: Tensor, importance: Tensor, units: Iterable[Unit]) -> Problem:
    weight = whole.parameters[reader.weight].detach().double().cpu()
    matrix = reader.matrix(weight)
    bias_node = argument(reader.node, "bias")
    bias = torch.zeros(weight.shape[0], dtype=torch.float64)
    if bias_node is not None and bias_node.name in whole.constants:
        bias = whole.parameters[whole.constants[bias_node.name]].detach().double().cpu()
    full = torch.cat([matrix, bias.view(reader.groups, -1, 1)], 2)
    columns = [reader.unit_columns(unit.members[reader.slot]) for unit in units]
    return Problem(full, moments, importance, torch.tensor(columns))


def _by_magnitude(model: nn.Module, group: Group, others: Iterable[_Path]) -> _Path:
    """The path of a group without readers: by magnitude, on the scale of the other groups."""
    scores = magnitude(model, group)
    order = torch.argsort(scores, stable=True)
    squares = scores[order].square().numpy()
    share = np.concatenate([[0.0], np.cumsum(squares)]) / max(float(squares.sum()), 1e-30)
    ends = [each.errors[-1] for each in others]
    return _Path(tuple(order.tolist()), share * (float(np.median(ends)) if ends else 1.0))


def _rebuilt(model: nn.Module, study: Study, kept: Kept, iterations: int, context: Context) -> tuple[Note, ...]:
    """Rebuild ``model`` in place; notes on what couldn't be."""
    whole, inputs, batch = study.whole, study.inputs, study.batch
    example = inputs[:2].cpu()
    plain = with_plain_attention(model)
    network = traced(plain, (example,), context.shared)
    folded, _ = fold_batch_norm(plain, network)
    steps = Steps.of(traced(folded, (example,), context.shared)).to(context.device)
    if [node.name for node in steps.nodes] != [node.name for node in whole.nodes]:
        return (Note("", "reconstruction", "left out: the smaller network's operators are others than the original's"),)
    lost = {
        name
        for name, tensor in steps.parameters.items()
        if name in whole.parameters and tensor.shape != whole.parameters[name].shape
    }
    by_weight = {
        name: each
        for name, each in readers(steps, kept.dependencies, lost).items()
        if steps.parameters[name].shape[CONSUMES[kind(each[0].node)]]
        != whole.parameters[name].shape[CONSUMES[kind(each[0].node)]]
    }
    cut = segments(whole, kept)
    rebuild(
        Pair(whole, steps, kept),
        cut,
        by_weight,
        inputs,
        iterations=iterations,
        generator=context.generator,
        progress=context.progress,
        batch=batch,
    )
    pairs, _ = foldable(plain, network)
    write_back(model, pairs, steps, as_in_training(context.data, inputs, context.generator), batch)
    return ()
