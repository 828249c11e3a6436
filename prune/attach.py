"""Pruning while training: a session beside an optimizer (``compress.attach``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from compress import targets
from compress.errors import BadInput, UnknownName
from compress.prune.ap import Activating
from compress.prune.goal import Goal
from compress.prune.ranking import Criterion
from compress.prune.saliency import NAMES
from compress.prune.schedule import Schedule
from compress.prune.session import Session
from compress.types import Target


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int | None = None,
    macs: float | None = None,
    params: float | None = None,
    target: Target | str | None = None,
    example_inputs: torch.Tensor | tuple[torch.Tensor, ...] | None = None,
    skip: Sequence[str] = (),
    criterion: str | Criterion = "saliency",
    schedule: Schedule | None = None,
    seed: int = 0,
) -> Session:
    """Prune ``model`` while it is trained with ``optimizer``, by OTOv2's dual half-space projected gradients.

    ::

        with compress.attach(model, optimizer, steps=epochs * len(loader), macs=0.5) as session:
            for x, y in loader: ...; session.step()        # in place of optimizer.step()
        small = session.result().model

    Args:
        model: any traceable module with one input, in training or about to be; it stays as large as it is, its
            redundant channels become exactly zero.
        optimizer: of torch, holding the model's parameters; its own step is taken, with its learning rates,
            momenta and weight decay.
        steps: optimizer steps of the whole training run: ``epochs * len(loader)``, with gradients accumulated
            over k batches a k-th of it.
        macs, params: fractions of the multiply-accumulates and parameters to keep, in (0, 1].
        target: channel counts become multiples of what this device likes; None for any count.
        example_inputs: one batch, (N, ...); by default the first batch that the model is called with.
        skip: module paths of layers whose channels stay.
        criterion: which units go: ``"saliency"``, ``"magnitude"``, ``"taylor"``
            (:mod:`compress.prune.saliency`), any criterion of :mod:`compress.prune.ranking`, whose context holds
            the example inputs as data, or :class:`compress.prune.ap.Activating` around either.
        schedule: when they go; with it ``steps`` isn't needed.
        seed: the source of all randomness.

    Raises:
        BadInput: a fraction outside (0, 1], no number of steps, an optimizer that doesn't hold the model's
            parameters; and with ``example_inputs`` at once, else at the first step, what
            :func:`compress.prune.prune` raises.
    """
    for name, share in (("macs", macs), ("params", params)):
        if share is not None and not 0 < share <= 1:
            raise BadInput(f"{name}={share:g}: a fraction kept lies in (0, 1]; half is 0.5")
    if macs is None and params is None:
        raise BadInput("attach() needs macs= or params=, the fraction to keep; half is 0.5")
    if schedule is None:
        if steps is None:
            raise BadInput("attach() needs steps=, the optimizer steps of the whole run: epochs * len(loader)")
        schedule = Schedule(steps)
    elif steps is not None and steps != schedule.steps:
        raise BadInput(f"steps={steps}, but the schedule has {schedule.steps}; give one of them")
    named = criterion.criterion if isinstance(criterion, Activating) else criterion
    if isinstance(named, str) and named not in NAMES:
        raise UnknownName("criterion", named, NAMES, "or give a function of compress.prune.ranking's form")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise BadInput(f"optimizer= takes a torch.optim.Optimizer, not {type(optimizer).__name__}")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    known = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in known for group in optimizer.param_groups for parameter in group["params"]):
        raise BadInput("the optimizer holds none of the model's parameters; make it from model.parameters()")
    device = targets.load("cpu") if target is None else targets.load(target) if isinstance(target, str) else target
    if target is None:
        device = replace(device, channel_multiple=1)
    example = example_inputs[0] if isinstance(example_inputs, tuple) else example_inputs
    session = Session(model, optimizer, Goal(macs, params, skip=tuple(skip)), device, criterion, schedule, seed)
    if example is not None:
        session.prepare(example)
    return session
