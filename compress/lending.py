"""A module while something runs it: its mode, where it computes, how its tensors lie in memory; and back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from compress.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from compress.data import Split


def set_mode(model: nn.Module, training: bool) -> None:
    """``model.train(training)``.

    Raises:
        BadInput: the module has no modes.
    """
    try:
        model.train(training)
    except NotImplementedError:
        raise BadInput(
            "a network that torch.export made has no modes; give it to compress.graph.module.in_evaluation_mode first, "
            "or FILE.py:factory, or --epochs 0"
        ) from None


def layout_for(
    models: Sequence[nn.Module], split: Split, device: str, run: Callable[[nn.Module, Tensor], Tensor]
) -> torch.memory_format:
    """How images lie in memory in training: on a processor channel by channel for each pixel, in which convolutions and
    what surrounds them are a fifth faster, unless a network's own ``view`` can't read that."""
    import torch

    example = split.inputs(2, torch.Generator().manual_seed(0))
    if device != "cpu" or example.dim() != 4:
        return torch.contiguous_format
    for model in models:
        try:
            with torch.no_grad(), lent(model, device, torch.channels_last):
                run(model, example.to(memory_format=torch.channels_last))
        except RuntimeError:
            return torch.contiguous_format
    return torch.channels_last


def lay_out(module: nn.Module, layout: torch.memory_format) -> None:
    """Have the tensors of four axes of ``module`` lie so."""
    module.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs don't know it


@contextmanager
def lent(module: nn.Module | None, device: str, layout: torch.memory_format | None = None) -> Iterator[None]:
    """``module`` on ``device`` in evaluation mode, its tensors in ``layout``, and back afterwards."""
    import torch

    if module is None:
        yield
        return
    was_training, home = module.training, next((p.device for p in module.parameters()), None)
    module.to(device)
    set_mode(module, False)
    try:
        if layout is not None:
            lay_out(module, layout)
        yield
    finally:
        if layout is not None:
            lay_out(module, torch.contiguous_format)
        if home is not None:
            module.to(home)
        if was_training:
            set_mode(module, True)
