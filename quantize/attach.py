"""Quantization-aware training inside a user's own loop (``compress.attach`` with ``weight_bits=``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compress import data as datasets
from compress import targets
from compress.errors import BadInput, UnknownName
from compress.quantize import roster
from compress.quantize.mixed import default_activation_bits, integer_precisions
from compress.quantize.session import Asked, Session
from compress.types import Target

WARMUP = 0.5
"""Share of the steps that train in float before the network is quantized."""


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int | None = None,
    weight_bits: float | None = None,
    activation_bits: int | None = None,
    target: Target | str | None = None,
    data: Any = None,
    method: str | None = None,
    warmup: float = WARMUP,
    progressive: bool = False,
    seed: int = 0,
) -> Session:
    """Train ``model`` with ``optimizer`` as the quantized network that is exported.

    ::

        with compress.attach(model, optimizer, steps=epochs * len(loader), weight_bits=4) as session:
            for x, y in loader: ...; session.step()        # in place of optimizer.step()
        quantized = session.result()

    In the warm-up the network trains in float. Then it is quantized once, and trained on with straight-through
    rounding and learned scales. Batch norms are folded from there on: their running statistics stay what they are,
    their parameters train. Dropout is off from there on.

    Args:
        model: any traceable module with one input and one output tensor, called with the tensor by position. Inside
            the ``with`` block it computes the quantized network after the warm-up, in both modes; hooks of its
            submodules aren't called then.
        optimizer: of torch, holding the model's parameters; its own step is taken. The scales aren't in it: they
            follow its learning rate.
        steps: optimizer steps of the whole training run: ``epochs * len(loader)``.
        weight_bits: average over all layers' weights, in [1, 8]; 8 by default.
        activation_bits: bits of activations; 8 by default.
        target: whose precisions are allowed, and whether activations are signed; this machine by default.
        data: what to calibrate on, in any form that :func:`compress.quantize.quantize` takes. By default the last 1,024
            inputs that the model was trained on in the warm-up, which needs no second look at the data; give it where
            these are few or augmented beyond what the network will meet.
        method: one of ``compress.quantize.roster.METHODS``; None for the best for what was asked.
        warmup: share of the steps that train in float, in [0, 1); at least one step without ``data``. The network
            should be nearly trained by then: its batch norms no longer normalize from there on, so a learning rate
            that is fit for a start would undo what it learned. 0.1 is enough for a network that comes trained.
        progressive: quantize the weights one block after the other (:mod:`compress.quantize.progressive`).
        seed: the source of all randomness.

    Raises:
        BadInput: bits outside their range, no number of steps, an optimizer that doesn't hold the model's parameters;
            when the warm-up is over, what :func:`compress.quantize.quantize` raises.
    """
    if steps is None or steps < 1:
        raise BadInput("attach() needs steps=, the optimizer steps of the whole run: epochs * len(loader)")
    bits = 8.0 if weight_bits is None else float(weight_bits)
    if not 1 <= bits <= 8:
        raise BadInput(f"weight_bits={bits:g}: integer weights have 1 to 8 bits; leave the network as it is for float")
    if not 0 <= warmup < 1:
        raise BadInput(f"warmup={warmup:g}: a share of the steps lies in [0, 1); a tenth is 0.1")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise BadInput(f"optimizer= takes a torch.optim.Optimizer, not {type(optimizer).__name__}")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise BadInput(f"quantization doesn't train inside {type(model).__name__}; attach to the module on one device")
    known = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in known for group in optimizer.param_groups for parameter in group["params"]):
        raise BadInput("the optimizer holds none of the model's parameters; make it from model.parameters()")
    chosen = method or (roster.DEFAULT if bits < 8 else "uniform")
    if chosen not in roster.METHODS:
        raise UnknownName("quantization method", chosen, roster.METHODS)
    device = target if isinstance(target, Target) else targets.load(target or "cpu")
    wide = default_activation_bits(device) if activation_bits is None else activation_bits
    integer_precisions(device, wide)
    first = round(warmup * steps)
    asked = Asked(bits, wide, chosen, steps, first if data is not None else max(1, first), progressive, device, seed)
    given = datasets.from_python(data, divisible=False) if data is not None else None
    return Session(model, optimizer, asked, given)
