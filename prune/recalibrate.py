"""Batch-norm statistics of a network that has lost channels, estimated anew."""

from __future__ import annotations

import torch
from torch import nn


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
