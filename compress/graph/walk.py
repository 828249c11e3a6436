"""The walk over a network's operators: the labels of every tensor, and the small steps that rules are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from compress.graph.labels import Fix, Indices, Labels
from compress.graph.layout import Factor, Layout, at, covered, first, renamed, without
from compress.graph.trace import kind, module_path, shape


@dataclass(frozen=True, slots=True)
class Statistic:
    """A node that averages over prunable channels: which of its axes, and their labels."""

    node: str
    axis: int
    labels: Indices


class Walk:
    """What is known so far.

    Attributes:
        labels: the ties between labels, and those that are fixed.
        layouts: of every tensor; a node with several outputs has a list of them.
        constants: nodes that depend on parameters only.
        made, read: labels of the axes along which weights make channels, and read them.
        statistics: means and norms over channels, which change when channels go.
        grids: arrays of labels that have to stay rectangular.
    """

    def __init__(self) -> None:
        self.labels = Labels()
        self.layouts: dict[fx.Node, Layout | list[Layout]] = {}
        self.constants: set[fx.Node] = set()
        self.made: list[Indices] = []
        self.read: list[Indices] = []
        self.statistics: list[Statistic] = []
        self.grids: list[tuple[fx.Node, Indices]] = []

    def of(self, node: Any) -> Layout:
        """The layout of a node's tensor; empty for what isn't a tensor."""
        layout = self.layouts.get(node, ()) if isinstance(node, fx.Node) else ()
        return layout if isinstance(layout, tuple) else ()

    def fix(self, node: fx.Node, layout: Layout, reason: str) -> None:
        """Everything in ``layout`` has to stay, because of ``node``."""
        for factor in layout:
            self.labels.fix(factor.labels, Fix(kind(node), module_path(node), reason))

    def hold(self, node: fx.Node, layout: Layout, axes: int | Sequence[int], reason: str) -> Layout:
        """The layout in which none of ``axes`` can shrink.

        Plain channels there are fixed; a joint factor can still shrink along its other axes, so its labels
        are tied along this one.
        """
        for axis in (axes,) if isinstance(axes, int) else axes:
            factor = at(layout, axis)
            if factor is None:
                continue
            layout = without(layout, [axis])
            left = first(factor, axis)
            if left is None:
                self.fix(node, (factor,), reason)
            else:
                position = factor.axes.index(axis)
                self.labels.tie(factor.labels.take([0], position), factor.labels)
                layout = (*layout, left)
        return layout

    def single(self, node: fx.Node, layout: Layout, axis: int) -> tuple[Indices | None, Layout]:
        """The labels of one axis by itself, and the layout without it.

        A joint factor resolves to this axis: its others can't shrink.
        """
        factor = at(layout, axis)
        if factor is None:
            return None, layout
        for other in factor.axes:
            if other != axis:
                layout = self.hold(node, layout, other, "")
        factor = at(layout, axis)
        assert factor is not None
        return factor.labels, without(layout, [axis])

    def tie(self, node: fx.Node, a: Indices | None, b: Indices | None, reason: str) -> Indices | None:
        """Tie two axes' labels; where only one is tracked, it has to stay."""
        if a is not None and b is not None:
            if a.size == b.size:
                self.labels.tie(a, b)
                return a
            reason = f"its operands have {a.size} and {b.size} channels"
        for labels in (a, b):
            if labels is not None and labels.size > 1:
                self.labels.fix(labels, Fix(kind(node), module_path(node), reason))
        return None

    def join(self, node: fx.Node, operands: Sequence[tuple[Layout, set[int]]], reason: str) -> Layout:
        """Tie tensors element by element.

        Args:
            node: the operator that does.
            operands: for each its layout, aligned to the output's axes, and the axes along which it is broadcast.
            reason: why channels stay that meet an operand that isn't tracked.

        Where factors overlap without covering the same axes, they resolve to the first axis.
        """
        layouts = [layout for layout, _ in operands]
        for axis in sorted(set().union(*(covered(layout) for layout in layouts))):
            if any(
                at(layout, axis) is None and axis not in cast
                for layout, (_, cast) in zip(layouts, operands, strict=True)
            ):
                layouts = [self.hold(node, layout, axis, reason) for layout in layouts]
        while True:
            factors = [factor for layout in layouts for factor in layout]
            clash = next(
                (a for a in factors for b in factors if a.axes != b.axes and a.joint and set(a.axes) & set(b.axes)),
                None,
            )
            if clash is None:
                break
            layouts = [
                self.hold(node, layout, clash.axes[1:], "it meets channels that are split") for layout in layouts
            ]
        result: dict[tuple[int, ...], Factor] = {}
        for factor in (factor for layout in layouts for factor in layout):
            kept = result.setdefault(factor.axes, factor)
            if kept.labels.shape != factor.labels.shape:
                self.fix(
                    node, (kept, factor), f"its operands have {kept.labels.shape} and {factor.labels.shape} channels"
                )
            elif kept is not factor:
                self.labels.tie(kept.labels, factor.labels)
        return tuple(result.values())

    def untracked(self, node: fx.Node, n: int, reason: str) -> Indices:
        """Labels for ``n`` channels that nothing prunes but that stand beside some that can go."""
        labels = self.labels.fresh(n)
        self.labels.fix(labels, Fix(kind(node), module_path(node), reason))
        return labels

    def resolve(self) -> None:
        """Make every grid rectangular whatever classes go: tie along all its axes but one.

        The axis is the one that needs the fewest ties, the last of those.
        """
        waiting = self.grids
        while waiting:
            classes, _ = self.labels.classes()
            still = []
            for node, labels in waiting:
                seen = classes[labels]
                varying = [axis for axis in range(seen.ndim) if not bool(np.all(seen == seen.take([0], axis)))]
                if len(varying) > 1:
                    still.append((node, labels, varying))
            if not still:
                return
            # One at a time by node, since what resolves the first may resolve others.
            node, labels, varying = still[0]
            keep = varying[-1]
            for axis in varying:
                if axis != keep:
                    self.labels.tie(labels.take([0], axis), labels)
            waiting = [(node, labels) for node, labels, _ in still[1:]]


Rule = Callable[[Walk, fx.Node], Layout | list[Layout]]


def source(node: fx.Node, position: int = 0) -> fx.Node:
    """An operand that must be a node."""
    operand = node.args[position]
    assert isinstance(operand, fx.Node)
    return operand


def aligned(walk: Walk, operand: fx.Node, out: Sequence[int]) -> tuple[Layout, set[int]]:
    """An operand's layout on the output's axes (aligned at the last), and the axes along which it is broadcast."""
    sizes = shape(operand)
    shift = len(out) - len(sizes)
    layout = renamed(walk.of(operand), {axis: axis + shift for axis in range(len(sizes))})
    cast = {axis for axis, size in enumerate(out) if axis < shift or (sizes[axis - shift] == 1 and size != 1)}
    return layout, cast


def is_tensor(value: Any) -> bool:
    """True for a node that makes one tensor."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)


def fixed(walk: Walk, node: fx.Node, reason: str) -> Layout | list[Layout]:
    """What comes in has to stay; what goes out isn't tracked."""
    for operand in node.all_input_nodes:
        layout = walk.layouts.get(operand, ())
        for each in layout if isinstance(layout, list) else [layout]:
            walk.fix(node, each, reason)
    value = node.meta.get("val")
    return [() for _ in value] if isinstance(value, (list, tuple)) else ()
