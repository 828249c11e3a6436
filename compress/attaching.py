"""``compress.attach``: prune or quantize inside a user's own training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from compress.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compress.prune.ranking import Criterion
    from compress.prune.schedule import Schedule
    from compress.prune.session import Session as PruningSession
    from compress.quantize.session import Session as QuantizingSession
    from compress.types import Target

QUANTIZES = frozenset({"weight_bits", "activation_bits"})
PRUNES = frozenset({"macs", "params"})


@overload
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
) -> PruningSession: ...


@overload
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
    warmup: float = 0.5,
    progressive: bool = False,
    seed: int = 0,
) -> QuantizingSession: ...


def attach(model: nn.Module, optimizer: torch.optim.Optimizer, **asked: Any) -> PruningSession | QuantizingSession:
    """Prune or quantize ``model`` while it is trained with ``optimizer``.

    ::

        with compress.attach(model, optimizer, steps=epochs * len(loader), macs=0.5) as session:
            for x, y in loader: ...; session.step()        # in place of optimizer.step()
        small = session.result()

    With ``macs=`` or ``params=`` it prunes: see :func:`compress.prune.attach.attach` for its arguments. With
    ``weight_bits=`` or ``activation_bits=`` it quantizes: see :func:`compress.quantize.attach.attach`.

    Raises:
        BadInput: both are asked for, or neither; and what either raises.
    """
    given = {name for name, value in asked.items() if value is not None}
    if given & QUANTIZES and given & PRUNES:
        raise BadInput(
            "attach() prunes (macs=, params=) or quantizes (weight_bits=, activation_bits=), one after the other: "
            "attach again, to the pruned session.result().model"
        )
    if given & QUANTIZES:
        from compress.quantize.attach import attach as quantizing

        return quantizing(model, optimizer, **asked)
    if not given & PRUNES:
        raise BadInput(
            "attach() needs macs= or params=, the fraction to keep (half is 0.5), or weight_bits= or activation_bits="
        )
    from compress.prune.attach import attach as pruning

    return pruning(model, optimizer, **asked)
