"""What a unit can contribute to the layers that read it, from the weights alone.

A *neuron* with weights ``p``, bias ``b`` and activation ``phi`` contributes ``w_i(p) phi(p.x + b)`` to output ``i`` of
the layer that reads it. For every input in the ball ``|x| <= beta`` the pre-activation lies in
``[b - beta |p|, b + beta |p|]``; this interval is carried through all operators between the two layers. A filter of a
convolution is a neuron whose inputs are patches, each in the ball; its contribution to an output value is a sum over
the reading filter's taps, each with a patch of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.graph.groups import CONSUMES, PRODUCES, Group, Slot
from compress.graph.trace import Network, argument, kind, layer_name, module_path, shape
from compress.prune.activations import ACTIVATIONS, CONVEX, UNCHANGED, Shape


@dataclass(frozen=True)
class Neurons:
    """The units of a group as the layers that read them see them, float64.

    Attributes:
        lower, upper: (units, outputs) the least and the largest contribution of a unit to an output of a reading
            layer, over all queries.
        energy: (units, outputs) the square of the unit's part in the Rademacher complexity of the contributions,
            ``(w_i L beta |p|)^2`` for a plain neuron, ``L`` the activation's Lipschitz constant.
        values: how many output values an input gives (outputs times positions in space).
        radius: ``beta``.
        reason: why no guarantee holds for the group, ``""`` where one does. The figures are then norms: they rank
            the units and bound nothing.
    """

    lower: Tensor
    upper: Tensor
    energy: Tensor
    values: int
    radius: float
    reason: str = ""

    @property
    def largest(self) -> Tensor:
        """(units, outputs) the largest absolute contribution."""
        return torch.maximum(self.upper, -self.lower)

    @property
    def whole(self) -> Tensor:
        """(outputs,) what the absolute sum of all contributions can't exceed: the error of removing every unit."""
        return torch.maximum(self.upper.sum(0), -self.lower.sum(0))

    def sensitivities(self) -> Tensor:
        """(units,) ``s(p) = max_i sup_x |w_i(p) phi(p.x)| / sum_q sup_x |w_i(q) phi(q.x)|``, in [0, 1]."""
        each = self.largest
        return (each / each.sum(0).clamp_min(1e-300)).amax(1)


@dataclass(frozen=True)
class Span:
    """Of each unit at one place of the network: bounds of its value, and ``Lipschitz constant * beta * |p|``."""

    low: Tensor
    high: Tensor
    reach: Tensor

    def with_zero(self) -> Span:
        """The span of a tensor that is padded with zeros."""
        return Span(self.low.clamp_max(0), self.high.clamp_min(0), self.reach)


class NoGuarantee(Exception):
    """Why the units of a group aren't neurons of the form that the theorem speaks of."""


def neurons(model: nn.Module, network: Network, group: Group, radius: float | None = None) -> Neurons:
    """The units of ``group``.

    Args:
        model: what ``network`` traces.
        network: its trace.
        group: one of its dependency groups.
        radius: ``beta``, above 0; None for the square root of the number of inputs of a neuron, which holds all
            inputs of root mean square 1 or less.
    """
    tensors = {name: t.detach().double().cpu() for name, t in (*model.named_parameters(), *model.named_buffers())}
    try:
        start, span, beta = _made(network, group, tensors, radius)
        return _read(_carried(network, group, tensors, start, span), group, tensors, beta)
    except NoGuarantee as why:
        return _norms(group, tensors, radius, str(why))


# --- where the units are made ----------------------------------------------------------------------------------------


def _made(
    network: Network, group: Group, tensors: Mapping[str, Tensor], radius: float | None
) -> tuple[fx.Node, Span, float]:
    """The node that makes the units, their pre-activations, and ``beta``."""
    makers = [node for node in network.nodes if _slot(network, node, PRODUCES) in group.producers]
    mixing = [node for node in makers if _depthwise(node)]
    makers = [node for node in makers if node not in mixing]
    if len(makers) != 1:
        layers = dict.fromkeys(layer_name(slot[0]) for slot in group.producers)
        raise NoGuarantee(f"several layers make its channels together ({', '.join(layers)})")
    node = makers[0]
    if kind(node).startswith("conv_transpose"):
        raise NoGuarantee(f"a transposed convolution ({module_path(node)}) makes its channels")
    slot = _slot(network, node, PRODUCES)
    assert slot is not None
    rows = tensors[slot[0]].flatten(1)
    beta = math.sqrt(rows.shape[1]) if radius is None else radius
    bias = network.parameter(argument(node, "bias"))
    reach = beta * rows.norm(dim=1)
    middle = tensors[bias] if bias is not None else torch.zeros_like(reach)
    index = _members(group, slot)
    span = Span((middle - reach)[index].amin(1), (middle + reach)[index].amax(1), reach[index].amax(1))
    return node, span, beta


