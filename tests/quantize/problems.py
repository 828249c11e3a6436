"""Random problems of allocation, and an enumeration that shares nothing with the programme that solves them."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from compress.quantize.allocation import Allocation
from compress.quantize.choices import LayerChoice, Limits, Option, Problem, TensorChoice, options
from compress.types import FLOAT32, Precision


def random_problem(seed: int, *, layers: int = 4, widths: tuple[int, ...] = (4, 8), floats: bool = True) -> Problem:
    """Layers that read shared tensors, some tied, perturbations over ten decades, some layers with a float option."""
    draw = random.Random(seed)
    tensors = tuple(
        TensorChoice(
            f"t{i}",
            draw.randrange(1, 50),
            first := draw.randrange(6),
            first + draw.randrange(3),
            {bits: 10 ** draw.uniform(-8, 2) / 4**bits for bits in (*widths, 32)},
        )
        for i in range(layers)
    )
    made = []
    for i in range(layers):
        weights, macs = draw.randrange(1, 40), draw.randrange(1, 1000)
        perturbations = {
            Precision(w, a, "integer"): 10 ** draw.uniform(-8, 2) for w in draw.sample((2, 3, 4, 8), 2) for a in widths
        }
        if floats and draw.random() < 0.7:
            perturbations[FLOAT32] = 0.0
        timed = tuple(replace(o, latency_s=draw.uniform(1e-6, 1e-3)) for o in options(weights, macs, perturbations))
        reads = tuple(draw.sample([t.name for t in tensors], draw.choice((0, 1, 1, 1, 2))))
        made.append(LayerChoice(f"layer{i}", weights, reads, timed))
    ties = (("t0", "t1"),) if draw.random() < 0.5 else ()
    return Problem(tuple(made), tensors, ties, draw.random() < 0.5, draw.choice((0.0, 1e-4)))


def everything(problem: Problem) -> Iterator[tuple[tuple[Option, ...], dict[str, int]]]:
    """Every allowed choice, by enumeration of all choices."""
    names = [tensor.name for tensor in problem.tensors]
    for widths in itertools.product(*(tensor.perturbations for tensor in problem.tensors)):
        bits = dict(zip(names, widths, strict=True))
        if any(len({bits[name] for name in tie}) > 1 for tie in problem.ties):
            continue
        allowed = [
            [o for o in layer.options if all(bits[name] == o.precision.activation_bits for name in layer.reads)]
            for layer in problem.layers
        ]
        for chosen in itertools.product(*allowed):
            yield chosen, bits


def simulated_peak(problem: Problem, bits: dict[str, int]) -> int:
    """The most bytes in use, step by step."""
    last = max((tensor.last for tensor in problem.tensors), default=0)
    return max(
        sum(
            math.ceil(tensor.elements * bits[tensor.name] / 8)
            for tensor in problem.tensors
            if tensor.first <= step <= tensor.last
        )
        for step in range(last + 1)
    )


def measured(problem: Problem, chosen: tuple[Option, ...], bits: dict[str, int]) -> dict[str, Fraction]:
    """Perturbation and every measure, in exact fractions, from their definitions."""
    stored = sum(o.weight_bytes for o in chosen)
    weights = [layer.weights for layer in problem.layers]
    spent = sum(w * o.precision.weight_bits for w, o in zip(weights, chosen, strict=True))
    return {
        "perturbation": sum((Fraction(o.perturbation) for o in chosen), Fraction())
        + sum(Fraction(tensor.perturbations[bits[tensor.name]]) for tensor in problem.tensors),
        "weight_bytes": Fraction(stored),
        "weight_bits": Fraction(spent, sum(weights)),
        "bit_operations": Fraction(sum(o.bit_operations for o in chosen)),
        "ram_bytes": Fraction(simulated_peak(problem, bits) + (stored if problem.weights_in_ram else 0)),
        "latency_s": Fraction(problem.fixed_latency_s) + sum(Fraction(o.latency_s) for o in chosen),
    }


def enumerated(problem: Problem) -> list[dict[str, Fraction]]:
    return [measured(problem, *choice) for choice in everything(problem)]


def within(costs: dict[str, Fraction], limits: Limits) -> bool:
    return all(float(costs[name]) <= limit for name, limit in limits.given().items())


def costs_of(problem: Problem, allocation: Allocation) -> dict[str, Fraction]:
    """The measures of an allocation, from its choices alone; asserts that the choices are allowed."""
    chosen = tuple(
        next(o for o in layer.options if o.precision == allocation.precisions[layer.name]) for layer in problem.layers
    )
    bits = dict(allocation.tensor_bits)
    for layer, option in zip(problem.layers, chosen, strict=True):
        assert {bits[name] for name in layer.reads} <= {option.precision.activation_bits}
    for tie in problem.ties:
        assert len({bits[name] for name in tie}) == 1
    return measured(problem, chosen, bits)


@functools.cache
def solvable(seed: int) -> tuple[Problem, list[dict[str, Fraction]]]:
    """A random problem that has a choice at all, and all its choices; nobody changes them."""
    for attempt in itertools.count(1000 * seed):
        problem = random_problem(attempt)
        if all_choices := enumerated(problem):
            return problem, all_choices
    raise AssertionError


def random_limits(draw: random.Random, all_choices: list[dict[str, Fraction]], names: tuple[str, ...]) -> Limits:
    """Each limit is a value that some choice has, so that many are met with equality."""
    return Limits(**{name: limit_of(name, draw.choice(all_choices)[name]) for name in names})


def limit_of(name: str, value: Fraction) -> float:
    return float(value) if name in ("weight_bits", "latency_s") else int(value)
