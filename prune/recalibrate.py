"""Batch-norm statistics of a network that has lost channels, estimated anew."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.data import Data


def as_in_training(data: Data, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """As many training inputs as ``inputs`` has, changed at random by ``data.augment``; without one, ``inputs``.

    A network's statistics are of what it was trained on. The black borders that a random crop leaves change them so
    much that those of unchanged images cost ResNet-20 on CIFAR-10 3 points with nothing removed: at once where they
    are estimated anew, and where what the network computes is kept, as soon as training goes on.

    Args:
        data: of the network's training.
        inputs: some of its training inputs (N, ...), unchanged.
        generator: which inputs are taken, and how they change.
    """
    if data.augment is None or not len(inputs):
        return inputs
    changed, _ = next(iter(data.train.batches(len(inputs), generator, str(inputs.device), data.augment)))
    return changed


def recalibrate(model: nn.Module, inputs: torch.Tensor, batch: int = 128) -> None:
    """Estimate the statistics of every batch norm of ``model`` anew on ``inputs`` (N, ...), in place.

    With fewer than two inputs nothing changes, as one input has no variance over a batch.
    """
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    if not norms or len(inputs) < 2:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    device = next(model.parameters()).device
    with torch.no_grad():
        for x in inputs.split(batch):
            if len(x) > 1:
                model(x.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
