"""Activating while pruning: rates and dependences beside counts and differences made by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import compress
from compress import data, targets
from compress.errors import BadInput
from compress.graph.groups import find
from compress.graph.trace import trace
from compress.prune.ap import Activating, DeadNeurons, dead_neurons, dependence
from compress.prune.goal import Goal
from compress.prune.norm import magnitudes
from compress.prune.ranking import remove_lowest
from compress.types import Budget, Context, Plan, State
from tests.graph.networks import Attention, Plain, Residual, build, images
from tests.prune.loops import OPTIMIZERS, train


def perceptron():
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model[0].bias[0] = -100.0  # dead for all inputs
    return model, torch.randn(9, 4, generator=generator)


def test_rates_are_counts_of_neurons_that_are_zero_for_some_or_for_all_inputs():
    model, x = perceptron()
    with torch.no_grad():
        one = model[0](x)
        two = model[2](one.relu())
    dynamic = static = 0
    for z in (one, two):
        for neuron in z.T:
            dead = int((neuron <= 0).sum())
            dynamic, static = (dynamic, static + dead) if dead == len(neuron) else (dynamic + dead, static)
    pairs = one.numel() + two.numel()
    found = dead_neurons(model, x)
    assert found == DeadNeurons(dynamic / pairs, static / pairs)
    assert found.static > 0
    assert found.dynamic > 0


def test_a_channels_dependence_is_what_dead_neurons_gain_when_it_goes():
    model, x = perceptron()
    with torch.no_grad():
        one = model[0](x)
        two = model[2](one.relu())
    dead = (two <= 0) & (two > 0).any(0)
    found = dependence(model, find(trace(model, (x[:2],))), x)
    assert [len(each) for each in found] == [6, 5]
    for channel in range(6):
        without = copy.deepcopy(model)
        with torch.no_grad():
            without[2].weight[:, channel] = 0
            gain = ((without[2](one.relu()) - two) * dead).sum() / (two.numel() * two.square().mean().sqrt())
        assert float(found[0][channel]) == pytest.approx(max(0.0, float(gain)), abs=1e-7)
    assert float(found[0].max()) > 0
    # No ReLU follows the second layer's channels.
    assert torch.equal(found[1], torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("factory", [Plain, Residual])
def test_the_network_is_not_changed(factory):
    model = build(factory).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dependence(model, find(trace(model, (images(2),))), images(8))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def context(seed=0):
    device = targets.load("cpu")
    inputs = data.from_python(images(32), divisible=False)
    return Context(device, Budget(), inputs, torch.Generator().manual_seed(seed))


def constant(model, network, dependencies, context):
    return [torch.ones(len(group.units), dtype=torch.float64) for group in dependencies.groups]


def test_of_equal_channels_those_go_that_keep_neurons_dead():
    model = build(Residual)
    network = trace(model, (images(2),))
    dependencies = find(network)
    inputs = images(32)
    scores = Activating(constant, inputs, strength=0.5)(model, network, dependencies, context())
    for score, each in zip(scores, dependence(model, dependencies, inputs), strict=True):
        assert torch.equal(score.argsort(stable=True)[:1], (-each).argsort(stable=True)[:1])
        torch.testing.assert_close(score, 1 - 0.5 * each / each.max().clamp_min(1e-30))


def test_a_strength_of_zero_is_the_criterion_itself():
    model = build(Plain)
    network = trace(model, (images(2),))
    dependencies = find(network)
    plain = magnitudes(model, network, dependencies, context())
    found = Activating(magnitudes, strength=0.0)(model, network, dependencies, context())
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def test_it_works_in_iterative_pruning_beside_magnitude():
    state = State(build(Residual), Plan())
    for share in (0.8, 0.6):
        before = dead_neurons(state.model, images(32)).dynamic
        state = remove_lowest(state, context(), Goal(macs=share), Activating(magnitudes))
        assert 0 < before < 1
    assert state.model(images()).shape == (4, 5)


@pytest.mark.parametrize("criterion", ["taylor", magnitudes])
def test_it_works_in_a_session_beside_any_criterion(criterion):
    plans = []
    for strength in (0.0, 5.0):
        model = build(Residual)
        wanted = Activating(criterion, images(32), strength)
        with compress.attach(
            model, OPTIMIZERS["sgd"](model.parameters()), steps=12, macs=0.6, criterion=wanted
        ) as session:
            train(model, session, 12)
        assert session.result().report.settings["units_not_zero"] == 0
        plans.append(session.result().plan)
    assert plans[0] != plans[1]


def test_bad_input_is_refused_in_one_line():
    with pytest.raises(BadInput, match="at least two"):
        dead_neurons(build(Plain), images(1))
    with pytest.raises(BadInput, match="the network has none"):
        dead_neurons(build(Attention), images(4))
    with pytest.raises(BadInput, match="strength=-1"):
        Activating(magnitudes, strength=-1.0)
    with pytest.raises(BadInput, match="gathered while training"):
        Activating("taylor")(build(Plain), None, None, None)
