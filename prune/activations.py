"""What one-channel operators do to a value that is known to lie in an interval: tables for compress.prune.neurons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from compress.graph.trace import argument


@dataclass(frozen=True, slots=True)
class Shape:
    """The course of an activation function.

    Attributes:
        slope: its Lipschitz constant.
        turning: where it is least, falling before and rising behind; None where it nowhere falls.
    """

    slope: float
    turning: float | None = None


def _always(slope: float, turning: float | None = None) -> Callable[[fx.Node], Shape]:
    return lambda node: Shape(slope, turning)


def _leaky(node: fx.Node) -> Shape | None:
    slope = float(argument(node, "negative_slope", 0.01))
    return Shape(max(1.0, abs(slope)), None if slope >= 0 else 0.0)


def _elu(node: fx.Node) -> Shape | None:
    alpha, scale = float(argument(node, "alpha", 1)), float(argument(node, "scale", 1))
    inner = float(argument(node, "input_scale", 1))
    return Shape(scale * max(1.0, alpha * inner)) if min(alpha, scale, inner) >= 0 else None


ACTIVATIONS: dict[str, Callable[[fx.Node], Shape | None]] = {
    **dict.fromkeys(
        ["relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "tanh", "softplus", "celu"], _always(1.0)
    ),
    "leaky_relu": _leaky,
    "elu": _elu,
    "selu": _always(1.0507009873554805 * 1.6732632423543772),
    "sigmoid": _always(0.25),
    "hardsigmoid": _always(1 / 6),
    "abs": _always(1.0, 0.0),
    "gelu": _always(1.13, -0.7517915),
    "silu": _always(1.1, -1.2784645),
    "mish": _always(1.09, -1.1924513),
    "hardswish": _always(1.5, -1.5),
}
"""Activation -> its course for a node's settings; None for settings with which it both rises and falls elsewhere."""

UNCHANGED = frozenset(
    (
        *("view", "reshape", "flatten", "unflatten", "_unsafe_view", "squeeze", "unsqueeze", "permute", "transpose"),
        *("dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "detach", "alias", "to", "_to_copy"),
        *("type_as", "identity", "slice", "upsample_nearest2d"),
    )
)
"""Operators that only move values, and dropout, which in evaluation mode does nothing."""

CONVEX = frozenset(
    (
        *("mean", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
        "upsample_bilinear2d",
    )
)
"""Operators whose results are averages of a channel's own values."""
