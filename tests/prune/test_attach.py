"""Laws of pruning while training, over optimizers and networks; and how a session refuses bad input."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

import compress
from compress import targets
from compress.errors import BadInput, NoPrunableAxis, UnknownName
from compress.graph.groups import removed_indices
from compress.graph.surgery import units_of
from compress.prune.ap import Activating
from compress.prune.norm import magnitudes
from compress.prune.schedule import Schedule
from tests.graph.networks import (
    ROSTER,
    Attention,
    Depthwise,
    Grouped,
    PaddedShortcut,
    Plain,
    Residual,
    Squeeze,
    build,
    images,
)
from tests.prune.loops import OPTIMIZERS, loss_of, train
from tests.rosters import some

STEPS = 16
networks = pytest.mark.parametrize("factory", ROSTER, ids=lambda factory: factory.__name__)
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS)
PAIRS = [(factory, "sgd") for factory in ROSTER]
PAIRS += [(factory, name) for factory in (Plain, Residual, PaddedShortcut) for name in ("adam", "adamw")]
pairs = some(("factory", "optimizer"), PAIRS, quick=[each for each in PAIRS if each[1] == "sgd" or each[0] is Plain])


@cache
def run(factory, optimizer="sgd", **options):
    """A whole run that prunes: the trained network, its session, the result and the losses."""
    model = build(factory)
    wanted = {"macs": 0.9 if factory is Attention else 0.6, "steps": STEPS, **options}
    with compress.attach(model, OPTIMIZERS[optimizer](model.parameters()), **wanted) as session:
        losses = train(model, session, STEPS)
    return model.eval(), session, session.result(), losses


def equal(one, two):
    items = zip(one.state_dict().items(), two.state_dict().items(), strict=True)
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in items)


@pairs
def test_the_smaller_network_has_the_outputs_of_the_trained_one(factory, optimizer):
    model, _, result, _ = run(factory, optimizer)
    x = images(8, seed=9)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-4, atol=1e-6)
    assert result.report.settings["output_difference"] < 1e-5
    assert result.report.settings["units_not_zero"] == 0


@pairs
def test_the_asked_for_macs_are_reached_and_every_redundant_unit_is_exactly_zero(factory, optimizer):
    model, session, result, _ = run(factory, optimizer)
    assert result.report.after.macs <= (0.9 if factory is Attention else 0.6) * result.report.before.macs
    ready = session._ready
    gone = units_of(result.plan, ready.zero.dependencies)
    assert session.zero_units == session.redundant_units == len(gone) > 0
    for group, slots in zip(ready.zero.dependencies.groups, ready.zero.slots, strict=True):
        for unit in group.units:
            elements = [
                model.get_parameter(name).index_select(axis, torch.tensor(unit.members[name, axis]))
                for name, axis in slots
            ]
            assert (unit in gone) == all(bool((each == 0).all()) for each in elements)


@networks
def test_the_users_class_comes_back_in_evaluation_mode_and_trains(factory):
    model, _, result, _ = run(factory)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert type(result.model) is factory
    assert not result.model.training
    small = copy.deepcopy(result.model).train()
    loss_of(small).backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@optimizers
def test_the_same_seed_gives_the_same_result(optimizer):
    _, _, one, _ = run(Residual, optimizer)
    _, _, two, _ = run.__wrapped__(Residual, optimizer)
    assert one.plan.digest() == two.plan.digest()
    assert equal(one.model, two.model)


@pytest.mark.parametrize("factory", [Plain, Residual])
@optimizers
def test_the_loss_still_falls(factory, optimizer):
    model = build(factory)
    with compress.attach(model, OPTIMIZERS[optimizer](model.parameters()), steps=60, macs=0.6) as session:
        losses = train(model, session, 60)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_plain_steps_are_the_optimizers_own():
    model, plain = build(Residual), build(Residual)
    own = OPTIMIZERS["adam"](plain.parameters())
    with compress.attach(model, OPTIMIZERS["adam"](model.parameters()), steps=100, macs=0.5) as session:
        assert train(model, session, session.schedule.bounds[0]) == train_plainly(plain, own, 10)
    assert session.schedule.bounds[0] == 10
    assert equal(model, plain)


def train_plainly(model, optimizer, steps):
    losses = []
    model.train()
    for number in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, number % 3)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_the_optimizers_own_step_prunes_as_the_sessions_does():
    one, two = build(Residual), build(Residual)
    first, second = (OPTIMIZERS["sgd"](model.parameters()) for model in (one, two))
    with compress.attach(one, first, steps=STEPS, macs=0.6) as session:
        train(one, session, STEPS)
    with compress.attach(two, second, steps=STEPS, macs=0.6):
        train_plainly(two, second, STEPS)
    assert equal(one, two)


def test_units_stay_zero_after_the_last_round():
    model = build(Residual)
    with compress.attach(model, OPTIMIZERS["adam"](model.parameters()), steps=STEPS, macs=0.6) as session:
        train(model, session, session.schedule.bounds[-1])
        early = session.result()
        train(model, session, 3 * STEPS)
    assert session.result().plan == early.plan
    assert session.result().report.settings["output_difference"] < 1e-5


def test_channel_counts_are_multiples_of_what_the_target_likes():
    device = replace(targets.load("jetson"), channel_multiple=4)
    _, _, result, _ = run.__wrapped__(Residual, target=device)
    assert {len(layer.keep) % 2 for layer in result.plan.layers} == {0}
    assert {len(layer.keep) % 4 for layer in result.plan.layers if "c" in layer.name or "d" in layer.name} == {0}


def test_a_share_of_the_parameters_can_be_asked_for():
    _, _, result, _ = run(Plain, macs=None, params=0.4)
    assert result.report.after.params <= 0.4 * result.report.before.params


def test_a_layer_to_skip_keeps_its_channels_and_is_reported():
    _, _, result, _ = run(Residual, skip=("a.0",))
    assert result.model.a[0].out_channels == 8
    assert any(note.where == "a.0" and "skip" in note.why for note in result.report.notes)


@pytest.mark.parametrize("criterion", ["saliency", "magnitude", "taylor", magnitudes, Activating("saliency")])
def test_every_criterion_reaches_the_goal(criterion):
    _, _, result, _ = run(Depthwise, criterion=criterion)
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    assert result.report.settings["output_difference"] < 1e-5


def test_magnitude_chooses_the_smallest_of_each_group():
    # With one round, no warm-up and a learning rate of zero the choice is made on the initial weights.
    model = build(Grouped)
    options = {"macs": 0.6, "criterion": "magnitude", "schedule": Schedule(4, warmup=0.0, rounds=1)}
    with compress.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), **options) as session:
        train(model, session, 4)
    ready, original = session._ready, build(Grouped)
    gone = units_of(session.result().plan, ready.zero.dependencies)
    for group, slots in zip(ready.zero.dependencies.groups, ready.zero.slots, strict=True):
        squares = torch.zeros(len(group.units), dtype=torch.float64)
        for name, axis in slots:
            rows = (
                original.get_parameter(name).detach().double().movedim(axis, 0).flatten(1)
                if (original.get_parameter(name).ndim > 1)
                else original.get_parameter(name).detach().double()[:, None]
            )
            each = torch.stack([rows[list(unit.members[name, axis])].square().sum() for unit in group.units])
            squares += each / each.mean()
        chosen = {i for i, unit in enumerate(group.units) if unit in gone}
        assert chosen == set(squares.argsort()[: len(chosen)].tolist())


# --- leaving early ----------------------------------------------------------------------------------------------------


def test_a_result_before_the_end_cuts_what_is_left_and_says_so():
    model = build(Residual)
    with compress.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=100, macs=0.6) as session:
        train(model, session, 30)
        assert 0 <= session.zero_units < session.redundant_units
    trained = copy.deepcopy(model)
    result = session.result()
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    left = session.redundant_units - session.zero_units
    assert result.report.settings["units_not_zero"] == left
    assert any(
        f"{left} of {session.redundant_units} units" in n.what and "after 30 steps" in n.why
        for n in result.report.notes
    )
    assert result.report.settings["output_difference"] > 1e-3
    assert equal(model, trained)


def test_an_exception_leaves_model_and_optimizer_usable():
    model = build(Residual)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    session = compress.attach(model, optimizer, steps=STEPS, macs=0.6)

    def interrupted():
        with session:
            train(model, session, 5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    losses = train_plainly(model, optimizer, 5)
    assert all(loss == loss for loss in losses)
    assert session.steps == 5
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_keeping_everything_changes_nothing():
    model, plain = build(Plain), build(Plain)
    with compress.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=STEPS, macs=1.0) as session:
        train(model, session, STEPS)
    train_plainly(plain, OPTIMIZERS["sgd"](plain.parameters()), STEPS)
    assert equal(model, plain)
    assert equal(session.result().model, model)


# --- bad input --------------------------------------------------------------------------------------------------------


def attach(model=None, **options):
    model = model or build(Plain)
    wanted = {"steps": 10, "macs": 0.5, "example_inputs": images(2), **options}
    return compress.attach(model, OPTIMIZERS["sgd"](model.parameters()), **wanted)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"macs": 1.5}, BadInput, r"macs=1.5: a fraction kept lies in \(0, 1\]"),
        ({"params": 0}, BadInput, r"params=0: a fraction"),
        ({"macs": None}, BadInput, r"needs macs= or params="),
        ({"steps": None}, BadInput, r"needs steps=.*epochs \* len\(loader\)"),
        ({"steps": 0}, BadInput, r"steps=0"),
        ({"steps": 10, "schedule": Schedule(20)}, BadInput, r"the schedule has 20"),
        ({"macs": 0.001}, BadInput, r"least reachable is 0\.\d+ of the MACs"),
        ({"skip": ["conv22"]}, UnknownName, r"unknown layer 'conv22'; nearest: conv2"),
        ({"criterion": "magnitud"}, UnknownName, r"unknown criterion 'magnitud'; nearest: magnitude"),
        ({"criterion": Activating("nothing")}, UnknownName, r"unknown criterion 'nothing'"),
        ({"target": "jetsn"}, UnknownName, r"unknown target 'jetsn'"),
        ({"model": nn.Conv2d(3, 4, 3)}, NoPrunableAxis, r"network's output"),
    ],
)
def test_bad_input_is_refused_in_one_line_when_attaching(options, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        attach(**options)
    assert "\n" not in str(caught.value)


def test_an_optimizer_of_another_network_is_refused():
    with pytest.raises(BadInput, match="holds none of the model's parameters"):
        compress.attach(build(Plain), OPTIMIZERS["sgd"](build(Plain).parameters()), steps=3, macs=0.5)


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(BadInput, match=r"takes a torch.optim.Optimizer, not list"):
        compress.attach(build(Plain), [], steps=3, macs=0.5)


def test_a_step_outside_the_block_and_a_result_without_a_step_are_refused():
    session = attach()
    with pytest.raises(BadInput, match="the session isn't open"):
        session.step()
    with pytest.raises(BadInput, match="no step was taken"):
        session.result()


def test_a_step_before_the_model_was_called_asks_for_example_inputs():
    with attach(example_inputs=None) as session, pytest.raises(BadInput, match="give example_inputs="):
        session.step()


def test_parameters_that_the_optimizer_does_not_train_are_left_alone_and_reported():
    model = build(Residual)
    model.a[0].weight.requires_grad_(False)
    others = [p for name, p in model.named_parameters() if not name.startswith("c.")]
    with compress.attach(model, OPTIMIZERS["sgd"](others), steps=STEPS, macs=0.8) as session:
        train(model, session, STEPS)
    small = session.result().model
    assert (small.a[0].out_channels, small.c[0].out_channels) == (8, 16)
    whys = {note.where: note.why for note in session.notes}
    assert whys["a.0"] == "the optimizer doesn't train a.0.weight"
    assert whys["c.0"] == "the optimizer doesn't train c.0.weight"


def test_squeeze_and_excitation_is_cut_although_a_sigmoid_of_zero_is_not_zero():
    _, session, _, _ = run(Squeeze)
    assert not any("zero" in note.why for note in session.notes)
    assert removed_indices(units_of(session.result().plan, session._ready.zero.dependencies))
