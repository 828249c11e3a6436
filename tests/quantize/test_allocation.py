"""The laws of the allocation of bits: equal to enumeration, limits met exactly, fronts monotone, any order the same."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest

from compress import targets
from compress.errors import BadInput, LimitsUnreachable, UnknownName
from compress.graph.operators import Operator
from compress.profiling.latency import predict
from compress.quantize import integer_program
from compress.quantize.allocation import Allocation, block_order, frontier, solve
from compress.quantize.choices import MEASURES, LayerChoice, Limits, Option, Problem, TensorChoice, on_target, options
from compress.quantize.selections import Linear
from compress.types import FLOAT32, Precision

SEEDS = range(8)


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
    last = max(tensor.last for tensor in problem.tensors)
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


def of(problem: Problem, allocation: Allocation) -> dict[str, Fraction]:
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


def solvable(seed: int) -> tuple[Problem, list[dict[str, Fraction]]]:
    """A random problem that has a choice at all, and all its choices."""
    for attempt in itertools.count(1000 * seed):
        problem = random_problem(attempt)
        if all_choices := enumerated(problem):
            return problem, all_choices
    raise AssertionError


def random_limits(draw: random.Random, all_choices: list[dict[str, Fraction]], names: tuple[str, ...]) -> Limits:
    """Each limit is a value that some choice has, so that many are met with equality."""
    return Limits(**{name: _limit(name, draw.choice(all_choices)[name]) for name in names})


def _limit(name: str, value: Fraction) -> float:
    return float(value) if name in ("weight_bits", "latency_s") else int(value)


mixes = [mix for count in range(len(MEASURES) + 1) for mix in itertools.combinations(MEASURES, count)]


@pytest.mark.parametrize("mix", mixes, ids=lambda mix: "+".join(mix) or "none")
def test_equals_enumeration_under_every_mix_of_limits(mix):
    for seed in range(4):
        problem, all_choices = solvable(seed)
        limits = random_limits(random.Random(f"{seed} {mix}"), all_choices, mix)
        best = min((costs["perturbation"] for costs in all_choices if within(costs, limits)), default=None)
        if best is None:
            with pytest.raises(LimitsUnreachable):
                solve(problem, limits)
            continue
        allocation = solve(problem, limits)
        costs = of(problem, allocation)
        assert within(costs, limits)
        assert costs["perturbation"] == best
        assert {name: float(cost) for name, cost in costs.items()} == {
            name: getattr(allocation, name) for name in costs
        }


@pytest.mark.parametrize("measure", MEASURES)
def test_a_limit_holds_to_the_unit_and_its_least_value_is_reached(measure):
    for seed in SEEDS:
        problem, all_choices = solvable(seed)
        least = min(costs[measure] for costs in all_choices)
        limit = _limit(measure, least)
        assert getattr(solve(problem, Limits(**{measure: limit})), measure) == limit
        below = math.nextafter(limit, 0.0) if isinstance(limit, float) else limit - 1
        with pytest.raises(LimitsUnreachable) as raised:
            solve(problem, Limits(**{measure: below}))
        assert raised.value.least == {measure: limit}
        assert not raised.value.jointly
        assert f"raise {measure}" in str(raised.value)


def test_what_an_allocation_takes_is_a_limit_that_it_meets():
    for seed in SEEDS:
        problem, all_choices = solvable(seed)
        first = solve(problem, random_limits(random.Random(seed), all_choices, ("weight_bits",)))
        again = solve(problem, Limits(**{name: getattr(first, name) for name in MEASURES}))
        assert again.perturbation == first.perturbation


def test_average_bits_are_a_cap_without_tolerance():
    """Ten million weights at 3 bits and one weight more: a cap of 3 can't give that one a fourth bit."""
    many, one = Precision(3, 8, "integer"), Precision(4, 8, "integer")
    problem = Problem(
        (
            LayerChoice("many", 10**7, (), options(10**7, 1, {many: 1.0})),
            LayerChoice("one", 1, (), options(1, 1, {many: 1.0, one: 0.0})),
        )
    )
    assert solve(problem, Limits(weight_bits=3)).precisions["one"] == many
    assert solve(problem, Limits(weight_bits=3.0000001)).precisions["one"] == one


