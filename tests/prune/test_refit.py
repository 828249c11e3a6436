"""Rebuilding a pruned network: exact where nothing was lost, lstsq where something was, never worse."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress import data as datasets
from compress import targets
from compress.graph.groups import Dependencies, Unit, find
from compress.graph.interpret import Steps
from compress.graph.moments import readers
from compress.graph.segments import Kept, Segment, segments
from compress.graph.surgery import remove
from compress.graph.trace import kind, trace
from compress.prune import refit
from compress.prune.goal import Goal
from compress.prune.reconstruct import Reconstruct
from compress.prune.refit import Pair, rebuild
from compress.types import Budget, Context, State
from tests.graph.networks import Depthwise, Plain, Residual, UNet, build, images
from tests.prune.design import designs, least_squares
from tests.prune.design import targets as rows_of
from tests.rosters import crossed


class TwoBlocks(nn.Module):
    """A stream to which two branches add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a1, self.b1 = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.a2, self.b2 = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b1(F.relu(self.a1(x))))
        x = F.relu(self.b2(F.relu(self.a2(x))) + x)
        return self.head(x.mean((2, 3)))


class SharedWeights(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.one(x))
        return self.head(F.relu(self.two(F.relu(self.two(x)))).mean((2, 3)))


class InPlace(nn.Module):
    """Batch norm and activations in place, and one value that is read after it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.two, self.three, self.head = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.two(self.one(x))
        z = F.relu_(y)
        return self.head(F.relu(self.three(y + z)).mean((2, 3)))


class FixedBatch(nn.Module):
    """The batch size, one, is written in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 6, 3, 2), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.two(F.relu(self.one(x))))
        return self.head(y.reshape(1, -1, 9).mean(2))


class Affine(nn.Module):
    """Eight channels made linearly of three: any three of them and the bias tell all others."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.two(self.one(x))).mean((2, 3)))


def context(inputs: torch.Tensor, seed: int = 0) -> Context:
    generator = torch.Generator().manual_seed(seed)
    return Context(targets.load("cortex-m4"), Budget(), datasets.from_python(inputs, divisible=False), generator)


def pruned(model: nn.Module, inputs: torch.Tensor, macs: float, iterations: int, skip: tuple[str, ...] = ()) -> State:
    stage = Reconstruct(Goal(macs, skip=skip), iterations)
    return stage(State(model), context(inputs))


def error(model: nn.Module, other: nn.Module, inputs: torch.Tensor) -> float:
    """The mean squared error of the outputs, as a share of their variance."""
    with torch.no_grad():
        wanted = model(inputs)
        return float((other(inputs) - wanted).square().mean() / wanted.var())


def duplicated(factory: type[nn.Module], pairs: tuple[tuple[str, ...], ...]) -> nn.Module:
    """A network in which the upper half of some layers' channels equals the lower half."""
    model = build(factory)
    with torch.no_grad():
        for names in pairs:
            for name in names:
                for tensor in model.get_submodule(name).state_dict().values():
                    if tensor.dim():
                        half = len(tensor) // 2
                        tensor[half:] = tensor[:half]
    return model


TWICE: dict[type[nn.Module], tuple[tuple[tuple[str, ...], ...], float]] = {
    Plain: ((("conv1", "bn1"), ("conv2", "bn2"), ("linear1",)), 0.4),
    Residual: ((("a.0", "a.1"), ("c.0", "c.1")), 0.7),
    UNet: ((("down1",), ("down2",), ("merge",)), 0.55),
    TwoBlocks: ((("a1",), ("a2",)), 0.55),
}
"""Network -> which layers' channels are there twice, and the share of MACs without them."""


@crossed(("factory", "iterations"), TWICE, [0, 10])
def test_channels_that_are_there_twice_go_without_a_trace(factory, iterations):
    layers, macs = TWICE[factory]
    model = duplicated(factory, layers)
    names = {name for pair in layers for name in pair}
    trained = (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)
    rest = [name for name, module in model.named_modules() if isinstance(module, trained) and name not in names]
    skip = tuple(name for name in rest if name in _producing(model))
    n = 160 if factory is Plain else 24  # a linear layer with 97 columns needs more inputs than that
    smaller = pruned(model, images(n), macs, iterations, skip).model
    assert error(model, smaller, images(n)) < 1e-7
    assert error(model, smaller, images(8, seed=9)) < 1e-6


def _producing(model: nn.Module) -> set[str]:
    return {name for group in find(trace(model, (images(2),))).groups for name in group.name.split("+")}


