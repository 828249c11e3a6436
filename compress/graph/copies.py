"""Deep copies of modules."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of a module that holds tensors it computed (``torch.nn.utils.weight_norm``)."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)
