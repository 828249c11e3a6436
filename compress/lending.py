"""A module while something runs it: its mode and where it computes; and back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from compress.errors import BadInput

if TYPE_CHECKING:
    from torch import nn


def set_mode(model: nn.Module, training: bool) -> None:
    """``model.train(training)``.

    Raises:
        BadInput: the module, or one in it, has no modes.
    """
    from torch import fx

    try:
        model.train(training)
    except NotImplementedError:
        # torch.export's own: the modules that it hands out refuse train() and eval() so. Anybody else's goes on.
        if not any(isinstance(module, fx.GraphModule) for module in model.modules()):
            raise
        raise BadInput(
            "a network that torch.export made has no modes; give it to compress.graph.module.in_evaluation_mode first, "
            "or FILE.py:factory, or --epochs 0"
        ) from None


@contextmanager
def lent(module: nn.Module | None, device: str) -> Iterator[None]:
    """``module`` on ``device`` in evaluation mode, and back afterwards."""
    if module is None:
        yield
        return
    was_training, home = module.training, next((p.device for p in module.parameters()), None)
    module.to(device)
    set_mode(module, False)
    try:
        yield
    finally:
        if home is not None:
            module.to(home)
        if was_training:
            set_mode(module, True)
