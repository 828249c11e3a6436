"""Pruning by one call from Python."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from compress import data as datasets
from compress import targets
from compress.errors import BadData, BadInput, UnknownName
from compress.graph import costs
from compress.graph.module import in_evaluation_mode
from compress.graph.trace import Network, shape, trace
from compress.prune import roster
from compress.prune.goal import Goal
from compress.prune.protect import Protect
from compress.prune.recall import Recall, class_indices, recall
from compress.prune.shares import with_amounts
from compress.types import Budget, Context, Note, Plan, Record, Size, State, Target


@dataclass(frozen=True)
class Pruned:
    """What :func:`prune` returns.

    Attributes:
        model: the smaller network, of the user's own class; the one that was given is unchanged.
        plan: which channels of which layer stay.
        report: sizes before and after, and what was left alone and why.
        state: model and plan as the stages of :mod:`compress.quantize` and the exporters take them.
        recall: by class, before and after, on the evaluation split of ``data`` (``data`` itself where it isn't
            divided), or on ``Context.samples`` inputs of it where no class is protected; None without class labels.
    """

    model: nn.Module
    plan: Plan
    report: Record
    state: State
    recall: Recall | None = None


def prune(
    model: nn.Module,
    example_inputs: torch.Tensor | tuple[torch.Tensor, ...],
    *,
    macs: float | None = None,
    params: float | None = None,
    budget: Budget | None = None,
    target: Target | str | None = None,
    method: str | None = None,
    data: Any = None,
    skip: Sequence[str] | str = (),
    protect_classes: Sequence[int | str] = (),
    seed: int = 0,
    amounts: str | None = None,
) -> Pruned:
    """Remove channels from a network until it is as small as asked.

    Args:
        model: any traceable module with one input.
        example_inputs: one batch (N, ...), N at least 1: images (N, C, H, W), or what else the network takes.
        macs, params: fractions of the multiply-accumulates and parameters to keep, in (0, 1].
        budget: gives ``macs`` and ``params`` where they aren't given, and limits for the latency and RAM
            that the target's models predict for the float network.
        target: channel counts become multiples of what this device likes; None for any count.
        method: one of ``compress.prune.roster.METHODS``; None for the best.
        data: calibration data, a DataLoader, an (inputs, labels) pair or a generator of batches; with it,
            batch norms are estimated anew for the smaller network. Inputs that aren't images are taken as they are.
        skip: module paths of layers whose channels stay, or one path.
        protect_classes: classes (names or indices) whose recall on the training inputs must not fall; needs
            ``data`` with labels. See :mod:`compress.prune.protect` for what it costs the others.
        seed: the source of all randomness.
        amounts: how much goes from where, one of ``compress.prune.shares.AMOUNTS``; None for the
            method's own choice.

    Raises:
        BadInput: a fraction outside (0, 1], an unknown method or layer, a network in which nothing can
            be pruned or not so much; the least reachable is named.
        Untraceable: the network can't be traced.
    """
    budget = budget or Budget()
    macs, params = macs if macs is not None else budget.macs, params if params is not None else budget.params
    fractions(macs=macs, params=params)
    if all(limit is None for limit in (macs, params, budget.latency_s, budget.ram_bytes)):
        raise BadInput("prune() needs macs=, params= or a budget with macs, params, latency_s or ram_bytes")
    if target is None and (budget.latency_s is not None or budget.ram_bytes is not None):
        raise BadInput("a budget of latency or RAM is a device's: give target= too")
    chosen = method or (roster.DEFAULT if data is not None else roster.WITHOUT_DATA)
    if chosen not in roster.METHODS:
        raise UnknownName("pruning method", chosen, roster.METHODS)
    if not isinstance(model, nn.Module):
        raise BadInput(
            f"model= takes a torch.nn.Module, not {type(model).__name__}; compress.models.load loads by name"
        )
    wide = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()} - {torch.float32}
    if wide:
        raise BadInput(f"the network's parameters are {', '.join(map(str, wide))}; give float32, model.float()")
    model = in_evaluation_mode(model)
    inputs = _one(example_inputs)
    _runs(model, inputs)
    network = trace(model, (inputs,))
    skip = skipped(skip, network)
    device = targets.load("cpu") if target is None else targets.load(target) if isinstance(target, str) else target
    if target is None:
        device = replace(device, channel_multiple=1)
    dataset = _dataset(inputs if data is None else data, inputs)
    context = Context(device, budget, dataset, torch.Generator().manual_seed(seed), seed=seed)
    told_apart = shape(network.outputs()[0]) if network.outputs() else ()
    if dataset.task == "classification" and len(told_apart) == 2 and told_apart[1] < len(dataset.classes):
        raise BadData(
            dataset.name,
            f"it has {len(dataset.classes)} classes, the network tells {told_apart[1]} apart",
            "give the data that the network was trained for",
        )
    protected = class_indices(protect_classes, dataset, "protect_classes")
    goal = Goal(macs, params, budget.latency_s, budget.ram_bytes, tuple(skip), protected, data is not None)
    stage = roster.METHODS[chosen](goal)
    if amounts is not None:
        stage = with_amounts(stage, amounts)
    before = costs.size(network)
    start = time.perf_counter()
    state = stage(State(model, Plan(seed=seed)), context)
    state = Protect(goal.protect_classes)(state, replace(context, teacher=model))
    seconds = time.perf_counter() - start
    after = costs.size(trace(state.model, (inputs,)))
    notes = (*state.notes, *_unmet(goal, before, after, state.notes))
    report = Record(chosen, {"macs": macs, "params": params, "skip": list(skip)}, seconds, before, after, notes)
    state = replace(state, records=(report,), notes=notes)
    most = None if protected else context.samples
    found = recall(model, state.model, dataset, protected, most=most, seed=seed) if data is not None else None
    return Pruned(state.model, state.plan, report, state, found)


def fractions(**shares: float | None) -> None:
    """Check fractions that are to be kept, by the names of the arguments that gave them.

    Raises:
        BadInput: one is no number in (0, 1].
    """
    for name, share in shares.items():
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if share is not None and not (number and 0 < share <= 1):
            given = f"{share:g}" if number else repr(share)
            raise BadInput(f"{name}={given}: a fraction kept lies in (0, 1]; half is 0.5")


def skipped(skip: Sequence[str] | str, network: Network) -> tuple[str, ...]:
    """The layers whose channels stay.

    Raises:
        UnknownName: the network has no layer of that name.
    """
    names = (skip,) if isinstance(skip, str) else tuple(skip)
    layers = {operator.path for operator in costs.layer_operators(network)}
    for name in names:
        if name not in layers:
            raise UnknownName("layer", name, sorted(layers), "skip= takes paths of convolutions and linear layers")
    return names


def _runs(model: nn.Module, inputs: torch.Tensor) -> None:
    """Run the network on the example, or on its first input alone, so that a wrong shape is told as one."""
    first: Exception | None = None
    for x in (inputs, inputs[:1]):
        try:
            with torch.no_grad():
                model(x)
            return
        except Exception as error:  # the user's own code may raise anything
            first = first or error
    why = next(iter(str(first).splitlines()), "") or type(first).__name__
    raise BadInput(
        f"the network doesn't run on example_inputs of shape {' x '.join(map(str, inputs.shape))}: {why[:200]}; "
        "give one batch of what it takes, the batch first"
    ) from first


def _unmet(goal: Goal, before: Size, after: Size, notes: Sequence[Note]) -> tuple[Note, ...]:
    """A note where the traced result is more than 2% off what was asked for and no note of the method says why."""
    found = []
    for what, asked, share in (
        ("MACs", goal.macs, after.macs / max(1, before.macs)),
        ("parameters", goal.params, after.params / max(1, before.params)),
    ):
        alone = sum(each is not None for each in (goal.macs, goal.params, goal.latency_s, goal.ram_bytes)) == 1
        if asked is None or abs(share - asked) <= 0.02 * asked or any(note.what == what for note in notes):
            continue
        if share > asked or alone:
            why = "what its operators cost doesn't fall in proportion to their channels"
            found.append(Note("", what, f"{share:.3f} are kept where {asked:g} was asked for: {why}"))
    return tuple(found)


def _dataset(data: Any, inputs: torch.Tensor) -> datasets.Data:
    """The data set for a network that takes ``inputs``: of images, or of whatever else these are."""
    if isinstance(data, datasets.Data):
        dataset = data
    elif inputs.dim() == 4 and inputs.is_floating_point():
        dataset = datasets.from_python(data, divisible=False)
    else:
        return datasets.from_tensors(data, inputs)
    given = dataset.train.inputs(1, torch.Generator().manual_seed(0)).shape[1:]
    if given != inputs.shape[1:]:
        raise BadData(
            dataset.name,
            f"its inputs are {' x '.join(map(str, given))}, the example is {' x '.join(map(str, inputs.shape[1:]))}",
            "give data and example_inputs of one shape",
        )
    return dataset


def _one(example_inputs: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    if isinstance(example_inputs, torch.Tensor):
        return example_inputs
    if not isinstance(example_inputs, (tuple, list)) or not all(isinstance(x, torch.Tensor) for x in example_inputs):
        raise BadInput(
            f"example_inputs takes a tensor or a tuple of one, not {type(example_inputs).__name__}; "
            "torch.from_numpy makes one of an array"
        )
    if len(example_inputs) != 1:
        raise BadInput(
            f"prune() takes networks with one input, example_inputs has {len(example_inputs)}; "
            "wrap the network in a module that takes one tensor and splits it"
        )
    return example_inputs[0]
