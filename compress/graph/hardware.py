"""Layers whose weights are in hardware, such as the patterns of a sensing layer: what compresses leaves them alone.

A module says so by ``in_hardware = True``; its own parameters then never change.
"""

from __future__ import annotations

from torch import nn


def in_hardware(model: nn.Module) -> tuple[str, ...]:
    """The paths of the modules whose weights are in hardware."""
    return tuple(path for path, module in model.named_modules() if getattr(module, "in_hardware", False) is True)


def fixed_parameters(model: nn.Module) -> frozenset[str]:
    """The names of the parameters that are in hardware."""
    return frozenset(
        f"{path}.{name}" if path else name
        for path in in_hardware(model)
        for name, _ in model.get_submodule(path).named_parameters(recurse=False)
    )