def test_channels_that_depend_linearly_on_others_go_without_a_trace():
    model = build(Affine)
    smaller = pruned(model, images(24), 0.55, 0, ("two",)).model
    assert smaller.one.out_channels == 4
    assert error(model, smaller, images(8, seed=9)) < 1e-7


def units_at(dependencies: Dependencies, gone: dict[str, tuple[int, ...]]) -> list[Unit]:
    return [group.units[i] for group in dependencies.groups for i in gone.get(group.name, ())]


def rebuilt(model: nn.Module, gone: dict[str, tuple[int, ...]], x: torch.Tensor, iterations: int = 0) -> nn.Module:
    """``model`` without some units, rebuilt by :func:`compress.prune.refit.rebuild` itself; no batch norms."""
    dependencies = find(trace(model, (x[:2],)))
    units = units_at(dependencies, gone)
    smaller = remove(model, dependencies, units)
    whole, steps = (Steps.of(trace(each, (x[:2],))) for each in (model, smaller))
    kept = Kept(dependencies, frozenset(unit.label for unit in units))
    names = {name for unit in units for name, axis in unit.members if axis == 1}
    rebuild(
        Pair(whole, steps, kept),
        segments(whole, kept),
        readers(steps, dependencies, names),
        x,
        iterations=iterations,
        generator=torch.Generator().manual_seed(0),
        progress=lambda message: None,
    )
    with torch.no_grad():
        for name, parameter in smaller.named_parameters():
            parameter.copy_(steps.parameters[name])
    return smaller


def solved(layer: nn.Conv2d, x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The weights and, as the last column, biases with which ``layer`` comes nearest to ``wanted``."""
    shape = (layer.out_channels, x.shape[1], *layer.kernel_size)
    (design,) = designs(lambda w: F.conv2d(x.double(), w, padding=layer.padding), shape)
    (target,) = rows_of(wanted.double(), 4)
    return least_squares(design, target, list(range(design.shape[1] - 1)))


def test_in_front_of_an_addition_the_target_holds_the_error_collected_so_far():
    """Two blocks by hand: what the second branch aims at makes up for the first block's error too."""
    model, x = build(TwoBlocks), images(12)
    gone = {"a1": (1, 4, 6), "a2": (0, 3)}
    smaller = rebuilt(model, gone, x)
    with torch.no_grad():
        stream = F.relu(model.stem(x))
        y1 = F.relu(model.a1(stream))
        t1 = model.b1(y1)
        stream1 = F.relu(stream + t1)
        t2 = model.b2(F.relu(model.a2(stream1)))

        left1, left2 = ([i for i in range(8) if i not in gone[name]] for name in ("a1", "a2"))
        first = solved(model.b1, y1[:, left1], t1)
        made = F.conv2d(y1[:, left1], first[:, :-1].float().view(6, 5, 3, 3), first[:, -1].float(), padding=1)
        ours1 = F.relu(stream + made)
        y2 = F.relu(model.a2(ours1))[:, left2]
        second = solved(model.b2, y2, t2 + stream1 - ours1)
    for layer, expected in ((smaller.b1, first), (smaller.b2, second)):
        found = torch.cat([layer.weight.detach().flatten(1), layer.bias.detach()[:, None]], 1)
        torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3)
    for name in ("stem", "head"):
        assert torch.equal(smaller.get_submodule(name).weight, model.get_submodule(name).weight)
    assert torch.equal(smaller.a2.weight, model.a2.weight[left2])


def test_a_readers_bias_takes_up_the_mean_of_what_went():
    """A channel that is constant is all bias to its reader."""
    model = build(TwoBlocks)
    with torch.no_grad():
        model.a1.weight[2].zero_()
        model.a1.bias[2] = 0.7
        model.b1.padding, model.b1.weight = (0, 0), nn.Parameter(model.b1.weight[:, :, 1:2, 1:2].clone())
        model.b1.kernel_size = (1, 1)
    smaller = rebuilt(model, {"a1": (2,)}, images(12))
    expected = model.b1.bias + 0.7 * model.b1.weight[:, 2, 0, 0]
    torch.testing.assert_close(smaller.b1.bias, expected, rtol=1e-3, atol=1e-3)
    assert error(model, smaller, images(8, seed=9)) < 1e-7


