"""Layers whose weights are in hardware, such as the patterns of a sensing layer: what compresses leaves them alone.

A module lists those of its own parameters in ``in_hardware``; a trace has all of them in
:attr:`compress.graph.trace.Network.hardware`.
"""

from __future__ import annotations

from torch import nn


def in_hardware(model: nn.Module) -> tuple[str, ...]:
    """The paths of the modules whose weights are in hardware."""
    return tuple(path for path, module in model.named_modules() if "weight" in getattr(module, "in_hardware", ()))


def fixed_parameters(model: nn.Module) -> frozenset[str]:
    """The names of the parameters that are in hardware."""
    return frozenset(
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        for name in getattr(module, "in_hardware", ())
    )
