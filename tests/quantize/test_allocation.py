"""The laws of the allocation of bits: equal to enumeration, limits met exactly, fronts monotone, any order the same."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import random
from dataclasses import replace
from fractions import Fraction

import pytest

from compress import targets
from compress.errors import BadInput, LimitsUnreachable, UnknownName
from compress.graph.operators import Operator
from compress.profiling.latency import predict
from compress.quantize import integer_program
from compress.quantize.allocation import block_order, frontier, solve
from compress.quantize.choices import MEASURES, LayerChoice, Limits, Option, Problem, TensorChoice, on_target, options
from compress.quantize.selections import Linear
from compress.types import FLOAT32, Precision
from tests.quantize.problems import costs_of, limit_of, random_limits, random_problem, solvable, within
from tests.rosters import some

SEEDS = range(8)


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
        costs = costs_of(problem, allocation)
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
        limit = limit_of(measure, least)
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
        budgets = sorted({limit_of(measure, costs[measure]) for costs in all_choices})[::7]
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
        assert all(within(costs_of(problem, each), limits) for each in front)
        assert front[0].latency_s == float(min(costs["latency_s"] for costs in allowed))
        assert front[-1].perturbation == float(min(costs["perturbation"] for costs in allowed))


def test_sixty_layers_and_a_hundred_budgets():
    """A large front is dense and monotone, and its figures are those of its choices."""
    problem = random_problem(0, layers=60, floats=False)
    front = frontier(problem, "weight_bits", count=100)
    assert len(front) > 60
    for each in front:
        assert costs_of(problem, each)["perturbation"] == pytest.approx(each.perturbation, rel=1e-15)
    for a, b in itertools.pairwise(front):
        assert a.weight_bits < b.weight_bits
        assert a.perturbation > b.perturbation


@some("seed", SEEDS, quick=SEEDS[:3])
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
        assert costs_of(problem, solve(problem, Limits(weight_bits=cap)))["perturbation"] == expected


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


def test_equal_layers_that_miss_a_limit_by_the_last_place():
    """Six slow layers of fourteen are one place above the limit, in 3,003 ways that no tolerance tells from it."""
    fast = Option(Precision(2, 8, "integer"), 1.0, 2, 16, 1e-3 / 3)
    slow = Option(Precision(8, 8, "integer"), 0.0, 8, 64, 2e-3 / 3)
    problem = Problem(tuple(LayerChoice(f"l{i:02}", 8, (), (fast, slow)) for i in range(14)))
    six = float(6 * Fraction(slow.latency_s) + 8 * Fraction(fast.latency_s))
    assert solve(problem, Limits(latency_s=six)).perturbation == 8
    allocation = solve(problem, Limits(latency_s=math.nextafter(six, 0.0)))
    assert allocation.latency_s < six
    assert allocation.perturbation == 9


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
