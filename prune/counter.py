"""What a network costs as a function of how many units each group keeps, without surgery.

A layer's multiply-accumulates and a parameter's elements are products of axis lengths, and each group
shortens the axes of its slots by a known number a unit. Activations follow the layers that make them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from compress.graph.costs import operators
from compress.graph.groups import CONSUMES, PRODUCES, Dependencies
from compress.graph.operators import Operator
from compress.graph.trace import Network, shape
from compress.profiling import latency, memory
from compress.prune.goal import UNLIMITED, Goal
from compress.types import Target


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-accumulates and parameters; seconds and bytes of RAM that the target's models predict."""

    macs: float
    params: int
    latency_s: float | None = None
    ram_bytes: int | None = None


@dataclass(frozen=True)
class Counter:
    """Costs of a network as functions of how many units each group keeps.

    Attributes:
        dependencies: the groups that are counted.
        operators: of the whole network.
        weight_of: operator -> the parameter that is its weight, or that its weight is computed from.
        trainable: every parameter.
        inputs: elements of each of the network's inputs.
        target: the device whose models predict latency and RAM; None leaves those out.
        goal: says in which precision and runtime they predict.
    """

    dependencies: Dependencies
    operators: tuple[Operator, ...]
    weight_of: Mapping[str, str]
    trainable: tuple[str, ...]
    inputs: Mapping[str, int] = field(default_factory=dict)
    target: Target | None = None
    goal: Goal = UNLIMITED

    @classmethod
    def of(
        cls,
        network: Network,
        dependencies: Dependencies,
        target: Target | None = None,
        goal: Goal = UNLIMITED,
    ) -> Counter:
        """Count the operators of ``network``."""
        found = operators(network)
        made_of = _made_of(network)
        weights = {
            node.name: made_of[node.args[1].name]
            for node in network.nodes
            if len(node.args) > 1 and isinstance(node.args[1], fx.Node) and node.args[1].name in made_of
        }
        weighted = {
            each.name: weights[each.name]
            for each in found
            if each.macs and each.kind in PRODUCES and each.name in weights
        }
        sizes = {name: math.prod(x.shape[1:]) for name, x in zip(network.inputs, network.example_inputs, strict=True)}
        trainable = tuple(network.program.graph_signature.parameters)
        return cls(dependencies, found, weighted, trainable, sizes, target, goal)

    @property
    def all_units(self) -> tuple[int, ...]:
        """How many units each group has."""
        return tuple(len(group.units) for group in self.dependencies.groups)

    def counts(self, kept: Sequence[int]) -> tuple[float, int]:
        """(multiply-accumulates, parameters) when group i keeps ``kept[i]`` units."""
        lost = self._lost(kept)
        if any(each.macs and each.name not in self.weight_of for each in self.operators):
            macs = float(sum(each.macs for each in self.shrunk(kept)))  # attention's products have no weight
        else:
            macs = sum(each.macs * self._share(self.weight_of[each.name], lost) for each in self.operators if each.macs)
        params = sum(round(math.prod(self.dependencies.shapes[n]) * self._share(n, lost)) for n in self.trainable)
        return macs, params

    def cost(self, kept: Sequence[int]) -> Cost:
        """Everything that is counted; latency and RAM where there is a target."""
        macs, params = self.counts(kept)
        if self.target is None:
            return Cost(macs, params)
        smaller = self.shrunk(kept)
        precision = self.goal.precision
        bits = precision.activation_bits
        names = [*self.inputs, *(each.name for each in smaller)]
        weight_bytes = sum(each.weights for each in smaller) * precision.weight_bits // 8
        peak = memory.peak_ram(smaller, dict.fromkeys(names, bits), weight_bytes, self.target, inputs=self.inputs)
        precisions = {each.path: precision for each in smaller if each.weights}
        predicted = latency.predict(
            smaller, precisions, self.target, peak.bytes, weight_bytes, inputs=self.inputs, runtime=self.goal.runtime
        )
        return Cost(macs, params, predicted.latency_s, peak.bytes)

    def least(self) -> tuple[float, float]:
        """The fractions of (multiply-accumulates, parameters) that stay when every group keeps one unit."""
        full, smallest = self.counts(self.all_units), self.counts([1] * len(self.all_units))
        return smallest[0] / full[0], smallest[1] / full[1]

    def shrunk(self, kept: Sequence[int]) -> tuple[Operator, ...]:
        """The operators of the network when group i keeps ``kept[i]`` units.

        A tensor's channels follow the layer that makes it; behind other operators it keeps the share that
        their inputs keep, weighted by their elements (a concatenation).
        """
        lost = self._lost(kept)
        shares: dict[str, float] = {}
        elements = dict(self.inputs) | {each.name: each.output_elements for each in self.operators}
        result = []
        for each in self.operators:
            name = self.weight_of.get(each.name)
            if name is None:
                total = sum(elements.get(tensor, 0) for tensor in each.inputs)
                inside = sum(shares.get(tensor, 1.0) * elements.get(tensor, 0) for tensor in each.inputs)
                share = inside / total if total else 1.0
                shares[each.name] = share
                result.append(
                    replace(
                        each,
                        macs=round(each.macs * share),
                        params=round(each.params * share),
                        output_elements=round(each.output_elements * share),
                    )
                )
                continue
            size = self.dependencies.shapes[name]
            whole, gone = self._share(name, lost), lost.get(name, {})
            out, inner = PRODUCES[each.kind], CONSUMES[each.kind]
            shares[each.name] = 1 - gone.get(out, 0) / size[out]
            depthwise = each.groups > 1 and each.groups == each.in_channels
            out_channels = round(each.out_channels * shares[each.name])
            groups = round(each.groups * shares[each.name]) if depthwise else each.groups
            result.append(
                replace(
                    each,
                    macs=round(each.macs * whole),
                    weights=round(each.weights * whole),
                    params=round(each.weights * whole + (each.params - each.weights) * shares[each.name]),
                    output_elements=round(each.output_elements * shares[each.name]),
                    in_channels=groups if depthwise else max(0, each.in_channels - gone.get(inner, 0) * each.groups),
                    out_channels=out_channels,
                    groups=groups,
                )
            )
        return tuple(result)

    def _lost(self, kept: Sequence[int]) -> dict[str, dict[int, int]]:
        """Parameter -> axis -> how many of its indices go."""
        lost: dict[str, dict[int, int]] = {}
        for group, stays in zip(self.dependencies.groups, kept, strict=True):
            gone = len(group.units) - stays
            for (name, axis), indices in group.units[0].members.items():
                axes = lost.setdefault(name, {})
                axes[axis] = axes.get(axis, 0) + gone * len(indices)
        return lost

    def _share(self, name: str, lost: Mapping[str, Mapping[int, int]]) -> float:
        size = self.dependencies.shapes[name]
        return math.prod((size[axis] - n) / size[axis] for axis, n in lost.get(name, {}).items())


def _made_of(network: Network) -> dict[str, str]:
    """Parameter or tensor computed from parameters alone -> the parameter, or the largest of several."""
    found: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for node in network.graph.nodes:
        name = network.parameter(node)
        if name is not None:
            found[node.name], sizes[name] = name, math.prod(shape(node))
    for node in network.nodes:
        sources = [found[source.name] for source in node.all_input_nodes if source.name in found]
        if sources and len(sources) == len(node.all_input_nodes):
            found[node.name] = max(sources, key=lambda name: sizes[name])
    return found