def test_a_decimal_cap_means_the_decimal():
    """2.3 is below 23/10 as a double; ten equal layers may still average 23/10."""
    widths = {Precision(2, 8, "integer"): 1.0, Precision(3, 8, "integer"): 0.0}
    problem = Problem(tuple(LayerChoice(f"l{i}", 7, (), options(7, 1, widths)) for i in range(10)))
    assert Fraction(2.3) < Fraction(23, 10)
    allocation = solve(problem, Limits(weight_bits=2.3))
    assert allocation.weight_bits == 2.3
    assert allocation.perturbation == 7


def test_limits_that_exclude_each_other_are_said_to():
    """Fewer bytes take 2-bit weights, which take longer here: either is possible, both are not."""
    small = Option(Precision(2, 8, "integer"), 1.0, 2, 16, 2e-3)
    fast = Option(Precision(8, 8, "integer"), 0.0, 8, 64, 1e-3)
    problem = Problem((LayerChoice("layer", 8, (), (small, fast)),))
    with pytest.raises(LimitsUnreachable, match="not all together") as raised:
        solve(problem, Limits(weight_bytes=4, latency_s=1.5e-3))
    assert raised.value.jointly
    assert raised.value.least == {"weight_bytes": 2, "latency_s": 1e-3}
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_larger_budget_never_costs_more_and_the_front_is_solve_at_each_budget(measure):
    for seed in SEEDS:
        problem, all_choices = solvable(seed)
        budgets = sorted({_limit(measure, costs[measure]) for costs in all_choices})[::7]
        alone = [solve(problem, Limits(**{measure: budget})) for budget in budgets]
        for narrow, wide in itertools.pairwise(alone):
            assert wide.perturbation <= narrow.perturbation
        front = frontier(problem, measure, budgets=budgets[::-1])
        for a, b in itertools.pairwise(front):
            assert getattr(a, measure) < getattr(b, measure)
            assert a.perturbation > b.perturbation
        for budget, each in zip(budgets, alone, strict=True):
            affordable = [a.perturbation for a in front if getattr(a, measure) <= budget]
            assert min(affordable) == each.perturbation


def test_a_counted_front_reaches_from_the_least_possible_to_the_optimum():
    for seed, measure in itertools.product(SEEDS, MEASURES):
        problem, all_choices = solvable(seed)
        front = frontier(problem, measure, count=9)
        assert getattr(front[0], measure) == float(min(costs[measure] for costs in all_choices))
        assert front[-1].perturbation == float(min(costs["perturbation"] for costs in all_choices))
        assert len(front) <= 9


def test_a_front_keeps_to_the_other_limits():
    for seed in SEEDS:
        problem, all_choices = solvable(seed)
        limits = random_limits(random.Random(seed), all_choices, ("weight_bytes",))
        allowed = [costs for costs in all_choices if within(costs, limits)]
        front = frontier(problem, "latency_s", count=5, limits=limits)
        assert all(within(of(problem, each), limits) for each in front)
        assert front[0].latency_s == float(min(costs["latency_s"] for costs in allowed))
        assert front[-1].perturbation == float(min(costs["perturbation"] for costs in allowed))


def test_sixty_layers_and_a_hundred_budgets():
    """A large front is dense and monotone, and its figures are those of its choices."""
    problem = random_problem(0, layers=60, floats=False)
    front = frontier(problem, "weight_bits", count=100)
    assert len(front) > 60
    for each in front:
        assert of(problem, each)["perturbation"] == pytest.approx(each.perturbation, rel=1e-15)
    for a, b in itertools.pairwise(front):
        assert a.weight_bits < b.weight_bits
        assert a.perturbation > b.perturbation


@pytest.mark.parametrize("seed", SEEDS)
def test_twenty_layers_equal_dynamic_programming(seed):
    """One limit and no shared tensor make a multiple-choice knapsack, which a table over the bits solves."""
    draw = random.Random(seed)
    layers = []
    for i in range(20):
        weights = draw.randrange(1, 60)
        trace = 10 ** draw.uniform(-6, 2)
        widths = {Precision(w, 8, "integer"): trace * 4.0**-w * draw.uniform(0.5, 2) for w in (2, 3, 4, 6, 8)}
        layers.append(LayerChoice(f"l{i}", weights, (), options(weights, 1, widths)))
    total = sum(layer.weights for layer in layers)
    best: dict[int, Fraction] = {0: Fraction()}
    for layer in layers:
        table: dict[int, Fraction] = {}
        for (spent, cost), option in itertools.product(best.items(), layer.options):
            bits, sum_ = spent + layer.weights * option.precision.weight_bits, cost + Fraction(option.perturbation)
            if bits not in table or sum_ < table[bits]:
                table[bits] = sum_
        best = table
    for cap in (2.24, 3.0, 4.5):
        expected = min(cost for bits, cost in best.items() if bits <= Fraction(str(cap)) * total)
        problem = Problem(tuple(layers))
        assert of_weights(problem, solve(problem, Limits(weight_bits=cap))) == expected