def _slot(network: Network, node: fx.Node, axes: Mapping[str, int]) -> Slot | None:
    weight = network.parameter(node.args[1]) if kind(node) in axes and len(node.args) > 1 else None
    return None if weight is None else (weight, axes[kind(node)])


def _depthwise(node: fx.Node) -> bool:
    groups = int(argument(node, "groups", 1)) if kind(node).startswith("conv") else 1
    source = node.args[0]
    return groups > 1 and isinstance(source, fx.Node) and groups == shape(source)[1] == shape(node)[1]


def _members(group: Group, slot: Slot) -> Tensor:
    """(units, m) the indices of each unit along a slot."""
    return torch.tensor([unit.members[slot] for unit in group.units])


# --- from there to where they are read -------------------------------------------------------------------------------


def _carried(
    network: Network, group: Group, tensors: Mapping[str, Tensor], start: fx.Node, span: Span
) -> list[tuple[fx.Node, Slot, Span]]:
    """The nodes that read the units, the slots they read along, and the units' spans there."""
    spans, readers = {start: span}, list[tuple[fx.Node, Slot, Span]]()
    for node in network.nodes:
        sources = [source for source in node.all_input_nodes if source in spans]
        if not sources or node is start or not shape(node):
            continue
        slot = _slot(network, node, CONSUMES)
        if slot in group.consumers and slot is not None:
            padded = any(_numbers(argument(node, "padding", 0))) if kind(node) != "linear" else False
            readers.append((node, slot, spans[sources[0]].with_zero() if padded else spans[sources[0]]))
        elif kind(node) in ("cat", "concat", "concatenate"):
            each = [spans[source] for source in sources]
            low = torch.stack([s.low for s in each]).amin(0)
            high = torch.stack([s.high for s in each]).amax(0)
            spans[node] = Span(low, high, torch.stack([s.reach for s in each]).amax(0))
        elif len(sources) > 1 or node.args[0] is not sources[0]:
            raise NoGuarantee(f"{kind(node)} in {module_path(node) or 'the network'} mixes channels with one another")
        else:
            spans[node] = _through(network, node, spans[sources[0]], group, tensors)
    if not readers:
        raise NoGuarantee("no layer reads its channels directly")
    return readers


def _through(network: Network, node: fx.Node, span: Span, group: Group, tensors: Mapping[str, Tensor]) -> Span:
    """The span behind ``node``."""
    name = kind(node)
    if name in UNCHANGED:
        return span
    if name in CONVEX:
        padded = name.startswith("avg_pool") and any(_numbers(argument(node, "padding", 0)))
        return span.with_zero() if padded else span
    course = ACTIVATIONS[name](node) if name in ACTIVATIONS else None
    if course is not None:
        return _activated(node, span, course)
    if name.startswith("max_pool"):
        dims = int(name[-2])
        window = math.prod(_numbers(argument(node, "kernel_size"), dims))
        # A maximum is Lipschitz in the Euclidean norm: contraction for vectors (Maurer 2016) costs sqrt(2), and
        # each value in the window has a patch of its own.
        return Span(span.low, span.high, span.reach * math.sqrt(2) * window)
    if name == "batch_norm":
        return _normalized(network, node, span, group, tensors)
    slot = _slot(network, node, PRODUCES)
    if slot in group.producers and slot is not None and _depthwise(node):
        return _mixed_in_space(network, node, span, group, tensors, slot)
    raise NoGuarantee(f"{name} in {module_path(node) or 'the network'} stands between the layers")


def _activated(node: fx.Node, span: Span, course: Shape) -> Span:
    def phi(x: Tensor) -> Tensor:
        assert callable(node.target)
        value = node.target(x.clone(), *node.args[1:], **node.kwargs)
        assert isinstance(value, Tensor)
        return value

    ends = torch.stack([phi(span.low), phi(span.high)])
    low = ends.amin(0)
    if course.turning is not None:
        nearest = torch.full_like(span.low, course.turning).clamp(span.low, span.high)
        low = torch.minimum(low, phi(nearest))
    return Span(low, ends.amax(0), span.reach * course.slope)


