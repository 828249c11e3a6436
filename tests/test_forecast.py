"""Forecasts: what is expected of each proposal agrees with the network that the proposal's own stages make."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import pytest
import torch

from compress import pipeline, targets
from compress.forecast import Forecast, forecasts
from compress.graph import costs
from compress.job import Job, assess, reference
from compress.preflight import check
from compress.prune import roster
from compress.prune.goal import Goal
from compress.prune.outlook import outlook
from compress.search import SMALLEST
from compress.types import Budget, Precision, State, Target
from tests.graph.networks import Plain, Residual, build
from tests.profiling.synthetic import PRICES, calibration
from tests.rosters import some
from tests.support import random_data


def job(prune: str | None = "norm", target: Target | None = None, **more: object) -> Job:
    options: dict[str, object] = {"candidates": 4, "samples": 32, "quantize": "uniform"} | more
    return Job("p", build(Residual), random_data(), target or targets.load("cpu"), prune=prune, **options)  # type: ignore[arg-type]


def of(asked: Job) -> tuple[Forecast, ...]:
    def quiet(message: str) -> None:
        pass

    return forecasts(asked, check(asked).least, asked.sensitivity(quiet), quiet)


@cache
def mixed() -> tuple[Job, tuple[Forecast, ...]]:
    asked = job("reconstruct", quantize="hessian")
    return asked, of(asked)


@pytest.mark.slow
def test_no_two_proposals_make_the_same_network() -> None:
    _, found = mixed()
    assert len({forecast.proposal for forecast in found}) == len(found) > 20
    assert len({(f.pruning, f.rounding, f.flash_bytes, f.latency_s) for f in found}) == len(found)


def test_the_whole_network_is_among_them_and_undamaged_by_pruning() -> None:
    _, found = mixed()
    whole = [forecast for forecast in found if not forecast.proposal.shrinks]
    assert {forecast.pruning for forecast in whole} == {0.0}
    assert all(forecast.pruning > 0 for forecast in found if forecast.proposal.shrinks)


def test_what_is_smaller_is_damaged_more() -> None:
    _, found = mixed()
    same_width = [f for f in found if f.proposal.weight_bits == 8]
    for one, other in itertools.pairwise(same_width):
        assert other.proposal.macs < one.proposal.macs
        assert other.pruning >= one.pruning
        assert other.flash_bytes < one.flash_bytes
    same_size = [f for f in found if not f.proposal.shrinks]
    for one, other in itertools.pairwise(same_size):
        assert other.proposal.weight_bits < one.proposal.weight_bits
        assert other.rounding > one.rounding


@some("method", sorted(set(roster.METHODS) - {"learned-coreset"}), quick=["coreset", "norm", "reconstruct"])
@pytest.mark.slow
def test_the_network_that_is_made_is_about_as_large_as_was_forecast(method: str) -> None:
    asked = job(method, quantize=None)
    found = [forecast for forecast in of(asked) if forecast.proposal.shrinks]
    for forecast in (found[len(found) // 3], found[len(found) // 2]):
        context = asked.context("test", lambda message: None)
        state = pipeline.run(asked.stages(forecast.proposal), State(asked.model), context, lambda state: None)  # type: ignore[arg-type, return-value]
        made = assess(state, asked.target, asked.example)
        params = sum(parameter.numel() for parameter in state.model.parameters())
        # What fits is given back only when a network is made; in so small a one a unit is much.
        assert 4 * params / 1.8 <= forecast.flash_bytes <= 4 * params * 1.1
        assert forecast.latency_s == pytest.approx(made.estimate(0).latency_s, rel=0.3)


@some("method", list(roster.METHODS), quick=[roster.DEFAULT, "norm"])
def test_every_method_has_an_outlook_from_the_whole_network_down(method: str) -> None:
    asked = job(method)
    context = asked.context("test", lambda message: None)
    looks = list(outlook(roster.METHODS[method](Goal()), State(asked.model), context, "macs"))
    whole = costs.size(_network(asked))
    assert (looks[0].macs, looks[0].params, looks[0].damage) == (whole.macs, whole.params, 0.0)
    for one, other in itertools.pairwise(looks):
        assert other.macs < one.macs
        assert other.damage >= one.damage
    assert looks[-1].macs < 0.2 * whole.macs


def _network(asked: Job):
    from compress.graph.trace import trace

    return trace(asked.model, (asked.example,))


@pytest.mark.parametrize(
    ("budget", "largest"),
    [(Budget(macs=0.5), (0.5, None)), (Budget(params=0.4), (None, 0.4)), (Budget(macs=0.6, params=0.7), (0.6, 0.7))],
)
def test_none_is_larger_than_what_was_asked_for(budget: Budget, largest: tuple[float | None, float | None]) -> None:
    found = of(job(budget=budget))
    assert (found[0].proposal.macs, found[0].proposal.params) == largest
    for forecast in found:
        assert largest[0] is None or SMALLEST * largest[0] <= forecast.proposal.macs <= largest[0]
        assert largest[1] is None or forecast.proposal.params <= largest[1]


def test_without_pruning_there_is_one_size_and_without_quantization_no_width() -> None:
    assert {f.proposal.macs for f in of(job(None, quantize="hessian"))} == {1.0}
    assert {f.proposal.weight_bits for f in of(job(quantize=None))} == {None}


def test_a_cap_on_the_average_is_a_cap() -> None:
    found = of(job("norm", quantize="hessian", budget=Budget(weight_bits=5.0)))
    assert {f.proposal.weight_bits for f in found} == {5.0}


def test_the_same_job_gives_the_same_forecasts() -> None:
    asked, found = mixed()
    assert of(replace(asked, shared={})) == found


def test_inputs_that_nobody_saw_before_change_nothing_in_the_whole_networks_costs() -> None:
    other = Job("q", build(Plain), random_data(), targets.load("cortex-m4"), quantize="uniform", samples=16)
    whole = of(other)[0]
    torch.manual_seed(1)
    assert of(replace(other, data=random_data(), shared={}))[0] == whole


def calibrated() -> Job:
    """Launches cost nothing, so that pruning buys time; tvm is twice as fast."""
    held = calibration()
    prices = {name: price * (0.0 if name.endswith(("launch", "run")) else 1.0) for name, price in PRICES.items()}
    fits = tuple(
        replace(fit, prices={name: price * (0.5 if fit.runtime == "tvm" else 1.0) for name, price in prices.items()})
        for fit in held.fits
    )
    return job("reconstruct", target=replace(targets.load("cpu"), calibration=replace(held, fits=fits)))


def test_with_a_calibration_it_proposes_latencies_of_the_precision_and_the_runtime_to_come() -> None:
    asked = calibrated()
    assert asked.compared_runtimes == ("onnxruntime", "tvm")
    assert asked.judged_runtime == "tvm"
    found = of(asked)
    timed = [forecast for forecast in found if forecast.proposal.latency is not None]
    whole = next(forecast for forecast in found if not forecast.proposal.shrinks)
    assert timed
    for forecast in timed:
        share = forecast.proposal.latency
        assert share is not None
        assert forecast.latency_s <= share * whole.latency_s * (1 + 1e-9)
    goal = asked.goal(timed[0].proposal)
    assert (goal.precision, goal.runtime) == (Precision(8, 8, "integer"), "tvm")
    assert goal.latency_s == pytest.approx(timed[0].proposal.latency * whole.latency_s)  # type: ignore[operator]


def test_the_network_that_a_latency_makes_is_predicted_to_keep_it() -> None:
    asked = calibrated()
    timed = [forecast for forecast in of(asked) if forecast.proposal.latency is not None]
    proposal = timed[len(timed) // 2].proposal
    context = asked.context("test", lambda message: None)
    state = pipeline.run(asked.stages(proposal)[:1], State(asked.model), context, lambda state: None)  # type: ignore[arg-type, return-value]
    made, whole = assess(state, asked.target, asked.example), reference(asked)
    seconds = [asked.seconds(each.operators, each.inputs, asked.precision, "tvm") for each in (made, whole)]
    assert proposal.latency is not None
    assert seconds[0] <= proposal.latency * seconds[1] * (1 + 1e-9)


def test_runtimes_that_no_calibration_is_of_are_not_compared_with_those_that_one_is() -> None:
    asked = calibrated()
    held = asked.target.calibration
    assert held is not None
    only = tuple(fit for fit in held.fits if fit.runtime == "onnxruntime")
    target = replace(asked.target, calibration=replace(held, fits=only))
    assert replace(asked, target=target, shared={}).compared_runtimes == ("onnxruntime",)
    assert replace(asked, runtime="tvm", shared={}).compared_runtimes == ("tvm",)
    assert job().compared_runtimes == (targets.load("cpu").runtime,)
