"""Pruning inside the training loops that people write: checkpoints, schedulers, clipping, accumulation, AMP."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import compress
from compress import data
from compress.errors import BadInput
from compress.prune import prune
from compress.prune.schedule import Schedule
from compress.training import Recipe, evaluate, fit, learning_rate
from tests.graph.networks import Plain, Residual, build, images
from tests.prune.loops import OPTIMIZERS, loss_of, train
from tests.rosters import crossed

STEPS = 20


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def saved(thing):
    """What torch.save writes and torch.load reads, with weights only."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@crossed(("optimizer", "stop"), OPTIMIZERS, [1, 6, 15, 20])
def test_a_resumed_run_equals_the_uninterrupted_one(optimizer, stop):
    def options():
        return {"macs": 0.6, "schedule": Schedule(STEPS, rounds=2), "example_inputs": images(2)}

    whole, first, second = build(Residual), build(Residual), build(Residual, seed=1)
    with compress.attach(whole, OPTIMIZERS[optimizer](whole.parameters()), **options()) as session:
        train(whole, session, STEPS)
    expected = session.result()

    before = OPTIMIZERS[optimizer](first.parameters())
    with compress.attach(first, before, **options()) as session:
        train(first, session, stop)
    state = saved({"model": first.state_dict(), "optimizer": before.state_dict(), "session": session.state_dict()})

    after = OPTIMIZERS[optimizer](second.parameters())
    second.load_state_dict(state["model"])
    after.load_state_dict(state["optimizer"])
    session = compress.attach(second, after, **options())
    session.load_state_dict(state["session"])
    with session:
        train(second, session, STEPS - stop, first=stop)
    assert equal(whole, second)
    result = session.result()
    assert result.plan == expected.plan
    assert result.report.settings == expected.report.settings


def test_a_checkpoint_can_be_loaded_before_the_network_was_looked_at():
    model = build(Plain)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with compress.attach(model, optimizer, steps=STEPS, macs=0.6) as session:
        train(model, session, 15)
    resumed = compress.attach(model, optimizer, steps=STEPS, macs=0.6)
    resumed.load_state_dict(session.state_dict())
    assert saved(resumed.state_dict())["settled"] == session.state_dict()["settled"]
    with resumed:
        train(model, resumed, 5, first=15)
    assert resumed.zero_units == resumed.redundant_units
    assert resumed.steps == STEPS


def test_a_checkpoint_of_another_goal_is_refused():
    model = build(Plain)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with compress.attach(model, optimizer, steps=STEPS, macs=0.6, example_inputs=images(2)) as session:
        train(model, session, 3)
    other = compress.attach(model, optimizer, steps=STEPS, macs=0.4, example_inputs=images(2))
    with pytest.raises(BadInput, match="of another network, goal or schedule"):
        other.load_state_dict(session.state_dict())


def looped(body, steps=STEPS, factory=Residual, **options):
    """Train with ``body(model, optimizer, session, number)``; the model and the session."""
    model = build(factory).train()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with compress.attach(model, optimizer, **{"steps": steps, "macs": 0.6, **options}) as session:
        for number in range(STEPS):
            body(model, optimizer, session, number)
    assert session.zero_units == session.redundant_units
    assert session.result().report.settings["output_difference"] < 1e-5
    return model, session


def test_learning_rate_schedulers_and_gradient_clipping_need_nothing():
    rates = []

    def body(model, optimizer, session, number):
        if number == 0:
            body.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        session.zero_grad()
        loss_of(model, number).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        assert torch.isfinite(norm)
        session.step()
        body.scheduler.step()
        rates.append(session.param_groups[0]["lr"])

    looped(body)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.0)


