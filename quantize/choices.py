"""What an allocation chooses from: the precisions of each layer, the widths of each activation tensor, the limits.

A **layer** takes one of its options, each a precision with what it costs. A **tensor** (the activation that
layers read) takes one width. Both sides agree: an option of activation width ``b`` needs every tensor that the
layer reads at width ``b``, so that a tensor with several readers has one width. A float layer that reads a
quantized tensor through a dequantize is an option with ``Precision(32, 8, "float")``. **Ties** are groups of
tensors that a kernel needs at equal width, such as both inputs of an addition.

:mod:`compress.quantize.allocation` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from compress.errors import BadInput, UnknownName
from compress.graph.operators import Operator
from compress.profiling.latency import predict
from compress.types import Note, Precision, Target


@dataclass(frozen=True, slots=True)
class Option:
    """One precision that a layer can take, and what it costs.

    Attributes:
        precision: bits of the weights and of the input activations.
        perturbation: expected increase of the loss by the rounded weights, additive over layers: HAWQ-V2's
            ``mean trace * ||Q(W) - W||^2``, or a measured one. At least 0; 0 for float.
        weight_bytes: size of the stored weights.
        bit_operations: multiply-accumulates times weight bits times activation bits.
        latency_s: seconds that the layer takes with it; see :func:`on_target`.
    """

    precision: Precision
    perturbation: float
    weight_bytes: int
    bit_operations: int
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """The options of one layer.

    Attributes:
        name: module path.
        weights: elements of its weight; what average weight bits are weighted by.
        reads: names of the activation tensors it reads; a layer that runs several times reads several. Those
            that aren't among the problem's tensors can't be named: leave out what isn't chosen.
        options: of different precisions, in any order.
    """

    name: str
    weights: int
    reads: tuple[str, ...]
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class TensorChoice:
    """The widths that one activation tensor can take.

    Attributes:
        name: the traced node that makes it, or a network input.
        elements: for one input (batch 1); it takes ``ceil(elements * bits / 8)`` bytes.
        first, last: the steps between which it holds memory, both included.
        perturbations: bits -> expected increase of the loss by rounding it, at least 0. A tensor that stays
            float has the one entry ``{32: 0.0}``.
    """

    name: str
    elements: int
    first: int
    last: int
    perturbations: Mapping[int, float]


@dataclass(frozen=True)
class Problem:
    """Everything that can be chosen.

    Attributes:
        layers, tensors: each name once.
        ties: groups of names of tensors that have equal width.
        weights_in_ram: True where the device holds all weights in the memory that activations use.
        fixed_latency_s: seconds that no choice changes.
        fixed_weight_bytes: what is stored beside the layers' weights: biases, a file's own structure.
        fixed_ram_bytes: what is held in memory at every step.

    Raises:
        BadInput: a name is given twice or is unknown; a number is NaN, infinite or below 0; a layer or a tensor
            has nothing to choose from.
    """

    layers: tuple[LayerChoice, ...]
    tensors: tuple[TensorChoice, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    weights_in_ram: bool = False
    fixed_latency_s: float = 0.0
    fixed_weight_bytes: int = 0
    fixed_ram_bytes: int = 0
    notes: tuple[Note, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors]
        _once("layer", [layer.name for layer in self.layers])
        _once("tensor", names)
        for name in [name for group in self.ties for name in group] + [n for layer in self.layers for n in layer.reads]:
            if name not in names:
                raise UnknownName("activation tensor", name, names)
        fixed = {name: getattr(self, name) for name in ("fixed_latency_s", "fixed_weight_bytes", "fixed_ram_bytes")}
        _sound("the problem", **fixed)
        notes = [note for layer in self.layers for note in _checked_layer(layer)]
        notes += [note for tensor in self.tensors for note in _checked_tensor(tensor)]
        object.__setattr__(self, "notes", tuple(notes))

    def layer(self, name: str) -> LayerChoice:
        """The layer of that name."""
        return next(layer for layer in self.layers if layer.name == name)


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps that an allocation meets exactly, in any mix; None is unconstrained.

    Attributes:
        weight_bytes: sum of the stored weights and of the fixed bytes.
        weight_bits: average over all layers, ``sum(bits * weights) / sum(weights)``.
        bit_operations: sum of multiply-accumulates times weight bits times activation bits.
        ram_bytes: live activations at every step, the fixed bytes, and all weights where they lie in RAM.
        latency_s: sum of the layers' seconds and of the fixed ones.

    Raises:
        BadInput: a limit is NaN, infinite or below 0.
    """

    weight_bytes: int | None = None
    weight_bits: float | None = None
    bit_operations: int | None = None
    ram_bytes: int | None = None
    latency_s: float | None = None

    def __post_init__(self) -> None:
        _sound("limits", **self.given())

    def given(self) -> dict[str, float]:
        """The limits that aren't None, by name."""
        values = {name: getattr(self, name) for name in MEASURES}
        return {name: value for name, value in values.items() if value is not None}


MEASURES = ("weight_bytes", "weight_bits", "bit_operations", "ram_bytes", "latency_s")
"""What can be limited: fields of :class:`Limits` and of an allocation."""