def of_weights(problem: Problem, allocation: Allocation) -> Fraction:
    return sum(
        (
            Fraction(next(o.perturbation for o in layer.options if o.precision == allocation.precisions[layer.name]))
            for layer in problem.layers
        ),
        Fraction(),
    )


def test_small_differences_count_beside_large_ones():
    """Perturbations of 1e2 that all budgets exclude don't hide one of 1e-8."""
    hot = {Precision(2, 8, "integer"): 1e2, Precision(8, 8, "integer"): 0.0}
    cold = {Precision(2, 8, "integer"): 1e-8, Precision(8, 8, "integer"): 0.0}
    mild = {Precision(2, 8, "integer"): 1.1e-8, Precision(8, 8, "integer"): 0.0}
    made = [LayerChoice(f"hot{i}", 100, (), options(100, 1, hot)) for i in range(5)]
    made += [LayerChoice(n, 100, (), options(100, 1, curve)) for n, curve in (("cold", cold), ("mild", mild))]
    allocation = solve(Problem(tuple(made)), Limits(weight_bits=(6 * 8 + 2) / 7))
    assert allocation.perturbation == 1e-8
    assert allocation.precisions["cold"].weight_bits == 2


def test_the_order_of_layers_and_options_changes_nothing():
    for seed in SEEDS:
        problem, all_choices = solvable(seed)
        limits = random_limits(random.Random(seed), all_choices, ("weight_bits", "ram_bytes"))
        draw = random.Random(seed)
        layers = [replace(layer, options=layer.options[::-1]) for layer in problem.layers]
        tensors = list(problem.tensors)
        draw.shuffle(layers)
        draw.shuffle(tensors)
        shuffled = replace(problem, layers=tuple(layers), tensors=tuple(tensors))
        try:
            first = solve(problem, limits)
        except LimitsUnreachable:
            continue
        assert solve(problem, limits) == first
        other = solve(shuffled, limits)
        assert dict(other.precisions) == dict(first.precisions)
        assert dict(other.tensor_bits) == dict(first.tensor_bits)


def test_equal_layers_are_told_apart_the_same_way_every_time():
    """Two of six equal layers can have 4 bits: fifteen optima, of which one is always given."""
    widths = {Precision(2, 8, "integer"): 1.0, Precision(4, 8, "integer"): 0.25}
    layers = [LayerChoice(f"l{i}", 10, (), options(10, 1, widths)) for i in range(6)]
    given = {
        tuple(sorted(solve(Problem(tuple(order)), Limits(weight_bits=16 / 6)).precisions.items()))
        for order in (layers, layers[::-1], layers[3:] + layers[:3])
    }
    assert len(given) == 1


def test_of_options_that_perturb_equally_the_cheaper_is_taken():
    widths = {Precision(w, 8, "integer"): 0.5 for w in (8, 4, 2)}
    problem = Problem((LayerChoice("layer", 10, (), options(10, 1, widths)),))
    assert solve(problem).weight_bits == 2
    assert solve(problem, Limits(weight_bits=8)).weight_bits == 2


def test_without_limits_float_layers_stay_float():
    tensor = TensorChoice("x", 10, 0, 1, {8: 1e-3, 32: 0.0})
    curve = {Precision(4, 8, "integer"): 1e-2, FLOAT32: 0.0}
    allocation = solve(Problem((LayerChoice("layer", 10, ("x",), options(10, 1, curve)),), (tensor,)))
    assert allocation.precisions == {"layer": FLOAT32}
    assert allocation.tensor_bits == {"x": 32}
    assert allocation.perturbation == 0.0


