"""Bits of every layer's weights and activations, chosen exactly under any mix of limits (HAWQ-V2, Dong et al. 2020).

HAWQ-V2 takes the expected increase of the loss as a sum over layers, ``mean trace * ||Q(W) - W||^2``, and
chooses among all settings of bits one on the Pareto front of that sum against the model's size. Here it is an
integer programme. With ``x[l,o]`` = 1 where layer ``l`` takes option ``o`` and ``y[c,b]`` = 1 where the tied
tensors ``c`` have width ``b``,

    minimize    sum_l,o p[l,o] x[l,o]  +  sum_c,b q[c,b] y[c,b]
    subject to  sum_b y[c,b] = 1                                                    each c
                sum_{o of width b} x[l,o] = y[c(l),b]                               each l, b
                fixed + sum_l,o bytes[l,o] x[l,o] <= weight_bytes
                sum_l,o bits[l,o] weights[l] x[l,o] <= weight_bits sum_l weights[l]
                sum_l,o operations[l,o] x[l,o] <= bit_operations
                seconds + sum_l,o seconds[l,o] x[l,o] <= latency_s
                fixed + sum_{c, t in c alive at s} ceil(elements[t] b / 8) y[c,b] <= ram_bytes   each step s
                x, y binary

where ``p`` are the layers' perturbations and ``q`` the sums of the tied tensors'. Where weights lie in RAM their
bytes are added to each step. :mod:`compress.quantize.integer_program` says how floating point is kept from
deciding anything. A limit holds exactly: a total, summed in integers, is within it; where it is a double
(average bits, seconds), the double nearest to the exact quantity is.

The programme is written in the order of names and HiGHS is deterministic, so the same problem gives the same
allocation, in whatever order its layers stand. Where options of a layer are equal in perturbation, one that costs
more in a limited measure is never taken, and of fully equal ones the fewest bits are. Between different
allocations of equal perturbation HiGHS's own, fixed order decides.

It departs from HAWQ-V2 in what can be limited, in the activations, which are part of the same programme, and in
that no setting of bits is enumerated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from compress.errors import BadInput, LimitsUnreachable, UnknownName
from compress.quantize.choices import MEASURES, Limits, Option, Problem, TensorChoice
from compress.quantize.integer_program import minimize
from compress.quantize.selections import Linear, Program, Selection, Shape, linear, reduced
from compress.types import Note, Precision


@dataclass(frozen=True)
class Allocation:
    """What was chosen.

    Attributes:
        precisions: of every layer, by name, in the problem's order.
        tensor_bits: of every activation tensor, by name, in the problem's order.
        perturbation: sum over layers and tensors: the expected increase of the loss.
        weight_bytes, weight_bits, bit_operations, ram_bytes, latency_s: as in
            :class:`compress.quantize.choices.Limits`.
        notes: perturbations that rise with more bits.
    """

    precisions: Mapping[str, Precision]
    tensor_bits: Mapping[str, int]
    perturbation: float
    weight_bytes: int
    weight_bits: float
    bit_operations: int
    ram_bytes: int
    latency_s: float
    notes: tuple[Note, ...] = ()


def solve(problem: Problem, limits: Limits = Limits()) -> Allocation:  # noqa: B008  # frozen
    """The allocation of least perturbation within ``limits``.

    Raises:
        LimitsUnreachable: there is none; the least possible value of each limit is named.
        BadInput: tied tensors and the layers that read them have no width in common.
    """
    model = _Model(problem)
    chosen = minimize(model.program(limits))
    if chosen is None:
        raise LimitsUnreachable(limits.given(), {name: model.least(name) for name in limits.given()})
    return model.allocation(chosen)


def frontier(
    problem: Problem,
    measure: str,
    *,
    count: int = 100,
    budgets: Sequence[float] | None = None,
    limits: Limits = Limits(),  # noqa: B008  # frozen
) -> tuple[Allocation, ...]:
    """The Pareto front of perturbation against one measure: each budget's optimum, the cheapest first.

    From one allocation to the next the measure rises and the perturbation falls. Budgets that no allocation
    meets, or whose optimum is that of a smaller budget, add none.

    Args:
        problem: what can be chosen.
        measure: one of :data:`compress.quantize.choices.MEASURES`.
        count: budgets, evenly spaced from the least possible value of ``measure`` to that of the optimum without
            a budget; at least 2.
        budgets: these instead, in any order.
        limits: on the other measures; one on ``measure`` itself bounds the front.

    Raises:
        LimitsUnreachable: no budget can be met.
        BadInput: ``measure`` is unknown, ``count`` is below 2, ``budgets`` is empty or holds NaN, infinity or a
            number below 0, or tied tensors and their readers have no width in common.
    """
    if measure not in MEASURES:
        raise UnknownName("measure", measure, MEASURES)
    model = _Model(problem)
    if budgets is None:
        budgets = _evenly(model, measure, count, limits)
    elif not len(budgets):
        raise BadInput("the frontier has no budgets; give at least one, or a count")
    levels = [_with(limits, measure, budget) for budget in sorted(set(budgets))]
    programs = [model.program(level) for level in levels]
    found: list[Selection | None] = [None] * len(levels)
    last = len(levels) - 1
    found[last] = minimize(programs[last])
    if found[last] is None:
        given = levels[last].given()
        raise LimitsUnreachable(given, {name: model.least(name) for name in given})
    if last:
        found[0] = minimize(programs[0])

    def fill(low: int, high: int) -> None:
        """Between two solved budgets: a half's optimum is known where a wider budget's also fits it."""
        if high - low < 2:
            return
        middle, below, above = (low + high) // 2, found[low], found[high]
        if above is None:
            found[middle] = None
        elif below is not None and model.perturbation.total(below) == model.perturbation.total(above):
            found[middle] = below
        else:
            found[middle] = above if programs[middle].holds(above) else minimize(programs[middle], below)
        fill(low, middle)
        fill(middle, high)

    fill(0, last)
    front: list[Allocation] = []
    for each in dict.fromkeys(selection for selection in found if selection is not None):
        allocation = model.allocation(each)
        if not front or allocation.perturbation < front[-1].perturbation:
            while front and getattr(front[-1], measure) >= getattr(allocation, measure):
                front.pop()
            front.append(allocation)
    return tuple(front)


def block_order(
    blocks: Mapping[str, Sequence[str]], sensitivity: Mapping[str, float], squared_error: Mapping[str, float]
) -> tuple[str, ...]:
    """The order in which HAWQ (Dong et al. 2019) quantizes blocks and fine-tunes between: the largest first of

        Omega_i = S_i * ||Q(W_i) - W_i||^2

    Args:
        blocks: block -> names of its layers.
        sensitivity: block -> ``S_i``, the top Hessian eigenvalue of the block.
        squared_error: layer -> ``||Q(W) - W||^2`` at its chosen bits; a block's is the sum of its layers'.

    Returns:
        The blocks' names; where Omega is equal, in the order of ``blocks``.

    Raises:
        UnknownName: a block has no sensitivity, or a layer no error.
        BadInput: a number is NaN, infinite or, for an error, below 0.
    """
    omega: dict[str, float] = {}
    for block, layers in blocks.items():
        if block not in sensitivity:
            raise UnknownName("block", block, sensitivity)
        for layer in layers:
            if layer not in squared_error:
                raise UnknownName("layer", layer, squared_error)
            if squared_error[layer] < 0:
                raise BadInput(f"layer {layer}: a squared error of {squared_error[layer]}; give at least 0")
        omega[block] = sensitivity[block] * math.fsum(squared_error[layer] for layer in layers)
        if not math.isfinite(omega[block]):
            raise BadInput(f"block {block}: sensitivity times error is {omega[block]}; give finite numbers")
    return tuple(sorted(blocks, key=lambda block: -omega[block]))


class _Model:
    """The exact programme of a problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.layers = sorted(problem.layers, key=lambda layer: layer.name)
        self.tensors = {tensor.name: tensor for tensor in sorted(problem.tensors, key=lambda tensor: tensor.name)}
        self.class_of = _classes(problem, list(self.tensors))
        readers = [self.class_of[layer.reads[0]] if layer.reads else f"layer {layer.name}" for layer in self.layers]
        groups = list(dict.fromkeys([*self.class_of.values(), *readers]))
        self.cells: list[tuple[str, int]] = []
        for group in groups:
            self.cells += [(group, width) for width in self._widths(group, readers)]
        place = {cell: k for k, cell in enumerate(self.cells)}
        self.items: list[tuple[int, int, Option]] = []
        for k, (layer, group) in enumerate(zip(self.layers, readers, strict=True)):
            for option in sorted(layer.options, key=lambda option: option.precision):
                cell = place.get((group, option.precision.activation_bits if layer.reads else _ANY))
                if cell is not None:
                    self.items.append((k, cell, option))
        order = {group: k for k, group in enumerate(groups)}
        self.shape = Shape(
            tuple(order[group] for group, _ in self.cells), tuple((k, cell) for k, cell, _ in self.items)
        )
        self.perturbation = linear(
            [sum(Fraction(float(t.perturbations[width])) for t in self._members(group)) for group, width in self.cells],
            [Fraction(float(option.perturbation)) for _, _, option in self.items],
        )
        self.rows = self._rows()

    def program(self, limits: Limits) -> Program:
        """Least perturbation within ``limits``."""
        caps = limits.given().items()
        return Program(
            self.shape,
            self.perturbation,
            tuple((row, row.cap(limit)) for name, limit in caps for row in self.rows[name]),
        )

    def least(self, measure: str) -> float:
        """The least possible value of a measure: of RAM too, as the narrowest widths are least at every step."""
        return max(row.value(reduced(self.shape, row).least) for row in self.rows[measure])

    def value(self, measure: str, chosen: Selection) -> float:
        """What a selection takes of a measure."""
        return max(row.value(row.total(chosen)) for row in self.rows[measure])

    def allocation(self, chosen: Selection) -> Allocation:
        """A selection in the problem's words."""
        precisions = {self.layers[k].name: option.precision for k, _, option in (self.items[i] for i in chosen.items)}
        widths = dict(self.cells[cell] for cell in chosen.cells)
        return Allocation(
            precisions={layer.name: precisions[layer.name] for layer in self.problem.layers},
            tensor_bits={tensor.name: widths[self.class_of[tensor.name]] for tensor in self.problem.tensors},
            perturbation=float(self.perturbation.value(self.perturbation.total(chosen))),
            weight_bytes=int(self.value("weight_bytes", chosen)),
            weight_bits=float(self.value("weight_bits", chosen)),
            bit_operations=int(self.value("bit_operations", chosen)),
            ram_bytes=int(self.value("ram_bytes", chosen)),
            latency_s=float(self.value("latency_s", chosen)),
            notes=self.problem.notes,
        )

    def _members(self, group: str) -> list[TensorChoice]:
        return [tensor for name, tensor in self.tensors.items() if self.class_of[name] == group]

    def _widths(self, group: str, readers: Sequence[str]) -> list[int]:
        members = self._members(group)
        if not members:
            return [_ANY]
        layers = [layer for layer, read in zip(self.layers, readers, strict=True) if read == group]
        sets = [set(tensor.perturbations) for tensor in members]
        sets += [{option.precision.activation_bits for option in layer.options} for layer in layers]
        widths = sorted(set.intersection(*sets))
        if not widths:
            names = ", ".join(tensor.name for tensor in members)
            read = f" and the layers that read them ({', '.join(layer.name for layer in layers)})" if layers else ""
            raise BadInput(f"tensors of equal width {names}{read} have no width in common; offer one to all of them")
        return widths

    def _rows(self) -> dict[str, list[Linear]]:
        """Measure -> the quantities that each of its limits caps."""
        none = (0,) * len(self.cells)

        def over(of: Callable[[int, Option], int]) -> tuple[int, ...]:
            return tuple(of(self.layers[k].weights, option) for k, _, option in self.items)

        stored = over(lambda weights, option: option.weight_bytes)
        held = stored if self.problem.weights_in_ram else (0,) * len(self.items)
        bits = over(lambda weights, option: weights * option.precision.weight_bits)
        seconds = [Fraction(float(option.latency_s)) for _, _, option in self.items]
        fixed = Fraction(float(self.problem.fixed_latency_s))
        return {
            "weight_bytes": [Linear(none, stored, self.problem.fixed_weight_bytes)],
            "weight_bits": [Linear(none, bits, unit=sum(layer.weights for layer in self.layers) or 1)],
            "bit_operations": [Linear(none, over(lambda weights, option: option.bit_operations))],
            "ram_bytes": [
                Linear(
                    tuple(self._alive_bytes(group, width, alive) for group, width in self.cells),
                    held,
                    self.problem.fixed_ram_bytes,
                )
                for alive in _live_sets(self.problem)
            ],
            "latency_s": [linear(none, seconds, fixed)],
        }

    def _alive_bytes(self, group: str, width: int, alive: frozenset[str]) -> int:
        return sum(-(-tensor.elements * width // 8) for tensor in self._members(group) if tensor.name in alive)


_ANY = 0
"""The width of a class without tensors: its layer's options need none."""


def _classes(problem: Problem, names: Sequence[str]) -> dict[str, str]:
    """Tensor -> the first of those that it has to be as wide as."""
    first = {name: name for name in names}
    for group in (*problem.ties, *(layer.reads for layer in problem.layers)):
        roots = {first[name] for name in group}
        if len(roots) > 1:
            least = min(roots)
            first = {name: least if root in roots else root for name, root in first.items()}
    return first


def _live_sets(problem: Problem) -> list[frozenset[str]]:
    """The sets of tensors that are alive at once and part of no larger one; one empty set without tensors.

    A largest set is that of a step at which a tensor begins.
    """
    steps = sorted({tensor.first for tensor in problem.tensors})
    sets = {frozenset(t.name for t in problem.tensors if t.first <= step <= t.last): None for step in steps}
    return [alive for alive in sets if not any(alive < other for other in sets)] or [frozenset()]


def _with(limits: Limits, measure: str, budget: float) -> Limits:
    own = getattr(limits, measure)
    changed: dict[str, Any] = {measure: budget if own is None else min(own, budget)}
    return replace(limits, **changed)


def _evenly(model: _Model, measure: str, count: int, limits: Limits) -> list[float]:
    if count < 2:
        raise BadInput(f"a frontier of {count} budgets; ask for at least 2")
    program = model.program(limits)
    widest = minimize(program)
    if widest is None:
        raise LimitsUnreachable(limits.given(), {name: model.least(name) for name in limits.given()})
    low, high = model.least(measure), model.value(measure, widest)
    if len(model.rows[measure]) == 1:
        narrowest = minimize(replace(program, objective=model.rows[measure][0]))
        assert narrowest is not None  # the widest holds
        low = model.value(measure, narrowest)
    return [low, *(low + (high - low) * k / (count - 1) for k in range(1, count - 1)), high]