def options(weights: int, macs: int, perturbations: Mapping[Precision, float]) -> tuple[Option, ...]:
    """The options of a layer with that many weights and multiply-accumulates; latencies are 0."""
    return tuple(
        Option(p, perturbation, -(-weights * p.weight_bits // 8), macs * p.weight_bits * p.activation_bits)
        for p, perturbation in perturbations.items()
    )


def stored_bits(bits: int) -> int:
    """What a weight takes in the file: ONNX packs integers of 2, 4 and 8 bits."""
    return next((width for width in (2, 4, 8, 16) if bits <= width), 32)


def on_target(
    problem: Problem,
    operators: Sequence[Operator],
    target: Target,
    *,
    inputs: Mapping[str, int],
    precisions: Collection[Precision] | None = None,
    fixed: Mapping[str, Precision] | None = None,
) -> Problem:
    """The problem with the options that a device runs and their seconds by :func:`latency.predict`.

    The model adds up layers, and gives operators that have no precision of their own that of the layer before
    them: so the seconds that depend on a layer's option are those that the network takes beyond what it takes
    with that layer at its fastest, and the network with every layer at its fastest is what stays fixed.

    Args:
        problem: its layers' names are paths of ``operators``.
        operators: of the whole network, in the order of execution.
        target: the device.
        inputs: elements of each of the network's inputs by name.
        precisions: options with others are left out; the target's own by default. Wider sets make sense where
            weights are stored narrower than they are computed with.
        fixed: precision of layers that nothing is chosen for; where one isn't named, that of what made its input.

    Raises:
        BadInput: a layer is no operator's path, or has no option that the device runs.
    """
    paths = {operator.path for operator in operators}
    runs = frozenset(target.precisions if precisions is None else precisions)
    kept: list[LayerChoice] = []
    for layer in problem.layers:
        if layer.name not in paths:
            raise UnknownName("layer", layer.name, paths)
        fitting = tuple(option for option in layer.options if option.precision in runs)
        if not fitting:
            offered, run = _listed(o.precision for o in layer.options), _listed(runs)
            raise BadInput(f"layer {layer.name}: {target.name} runs none of {offered}; offer one of {run}")
        kept.append(replace(layer, options=fitting))

    def seconds(plan: Mapping[str, Precision]) -> float:
        return predict(operators, {**(fixed or {}), **plan}, target, 0, 0, inputs=inputs).latency_s

    plan = {layer.name: layer.options[0].precision for layer in kept}
    fastest = dict(plan)
    timed: list[LayerChoice] = []
    for layer in kept:
        taken = [seconds(plan | {layer.name: option.precision}) for option in layer.options]
        least = min(taken)
        fastest[layer.name] = layer.options[taken.index(least)].precision
        pairs = zip(layer.options, taken, strict=True)
        timed.append(replace(layer, options=tuple(replace(o, latency_s=s - least) for o, s in pairs)))
    return replace(problem, layers=tuple(timed), fixed_latency_s=seconds(fastest))


def _once(kind: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"{kind} {twice[0]!r} is listed twice; give each {kind} once")


def _sound(where: str, **numbers: float) -> None:
    for name, number in numbers.items():
        if not (math.isfinite(number) and number >= 0):
            raise BadInput(f"{where}: {name} is {number}; give a finite number of at least 0")


def _checked_layer(layer: LayerChoice) -> list[Note]:
    where = f"layer {layer.name}"
    if not layer.options:
        raise BadInput(f"{where}: no option to choose from; give at least one precision")
    _once(f"{where}: precision", [repr(option.precision) for option in layer.options])
    _sound(where, weights=layer.weights)
    for o in layer.options:
        costs = {"weight_bytes": o.weight_bytes, "bit_operations": o.bit_operations, "latency_s": o.latency_s}
        _sound(f"{where} at {o.precision}", perturbation=o.perturbation, **costs)
    by_width: dict[int, dict[int, float]] = {}
    for o in layer.options:
        by_width.setdefault(o.precision.activation_bits, {})[o.precision.weight_bits] = o.perturbation
    return [note for curve in by_width.values() for note in _rises(layer.name, "weights", curve)]


def _checked_tensor(tensor: TensorChoice) -> list[Note]:
    where = f"tensor {tensor.name}"
    if not tensor.perturbations:
        raise BadInput(f"{where}: no width to choose from; give at least one, {{32: 0.0}} for float")
    if tensor.first > tensor.last:
        raise BadInput(f"{where}: lives from step {tensor.first} to {tensor.last}; give the first step first")
    _sound(where, elements=tensor.elements)
    for bits, perturbation in tensor.perturbations.items():
        if bits < 1:
            raise BadInput(f"{where}: a width of {bits} bits; give at least 1")
        _sound(f"{where} at {bits} bits", perturbation=perturbation)
    return _rises(tensor.name, "activations", tensor.perturbations)


def _rises(where: str, what: str, curve: Mapping[int, float]) -> list[Note]:
    """Allowed, as a measured perturbation is noisy, but said."""
    widths = sorted(curve)
    return [
        Note(where, what, f"perturbation rises from {curve[a]:.4g} at {a} bits to {curve[b]:.4g} at {b}")
        for a, b in pairwise(widths)
        if curve[b] > curve[a]
    ]


def _listed(precisions: Iterable[Precision]) -> str:
    return ", ".join(str(precision) for precision in sorted(precisions))
