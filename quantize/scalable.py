"""Which channels between layers can be scaled without changing what the network computes.

Where a tensor's channel ``c`` is divided by ``s_c > 0`` by the layer that makes it and multiplied by it in the layers
that read it, the network's output stays what it is if everything between commutes with the scaling of single channels,

    f(x / s) = f(x) / s,

as ReLU does (Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, ICCV 2019,
equation 7), and as pooling, reshapes and concatenations do. A sum does if both operands are scaled alike, so their
channels are one. A clip at a number other than 0 (ReLU6), a product or the network's output does not: the channels that
reach one stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compress.graph.interpret import Steps
from compress.graph.trace import argument, kind, shape
from compress.quantize.rebuild import Layer


@dataclass(frozen=True)
class Channels:
    """Along which axis a tensor's channels lie, and which one each index is; -1 for one that stays as it is."""

    axis: int
    ids: Tensor


@dataclass(frozen=True)
class End:
    """A layer that makes channels, or reads them.

    Attributes:
        layer: it is a matrix product with a weight and bias of its own.
        ids: which channel each of its outputs, or inputs, is, from 0; -1 for an input that stays as it is.
    """

    layer: Layer
    ids: Tensor


@dataclass(frozen=True)
class Between:
    """Channels that belong together, since a layer reads them together.

    Attributes:
        count: how many.
        makers: the layers that make them; a channel of a sum is made by several.
        readers: the layers that read them.
    """

    count: int
    makers: tuple[End, ...]
    readers: tuple[End, ...]


@dataclass
class Known:
    """What is known on the way through a network.

    Attributes:
        channels: by tensor.
        same: channel -> one that it is scaled like, itself if there is none before it.
        stuck: channels that stay as they are.
    """

    channels: dict[str, Channels]
    same: list[int]
    stuck: set[int]

    def new(self, count: int) -> Tensor:
        """Channels that nothing is known of yet."""
        first = len(self.same)
        self.same += range(first, first + count)
        return torch.arange(first, first + count)

    def first(self, channel: int) -> int:
        """The first of the channels that are scaled like this one; -1 for those that stay as they are."""
        while channel >= 0 and self.same[channel] != channel:
            channel = self.same[channel]
        return channel

    def tie(self, one: Tensor, other: Tensor) -> None:
        """From here on both are scaled alike."""
        for a, b in zip(map(self.first, one.tolist()), map(self.first, other.tolist()), strict=True):
            if min(a, b) >= 0:
                self.same[max(a, b)] = min(a, b)
            else:
                self.stuck.add(max(a, b))

    def keep(self, names: Iterable[str]) -> None:
        """These tensors stay as they are."""
        for name in names:
            if name in self.channels:
                self.stuck.update(self.channels[name].ids.tolist())

    def firsts(self, ends: Iterable[End]) -> list[End]:
        """The ends with every channel by the first that is scaled like it."""
        stuck = {self.first(channel) for channel in self.stuck} | {-1}

        def settled(channel: int) -> int:
            found = self.first(channel)
            return -1 if found in stuck else found

        return [End(end.layer, torch.tensor([settled(channel) for channel in end.ids.tolist()])) for end in ends]


Rule = Callable[[fx.Node, Known], Channels | None]
"""From a node and the channels of its operands, of which at least one is known, those of its result; None where
scaled operands would give something else than a scaled result."""


def between(steps: Steps, layers: Iterable[Layer]) -> tuple[Between, ...]:
    """All channels that can be scaled, in the order in which they are made."""
    products = {layer.node: layer for layer in layers if layer.reader is not None}
    known = Known({}, [], set())
    makers: list[End] = []
    readers: list[End] = []
    for node in steps.nodes:
        operands = [each.name for each in node.all_input_nodes]
        layer = products.get(node.name)
        if layer is None:
            if any(name in known.channels for name in operands):
                result = RULES.get(kind(node), _nothing)(node, known)
                if result is None:
                    known.keep(operands)
                else:
                    known.channels[node.name] = result
            continue
        read = known.channels.get(operands[0])
        if read is not None and read.axis == _axis(node, shape(node.all_input_nodes[0])):
            readers.append(End(layer, read.ids))
            operands = operands[1:]
        known.keep(operands)
        ids = known.new(steps.parameters[layer.weight].shape[0])
        makers.append(End(layer, ids))
        known.channels[node.name] = Channels(_axis(node, shape(node)), ids)
    known.keep([steps.output])
    return _together(known.firsts(makers), known.firsts(readers))