def test_directions_that_no_input_shows_keep_their_weights():
    """Three inputs for seven channels: the fit is exact, and changes the weights within the inputs' span alone."""
    model = build(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    smaller = rebuilt(model, {"0": (5,)}, x)
    left = [0, 1, 2, 3, 4, 6, 7]
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), model(x), rtol=1e-3, atol=1e-3)
        seen = torch.cat([model[1](model[0](x))[:, left], torch.ones(3, 1)], 1).double()
        change = torch.cat(
            [smaller[2].weight - model[2].weight[:, left], (smaller[2].bias - model[2].bias)[:, None]], 1
        )
    outside = torch.eye(8, dtype=torch.float64) - torch.linalg.pinv(seen) @ seen
    torch.testing.assert_close(change.double() @ outside, torch.zeros(3, 8, dtype=torch.float64), rtol=0, atol=1e-5)
    assert change.abs().max() > 1e-2


def test_descent_that_does_not_help_is_undone(monkeypatch):
    model, x = build(TwoBlocks), images(12)
    gone = {"a1": (1, 4, 6), "a2": (0, 3)}
    plain = rebuilt(model, gone, x)
    helped = rebuilt(model, gone, x, iterations=20)
    assert not torch.equal(helped.b1.weight, plain.b1.weight)
    monkeypatch.setattr(refit, "RATE", 1e4)
    undone = rebuilt(model, gone, x, iterations=2)
    assert all(torch.equal(a, b) for a, b in zip(undone.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("factory", [Plain, Residual, Depthwise, UNet, TwoBlocks, InPlace, SharedWeights])
def test_segments_hold_every_operator_once_and_meet_where_one_tensor_passes(factory):
    model = build(factory)
    network = trace(model, (images(2),))
    steps = Steps.of(network)
    found = segments(steps, Kept(find(network), frozenset()))
    assert [i for s in found for i in range(s.first, s.last + 1)] == list(range(len(steps.nodes)))
    assert (found[0].entry, found[-1].exit) == (steps.inputs[0], steps.output)
    assert [s.exit for s in found[:-1]] == [s.entry for s in found[1:]]
    x, environment = images(3), None
    with torch.no_grad():
        for segment in found:
            environment = steps.start((x,)) if environment is None else {segment.entry: x, "": 3}
            steps.run(environment, steps.nodes[segment.first : segment.last + 1])
            x = environment[segment.exit]
        torch.testing.assert_close(x, model(images(3)))


def test_a_deep_network_has_several_segments_and_an_activation_ends_one():
    steps = Steps.of(network := trace(build(TwoBlocks), (images(2),)))
    found: tuple[Segment, ...] = segments(steps, Kept(find(network), frozenset()))
    assert len(found) >= 2
    assert all(kind(steps.nodes[segment.last]) == "relu" for segment in found[:-1])


@pytest.mark.parametrize(
    ("factory", "iterations"),
    [(SharedWeights, 0), (SharedWeights, 30), (InPlace, 30), (FixedBatch, 30), (TwoBlocks, 30)],
)
def test_rebuilding_lowers_the_error_of_what_was_removed(factory, iterations):
    model, x = build(factory), images(24)
    state = pruned(model, x, 0.6, iterations)
    before = without_rebuilding(model, state)
    batches = x.split(1) if factory is FixedBatch else [x]
    with torch.no_grad():
        errors = [
            sum(float((other(part) - model(part)).square().sum()) for part in batches)
            for other in (before, state.model)
        ]
    assert errors[1] <= errors[0]
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), state.model.parameters(), strict=True))


def without_rebuilding(model: nn.Module, state: State) -> nn.Module:
    """``model`` without what ``state``'s plan removes, and nothing else done."""
    from compress.graph.surgery import units_of
    from compress.prune.prunable import prunable

    dependencies = prunable(model, trace(model, (images(2),)))
    return remove(model, dependencies, units_of(state.plan, dependencies))


@pytest.mark.parametrize("augment", [None, lambda images, _: images.flip(3) / 2 + 1], ids=["plain", "augmented"])
@pytest.mark.parametrize("factory", [Plain, Residual, Depthwise], ids=lambda factory: factory.__name__)
def test_batch_norms_come_back_with_the_statistics_of_images_as_in_training(factory, augment):
    model, x = build(factory), images(32)
    given = context(x)
    smaller = Reconstruct(Goal(0.6), 5)(State(model), replace(given, data=replace(given.data, augment=augment))).model
    count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in smaller.modules()) == count
    training, seen = copy.deepcopy(smaller).train(), x if augment is None else augment(x, None)
    with torch.no_grad():
        torch.testing.assert_close(training(seen), smaller.eval()(seen), rtol=2e-3, atol=2e-3)
