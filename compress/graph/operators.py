"""One operator of a network as the cost models see it: what it computes and what it moves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operator:
    """One traced operator for one input (batch 1), after pruning, in the order of execution.

    Attributes:
        name: the traced node, unique: also the name of the tensor it makes.
        path: module path in the user's network, ``""`` for the outermost module.
        kind: ``"conv2d"``, ``"linear"``, ``"batch_norm"``, ``"relu"``, ``"add"``, ``"max_pool2d"``, ...
        macs: multiply-accumulates; 0 for what only moves or compares data.
        weights: elements of its weight (bias and batch norm's four vectors not counted).
        params: elements of all its parameters.
        inputs: names of the activation tensors it reads (other operators, or network inputs).
        output_elements: elements of the tensor it makes.
        in_channels, out_channels, groups: of a convolution or linear layer, else 0, 0, 1.
        fused_into: the operator that runtimes compute it together with (batch norm and an
            activation function behind a convolution), None if it runs by itself.
    """

    name: str
    path: str
    kind: str
    macs: int
    weights: int
    params: int
    inputs: tuple[str, ...]
    output_elements: int
    in_channels: int = 0
    out_channels: int = 0
    groups: int = 1
    fused_into: str | None = None