def _normalized(network: Network, node: fx.Node, span: Span, group: Group, tensors: Mapping[str, Tensor]) -> Span:
    """Batch norm in evaluation mode is a line of its own for each channel."""
    names = [network.parameter(arg) for arg in node.args[1:5]]
    gamma, offset, mean, variance = (None if name is None else tensors[name] for name in names)
    slots: list[Slot] = [(name, 0) for name in names if name is not None and (name, 0) in group.slots]
    if mean is None or variance is None or not slots:
        raise NoGuarantee(f"batch_norm in {module_path(node)} has no statistics of its own")
    a = (variance + float(argument(node, "eps"))).rsqrt() * (1 if gamma is None else gamma)
    c = (0 if offset is None else offset) - a * mean
    index = _members(group, slots[0])
    a, c = a[index], c[index]
    ends = torch.stack([a * span.low[:, None] + c, a * span.high[:, None] + c])
    return Span(ends.amin((0, 2)), ends.amax((0, 2)), span.reach * a.abs().amax(1))


def _mixed_in_space(
    network: Network, node: fx.Node, span: Span, group: Group, tensors: Mapping[str, Tensor], slot: Slot
) -> Span:
    """A depthwise convolution: each channel becomes a weighted sum of its own values, each from its own patch."""
    kernel = tensors[slot[0]].flatten(1)
    bias = network.parameter(argument(node, "bias"))
    index = _members(group, slot)
    if index.shape[1] != 1:
        raise NoGuarantee(f"{module_path(node)} holds several channels of a unit")
    taps, own = kernel[index[:, 0]], 0 if bias is None else tensors[bias][index[:, 0]]
    inside = span.with_zero() if any(_numbers(argument(node, "padding", 0))) else span
    plus, minus = taps.clamp_min(0).sum(1), (-taps).clamp_min(0).sum(1)
    # Each tap's complexity adds; (sum_o |d_o|)^2 in root mean square over units is at most n_o * sum_o d_o^2.
    factor = (taps.shape[1] * taps.square().sum(1)).sqrt()
    low, high = plus * inside.low - minus * inside.high + own, plus * inside.high - minus * inside.low + own
    return Span(low, high, span.reach * factor)


def _numbers(value: Any, dims: int = 1) -> list[int]:
    if isinstance(value, str):
        return [1]  # "same": padded
    return [int(v) for v in value] if isinstance(value, (list, tuple)) and len(value) > 1 else _repeated(value, dims)


def _repeated(value: Any, dims: int) -> list[int]:
    return [int(value[0] if isinstance(value, (list, tuple)) else value)] * dims


# --- where they are read ---------------------------------------------------------------------------------------------


def _read(
    readers: list[tuple[fx.Node, Slot, Span]], group: Group, tensors: Mapping[str, Tensor], beta: float
) -> Neurons:
    lower, upper, energy, values = list[Tensor](), list[Tensor](), list[Tensor](), 0
    for node, slot, span in readers:
        taps = _taps(group, slot, tensors)
        plus, minus = taps.clamp_min(0).sum(2), (-taps).clamp_min(0).sum(2)
        low, high, reach = span.low[:, None], span.high[:, None], span.reach[:, None]
        upper.append(plus * high - minus * low)
        lower.append(plus * low - minus * high)
        energy.append(taps.shape[2] * taps.square().sum(2) * reach.square())
        values += math.prod(shape(node))
    return Neurons(torch.cat(lower, 1), torch.cat(upper, 1), torch.cat(energy, 1), values, beta)


def _taps(group: Group, slot: Slot, tensors: Mapping[str, Tensor]) -> Tensor:
    """(units, outputs, taps) the weights with which the outputs of a reading layer take in each unit."""
    name, axis = slot
    weight = tensors[name].movedim(axis, 0)  # (inputs, outputs, space...)
    index = _members(group, slot)
    taken = weight[index].flatten(3) if weight.dim() > 2 else weight[index][..., None]
    return taken.transpose(1, 2).flatten(2)


def _norms(group: Group, tensors: Mapping[str, Tensor], radius: float | None, reason: str) -> Neurons:
    """Products of the norms of what makes a unit and of the weights that read it."""
    made = torch.zeros(len(group.units), dtype=torch.float64)
    inputs = 1
    for slot in group.producers:
        rows = tensors[slot[0]].movedim(slot[1], 0).flatten(1)
        made += rows[_members(group, slot)].square().sum((1, 2))
        inputs = max(inputs, rows.shape[1])
    beta = math.sqrt(inputs) if radius is None else radius
    reads = [_taps(group, slot, tensors) for slot in group.consumers]
    reach = (beta * made.sqrt())[:, None]
    each = torch.cat([taps.abs().sum(2) for taps in reads], 1) * reach
    energy = torch.cat([taps.shape[2] * taps.square().sum(2) for taps in reads], 1) * reach.square()
    return Neurons(-each, each, energy, each.shape[1], beta, reason)
