"""Training loops for the tests of pruning while training: small networks on random images."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.prune.session import Session
from tests.graph.networks import images

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3, weight_decay=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3),
}
STEPS = 24


def loss_of(model: nn.Module, number: int = 0) -> Tensor:
    """Cross-entropy of the mean over space on the same random batch of 16, or of another ``number``."""
    output = model(images(16, 100 + number))
    logits = output.mean((2, 3)) if output.ndim == 4 else output
    return F.cross_entropy(logits, torch.arange(16) % logits.shape[1])


def train(model: nn.Module, session: Session, steps: int = STEPS, first: int = 0) -> list[float]:
    """Take ``steps`` steps, on batches that take turns; the losses."""
    losses = []
    model.train()
    for number in range(first, first + steps):
        session.zero_grad()
        loss = loss_of(model, number % 3)
        loss.backward()
        session.step()
        losses.append(float(loss.detach()))
    return losses
