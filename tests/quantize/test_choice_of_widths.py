"""The solution of the programme beside those without the narrowest widths: which there are, and which is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from compress.data import from_tensors
from compress.graph.qdq import insert
from compress.graph.trace import trace
from compress.quantize import budgets
from compress.quantize.allocation import solve
from compress.quantize.choices import LayerChoice, Limits, Option, Problem
from compress.quantize.hessian_aware import coarser_left_out, divergence, least_divergent, rounded
from compress.quantize.mixed import integer_precisions
from compress.quantize.study import study
from compress.types import Precision, Quantization, State
from tests.graph.networks import Attention, Plain, build, images
from tests.support import context, random_data

WIDTHS = (1, 2, 4, 8)


def problem(*costs: dict[int, float]) -> Problem:
    """Layers of a hundred weights with these perturbations."""
    return Problem(
        tuple(
            LayerChoice(
                f"layer{number}",
                100,
                (),
                tuple(
                    Option(Precision(bits, 8, "integer"), cost, 100 * bits // 8, 800 * bits)
                    for bits, cost in of.items()
                ),
            )
            for number, of in enumerate(costs)
        )
    )


def chosen(allocation) -> list[int]:
    return [precision.weight_bits for precision in allocation.precisions.values()]


def test_each_leaves_out_one_width_more_and_meets_the_limits():
    loud, quiet = {1: 90.0, 2: 20.0, 4: 2.0, 8: 0.1}, {1: 0.3, 2: 0.2, 4: 0.1, 8: 0.0}
    found, limits = problem(loud, quiet, quiet), Limits(weight_bits=4.0)
    best = solve(found, limits)
    assert chosen(best) == [8, 2, 2]
    others = coarser_left_out(found, limits, best)
    assert [chosen(each) for each in others] == [[4, 4, 4]]
    assert all(each.weight_bits <= 4.0 for each in others)


def test_a_solution_without_narrow_widths_is_compared_with_nothing():
    even = {1: 90.0, 2: 20.0, 4: 1.0, 8: 0.9}
    found, limits = problem(even, even), Limits(weight_bits=4.0)
    best = solve(found, limits)
    assert chosen(best) == [4, 4]
    assert coarser_left_out(found, limits, best) == []


def test_where_the_limits_need_the_narrowest_width_there_is_nothing_else():
    steep = {1: 9.0, 2: 5.0, 4: 2.0, 8: 1.0}
    found, limits = problem(steep, steep), Limits(weight_bits=1.5)
    assert coarser_left_out(found, limits, solve(found, limits)) == []


def studied(factory, task: str = "classification"):
    x = images(64)
    data = random_data(64, 5) if task == "classification" else from_tensors(x, x)
    setting = context(data=data, samples=64)
    state = State(build(factory))
    return state, setting, study(state, setting, integer_precisions(setting.target, 8))


@pytest.mark.parametrize("factory", [Plain, Attention], ids=lambda factory: factory.__name__)
def test_the_divergence_is_that_of_what_is_exported(factory):
    state, setting, known = studied(factory)
    result = rounded(known, state, solve(budgets.problem(known, setting, Limits()), Limits(weight_bits=4.0)), setting)
    with torch.no_grad():
        got = (
            insert(trace(result.model, (known.inputs[:2],)), result.quantization)(known.inputs).double().log_softmax(1)
        )
        wanted = build(factory)(known.inputs).double().log_softmax(1)
    by_module = float(F.kl_div(got, wanted, log_target=True, reduction="batchmean"))
    assert by_module > 0
    # Values half-way between integers, and biases rounded to 32 bits, may come out differently.
    assert divergence(known, result, setting) == pytest.approx(by_module, rel=0.1)
    assert divergence(known, replace(known.state, quantization=Quantization()), setting) == 0.0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_nearest_output_wins_whatever_the_order(order):
    state, setting, known = studied(Plain)
    found = budgets.problem(known, setting, Limits())
    choices = [solve(found, Limits(weight_bits=4.0)), solve(found, Limits(weight_bits=8.0))]
    result = least_divergent(known, state, [choices[at] for at in order], setting)
    assert {layer.precision.weight_bits for layer in result.plan.layers} == {8}
