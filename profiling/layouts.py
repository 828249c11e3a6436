"""Where ONNX Runtime changes the order of an image's numbers, which takes a kernel of its own each time.

Its float convolutions work on images whose channels lie in blocks, ``(N, C / b, H, W, b)``; ``b`` is 16 with AVX-512
and on Arm, 8 with AVX2. One with fewer than ``b`` input channels reads the usual order, ``(N, C, H, W)``, and makes
blocks. One whose channels fill no whole steps (:data:`STEP`) reads and makes the usual order, as everything does that
has no kernel for blocks. Between the two stands a reordering, once for each tensor. A network whose channels are
multiples of 16 has next to none of them; the same one with a few channels removed has one before nearly every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from compress.graph.operators import Operator
from compress.profiling.fusion import Group, is_convolution

Layout = Literal["usual", "blocks"]
BLOCKS = (8, 16)
STEP = 4
"""Channels that convolutions on blocks take at a time."""
KEPT = frozenset(
    {"add", "sub", "mul", "maximum", "cat", "batch_norm", "relu", "sigmoid", "tanh", "leaky_relu"}
    | {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean"}
)
"""Kinds with kernels for blocks, which they take where all that they read lies in blocks."""


def reorderings(
    groups: Sequence[Group], inputs: Mapping[str, int], in_float: Callable[[Group], bool], block: int
) -> dict[str, list[int]]:
    """The elements of every tensor that is reordered before a group, by the group's name; groups without are left out.

    Args:
        groups: in the order of execution.
        inputs: elements of each of the network's inputs, which come in the usual order.
        in_float: whether a group computes in float: integers lie in the usual order.
        block: channels of a block.
    """
    sizes, made = dict(inputs), dict.fromkeys(inputs, "usual")
    there: dict[str, set[str]] = {name: {"usual"} for name in inputs}
    same: dict[str, str] = {}
    found: dict[str, list[int]] = {}
    for group in groups:
        reads = [same.get(name, name) for name in group.reads]
        if group.moves_nothing and reads:
            same[group.name] = reads[0]
            continue
        wanted, makes = _layouts(group.operator, block) if in_float(group) else ("usual", "usual")
        if group.operator.kind in KEPT and in_float(group) and reads and all(made[name] == "blocks" for name in reads):
            wanted, makes = "blocks", "blocks"
        for number, name in enumerate(reads):
            # What a convolution adds to its output, a shortcut, lies as the output does.
            layout = makes if number and group.operator.weights else wanted
            if layout not in there[name]:
                there[name].add(layout)
                found.setdefault(group.name, []).append(sizes[name])
        sizes[group.name], made[group.name], there[group.name] = group.written, makes, {makes}
    read = {same.get(name, name) for group in groups for name in group.reads}
    for group in groups:
        if made.get(group.name) == "blocks" and group.name not in read:
            found.setdefault(group.name, []).append(group.written)  # outputs of the network leave in the usual order
    return found


def _layouts(operator: Operator, block: int) -> tuple[Layout, Layout]:
    """What an operator reads and what it makes."""
    o = operator
    if not is_convolution(o):
        return "usual", "usual"
    inner, outer = o.in_channels // o.groups, o.out_channels // o.groups
    if o.groups > 1:
        whole = o.out_channels % STEP == 0 if inner == outer == 1 else inner % block == 0 == outer % block
        return ("blocks", "blocks") if whole else ("usual", "usual")
    if inner < block:
        return "usual", "blocks"
    return ("blocks", "blocks") if inner % STEP == 0 else ("usual", "usual")


__all__ = ["BLOCKS", "KEPT", "STEP", "Layout", "reorderings"]