def test_options_cost_what_their_bits_do():
    (narrow, wide) = options(9, 100, {Precision(3, 8, "integer"): 0.5, FLOAT32: 0.0})
    assert (narrow.weight_bytes, narrow.bit_operations, narrow.perturbation) == (4, 2400, 0.5)
    assert (wide.weight_bytes, wide.bit_operations) == (36, 102400)


def chain() -> tuple[Operator, ...]:
    """Convolution, addition with the input, linear layer: the addition works at the convolution's precision."""
    return (
        Operator("conv", "first", "conv2d", 9 * 16 * 16 * 1024, 2304, 2304, ("x",), 16384, 16, 16),
        Operator("add", "", "add", 0, 0, 0, ("conv", "x"), 16384),
        Operator("flat", "", "flatten", 0, 0, 0, ("add",), 16384),
        Operator("fc", "last", "linear", 163840, 163840, 163850, ("flat",), 10, 16384, 10),
    )


@pytest.mark.parametrize("name", ["cpu", "cortex-m7", "jetson-orin-nano"])
def test_seconds_are_those_of_the_latency_model(name):
    operators, target = chain(), targets.load(name)
    curve = {Precision(w, a, "integer"): 1.0 / w for w in (1, 2, 4, 8) for a in (4, 8)} | {FLOAT32: 0.0}
    layers = tuple(
        LayerChoice(o.path, o.weights, (), options(o.weights, o.macs, curve)) for o in operators if o.weights
    )
    problem = on_target(Problem(layers), operators, target, inputs={"x": 16384})
    fastest = min(
        predict(operators, dict(zip(("first", "last"), pair, strict=True)), target, 0, 0, inputs={"x": 16384}).latency_s
        for pair in itertools.product(target.precisions, repeat=2)
        if set(pair) <= set(curve)
    )
    for each in frontier(problem, "latency_s", count=5):
        assert set(each.precisions.values()) <= set(target.precisions)
        expected = predict(operators, dict(each.precisions), target, 0, 0, inputs={"x": 16384}).latency_s
        assert each.latency_s == pytest.approx(expected, rel=1e-12)
    with pytest.raises(LimitsUnreachable):
        solve(problem, Limits(latency_s=fastest * 0.999))
    assert solve(problem, Limits(latency_s=fastest * 1.001)).latency_s == pytest.approx(fastest, rel=1e-12)


def test_a_layer_that_the_target_runs_at_none_of_its_options_is_named():
    layer = LayerChoice("first", 8, (), options(8, 1, {Precision(5, 5, "integer"): 0.0}))
    with pytest.raises(BadInput, match="layer first: cpu runs none of W5A5"):
        on_target(Problem((layer,)), chain(), targets.load("cpu"), inputs={"x": 16384})
    with pytest.raises(UnknownName, match="layer 'frist'"):
        on_target(Problem((replace(layer, name="frist"),)), chain(), targets.load("cpu"), inputs={"x": 16384})


def test_more_bits_that_perturb_more_are_allowed_and_noted():
    curve = {Precision(2, 8, "integer"): 1.0, Precision(4, 8, "integer"): 2.0}
    problem = Problem(
        (LayerChoice("layer", 8, ("x",), options(8, 1, curve)),), (TensorChoice("x", 8, 0, 0, {8: 1.0, 16: 3.0}),)
    )
    notes = solve(problem).notes
    assert [note.where for note in notes] == ["layer", "x"]
    assert all("rises" in note.why for note in notes)