def test_accumulated_gradients_count_a_step_where_the_optimizer_makes_one():
    def body(model, optimizer, session, number):
        (loss_of(model, number) / 2).backward()
        if number % 2:
            session.step()
            session.zero_grad()

    _, session = looped(body, steps=STEPS // 2)
    assert session.steps == STEPS // 2


@pytest.mark.parametrize("through", ["session", "optimizer"])
def test_a_gradient_scaler_takes_the_session_or_the_optimizer(through):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def body(model, optimizer, session, number):
        stepped = session if through == "session" else optimizer
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, number)
        scaler.scale(loss).backward()
        scaler.unscale_(stepped)
        assert all(p.grad.abs().max() < 100 for p in model.parameters())
        scaler.step(stepped)
        scaler.update()

    _, session = looped(body)
    assert session.steps == STEPS


def test_a_step_that_the_scaler_skips_does_not_count():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def body(model, optimizer, session, number):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, number)).backward()
        if number == 3:
            model.head.weight.grad.fill_(torch.inf)
        scaler.step(session)
        scaler.update()

    _, session = looped(body, steps=STEPS - 1)
    assert session.steps == STEPS - 1


def test_a_closure_is_passed_on():
    def body(model, optimizer, session, number):
        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, number)
            loss.backward()
            return loss

        assert float(session.step(closure).detach()) > 0

    looped(body)
    looped(body, example_inputs=images(2))


def test_parameters_without_gradients_and_unused_ones_do_no_harm():
    class Unused(Plain):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(3, 3)

    def body(model, optimizer, session, number):
        session.zero_grad()
        loss_of(model, number).backward()
        model.conv1.bias.grad = None
        assert model.extra.weight.grad is None
        session.step()

    looped(body, factory=Unused)


def test_parameter_groups_keep_their_own_settings():
    model = build(Residual)
    wide = [p for p in model.parameters() if p.ndim > 1]
    narrow = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": wide, "lr": 0.05, "weight_decay": 1e-2}, {"params": narrow, "lr": 0.01}]
    with compress.attach(model, torch.optim.SGD(groups, lr=0.1, momentum=0.9), steps=STEPS, macs=0.6) as session:
        train(model, session, STEPS)
    assert session.result().report.settings["output_difference"] < 1e-5
    assert [group["lr"] for group in session.param_groups] == [0.05, 0.01]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
def test_a_model_on_the_gpu():
    model = build(Residual).cuda()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with compress.attach(model, optimizer, steps=STEPS, macs=0.6, example_inputs=images(2)) as session:
        for number in range(STEPS):
            session.zero_grad()
            output = model(images(16, number).cuda())
            F.cross_entropy(output, torch.arange(16).cuda() % 5).backward()
            session.step()
    result = session.result()
    assert next(result.model.parameters()).is_cuda
    assert result.report.settings["units_not_zero"] == 0
    assert result.report.settings["output_difference"] < 1e-3


class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Conv2d(12, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU()),
            *(nn.Conv2d(24, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        )
        self.classify = nn.Linear(32, 10)

    def forward(self, x):
        return self.classify(self.features(x).mean((2, 3)))


@pytest.mark.slow
def test_half_the_multiplications_go_and_the_accuracy_on_digits_stays_near_the_dense_networks():
    digits = data.load("digits", mean=(0.5,), std=(0.5,))
    recipe = Recipe(epochs=8, lr=0.05, batch_size=32)
    torch.manual_seed(0)
    dense = Digits()
    model = copy.deepcopy(dense)
    fit(dense, digits.train, recipe, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = 8 * -(-digits.train.n // 32)
    with compress.attach(model, optimizer, steps=steps, macs=0.5) as session:
        for _ in range(8):
            for x, y in digits.train.batches(32, generator):
                optimizer.param_groups[0]["lr"] = learning_rate(recipe, session.steps, steps)
                session.zero_grad()
                F.cross_entropy(model(x), y).backward()
                session.step()
    result = session.result()
    assert result.report.after.macs <= 0.5 * result.report.before.macs
    (small, n), (big, _) = evaluate(result.model, digits.evaluate), evaluate(dense, digits.evaluate)
    cut, _ = evaluate(
        prune(dense, torch.zeros(1, 1, 32, 32), macs=0.5, data=digits, method="norm").model, digits.evaluate
    )
    assert big > 0.93 * n
    assert small > big - 0.02 * n
    assert small > cut