def _together(makers: list[End], readers: list[End]) -> tuple[Between, ...]:
    """The channels in groups of which no layer reads two."""
    group: dict[int, set[int]] = {}
    for end in (*makers, *readers):
        inside = set(end.ids.tolist()) - {-1}
        for other in {id(group[c]): group[c] for c in inside if c in group}.values():
            inside |= other
        group |= dict.fromkeys(inside, inside)
    found = []
    for channels in {id(each): each for each in group.values()}.values():
        place = {channel: i for i, channel in enumerate(sorted(channels))}
        mine, read = (
            tuple(
                End(end.layer, torch.tensor([place.get(c, -1) for c in end.ids.tolist()]))
                for end in ends
                if channels & set(end.ids.tolist())
            )
            for ends in (makers, readers)
        )
        if read:
            found.append(Between(len(channels), mine, read))
    return tuple(found)


def _axis(node: fx.Node, sizes: tuple[int, ...]) -> int:
    """Where a layer's channels lie in its input or output."""
    return len(sizes) - 1 if kind(node) == "linear" else 1


def _nothing(node: fx.Node, known: Known) -> Channels | None:
    return None


def _operand(node: fx.Node, known: Known) -> Channels | None:
    """The channels of the first operand, if no other has any."""
    first = node.args[0]
    if not isinstance(first, fx.Node) or any(o.name in known.channels for o in node.all_input_nodes if o is not first):
        return None
    return known.channels.get(first.name)


def _over_space(node: fx.Node, known: Known) -> Channels | None:
    found = _operand(node, known)
    return found if found is not None and found.axis == 1 else None


def _mean(node: fx.Node, known: Known) -> Channels | None:
    found, given = _operand(node, known), argument(node, "dim")
    assert isinstance(node.args[0], fx.Node)
    if found is None or given is None:
        return None
    size = len(shape(node.args[0]))
    gone = {int(dim) % size for dim in (given if isinstance(given, (list, tuple)) else [given])}
    if found.axis in gone:
        return None
    before = 0 if argument(node, "keepdim") else sum(dim < found.axis for dim in gone)
    return Channels(found.axis - before, found.ids)


def _padded(node: fx.Node, known: Known) -> Channels | None:
    found, pad, value = _operand(node, known), argument(node, "pad"), argument(node, "value")
    assert isinstance(node.args[0], fx.Node)
    if found is None or (value or 0) != 0 or len(shape(node.args[0])) - len(pad) // 2 <= found.axis:
        return None
    return found


def _joined(node: fx.Node, known: Known) -> Channels | None:
    parts = node.args[0]
    assert isinstance(parts, (list, tuple))
    axis = int(argument(node, "dim")) % len(shape(node))
    ids = []
    for part in parts:
        assert isinstance(part, fx.Node)
        found = known.channels.get(part.name)
        if found is not None and found.axis != axis:
            return None
        ids.append(found.ids if found is not None else torch.full((shape(part)[axis],), -1))
    return Channels(axis, torch.cat(ids))


def _added(node: fx.Node, known: Known) -> Channels | None:
    found = [known.channels.get(each.name) for each in node.args[:2] if isinstance(each, fx.Node)]
    one, other = (*found, None, None)[:2]
    sizes = {shape(each) for each in node.all_input_nodes}
    if one is None or other is None or one.axis != other.axis or len(sizes) != 1:
        return None
    known.tie(one.ids, other.ids)
    return one


def _reshaped(node: fx.Node, known: Known) -> Channels | None:
    found = _operand(node, known)
    assert isinstance(node.args[0], fx.Node)
    if found is None:
        return None
    before, after, axis = shape(node.args[0]), shape(node), found.axis
    if after[: axis + 1] == before[: axis + 1]:
        return found
    taps = math.prod(before[axis + 1 :])
    if after == (*before[:axis], before[axis] * taps):
        return Channels(axis, found.ids.repeat_interleave(taps))
    return None


def _permuted(node: fx.Node, known: Known) -> Channels | None:
    found = _operand(node, known)
    if found is None:
        return None
    size = len(shape(node))
    if kind(node) == "permute":
        dims = [int(dim) % size for dim in argument(node, "dims")]
    else:
        dims = list(range(size))
        a, b = (int(argument(node, name)) % size for name in ("dim0", "dim1"))
        dims[a], dims[b] = b, a
    return Channels(dims.index(found.axis), found.ids)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("relu", "leaky_relu", "prelu", "dropout", "feature_dropout", "identity"), _operand),
    **dict.fromkeys(("clone", "contiguous", "alias", "detach"), _operand),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"), _over_space),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), _over_space),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d"), _over_space),
    "mean": _mean,
    **dict.fromkeys(("add", "sub"), _added),
    "cat": _joined,
    **dict.fromkeys(("constant_pad_nd", "pad"), _padded),
    **dict.fromkeys(("view", "reshape", "flatten", "squeeze", "unsqueeze"), _reshaped),
    **dict.fromkeys(("permute", "transpose"), _permuted),
}
"""Operators that commute with a scaling of single channels. Any other keeps what it reads as it is."""