GOOD = Option(Precision(8, 8, "integer"), 0.0, 8, 64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Problem((LayerChoice("a", 8, (), (replace(GOOD, perturbation=-1.0),)),)), "perturbation is -1"),
        (lambda: Problem((LayerChoice("a", 8, (), (replace(GOOD, perturbation=math.nan),)),)), "perturbation is nan"),
        (lambda: Problem((LayerChoice("a", 8, (), (replace(GOOD, latency_s=math.inf),)),)), "latency_s is inf"),
        (lambda: Problem((LayerChoice("a", 8, (), ()),)), "no option"),
        (lambda: Problem((LayerChoice("a", 8, (), (GOOD, GOOD)),)), "listed twice"),
        (lambda: Problem((LayerChoice("a", 8, (), (GOOD,)),) * 2), "'a' is listed twice"),
        (lambda: Problem((LayerChoice("a", 8, ("x",), (GOOD,)),)), "unknown activation tensor 'x'"),
        (lambda: Problem((), (TensorChoice("x", 8, 0, 1, {8: 0.0}),), (("x", "y"),)), "unknown activation tensor 'y'"),
        (lambda: Problem((), (TensorChoice("x", 8, 0, 1, {}),)), "no width"),
        (lambda: Problem((), (TensorChoice("x", 8, 2, 1, {8: 0.0}),)), "from step 2 to 1"),
        (lambda: Problem((), (TensorChoice("x", 8, 0, 1, {8: math.nan}),)), "perturbation is nan"),
        (lambda: Limits(weight_bits=math.nan), "weight_bits is nan"),
        (lambda: Limits(latency_s=-1.0), "latency_s is -1"),
        (lambda: frontier(Problem(()), "params"), "unknown measure 'params'"),
        (lambda: frontier(Problem(()), "weight_bits", count=1), "at least 2"),
        (lambda: frontier(Problem(()), "weight_bits", budgets=[]), "no budgets"),
        (
            lambda: solve(Problem((LayerChoice("a", 8, ("x",), (GOOD,)),), (TensorChoice("x", 8, 0, 1, {4: 0.0}),))),
            "no width in common",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(make, message):
    with pytest.raises(BadInput, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_what_the_solver_prints_reaches_nobody(capfd, monkeypatch):
    """HiGHS prints from C where its options ask for silence; Python's own output is left alone."""
    libc, solver = ctypes.CDLL(None), integer_program.milp

    def noisy(*args, **options):
        libc.puts(b"from C")
        os.write(1, b"from the descriptor")
        return solver(*args, **options)

    monkeypatch.setattr(integer_program, "milp", noisy)
    print("before")
    frontier(random_problem(3, layers=30, floats=False), "weight_bits", count=4)
    print("after")
    libc.fflush(None)
    assert capfd.readouterr() == ("before\nafter\n", "")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cap_is_the_largest_total_whose_double_is_not_above_the_limit(seed):
    draw = random.Random(seed)
    for _ in range(200):
        unit = draw.choice((draw.randrange(2, 10**6), 2 ** draw.randrange(1, 70), draw.randrange(2, 10**20)))
        limit = draw.choice((draw.uniform(0, 9), draw.randrange(9), draw.randrange(90) / 10, 10 ** draw.uniform(-9, 0)))
        cap = Linear((), (), unit=unit).cap(limit)
        assert cap / unit <= limit < (cap + 1) / unit


def test_a_solution_above_a_cap_is_cut_off(monkeypatch):
    """A solver that ignores the caps by ten units: what it returns is summed again and the next best taken."""
    problem, all_choices = solvable(3)
    limits = Limits(weight_bytes=sorted(int(costs["weight_bytes"]) for costs in all_choices)[len(all_choices) // 3])
    exact, system = solve(problem, limits), integer_program._system

    def leaking(*args):
        made = system(*args)
        terms, low, high = made.rows[-1]
        return replace(made, rows=[*made.rows[:-1], (terms, low, high + 10)])

    monkeypatch.setattr(integer_program, "_system", leaking)
    assert solve(problem, limits) == exact


def test_blocks_stand_by_sensitivity_times_squared_error():
    blocks = {"stem": ("a",), "body": ("b", "c"), "head": ("d",)}
    order = block_order(blocks, {"stem": 3.0, "body": 2.0, "head": 6.0}, {"a": 1.0, "b": 1.0, "c": 1.5, "d": 0.5})
    assert order == ("body", "stem", "head")  # 5, 3 and 3: equal ones keep their order
    with pytest.raises(UnknownName, match="block 'head'"):
        block_order(blocks, {"stem": 3.0, "body": 2.0}, {"a": 1.0, "b": 1.0, "c": 1.5, "d": 0.5})
    with pytest.raises(UnknownName, match="layer 'd'"):
        block_order(blocks, {"stem": 3.0, "body": 2.0, "head": 6.0}, {"a": 1.0, "b": 1.0, "c": 1.5})
    with pytest.raises(BadInput, match="layer a"):
        block_order(blocks, {"stem": 3.0, "body": 2.0, "head": 6.0}, {"a": -1.0, "b": 1.0, "c": 1.5, "d": 0.5})
