"""A traced network run operator by operator: the module's own outputs, with no side effects."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.errors import Untraceable
from compress.graph.interpret import Steps
from compress.graph.trace import trace
from tests.graph.networks import ARCHITECTURES, ROSTER, build, images, inputs_of
from tests.graph.traced import traced
from tests.rosters import some


class Sequence(nn.Module):
    """In-place activations in a row, as in torchvision's networks."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 2, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.hardtanh_(self.two(self.act(self.one(x))), 0.0, 0.5))


class ReadAfterwards(Sequence):
    """What an in-place operator wrote is read through the name of its operand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x)
        z = F.relu_(y)
        return self.out(y + z * y)


class ReadBeforeAndAfterwards(Sequence):
    """One reader in front of the in-place operator, one behind it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x)
        before = y.sin()
        F.relu_(y)
        return self.out(y + before)


class AddedInPlace(Sequence):
    """``x += branch`` with an activation in place behind it, twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        for _ in range(2):
            skip = x
            x = F.relu(x)
            x += skip
            self.act(x)
            x.mul_(0.5)
        return self.out(x)


class WrittenThroughAView(Sequence):
    """An activation in place behind a flatten; nobody reads what is in front of it any more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu_(self.one(x).flatten(2)).mean(2)


class WrittenThroughAPart(Sequence):
    """One half of the channels is written in place; the halves don't overlap."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.one(x).chunk(2, 1)
        return self.out(torch.cat([F.relu_(a), b], 1))


class ReadAsAWhole(Sequence):
    """A slice is written in place, and then the whole tensor is read."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x)
        F.relu_(y[:, :3])
        return self.out(y)


class ReadThroughAView(Sequence):
    """A view that was made before the tensor was written is read afterwards."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x)
        flat = y.flatten(2)
        F.relu_(y)
        return flat.mean(2)


class FixedBatch(nn.Module):
    """The batch size, one, is written in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 6, 3, 2), nn.Linear(54, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(F.relu(self.one(x))).view(1, 54))


def run(steps: Steps, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.no_grad():
        environment = steps.start(inputs)
        steps.run(environment, steps.nodes)
    return environment[steps.output]


@some("factory", ARCHITECTURES, quick=ROSTER)
def test_steps_compute_what_the_module_computes_for_any_batch_size(factory):
    model, network = traced(factory)
    steps = Steps.of(network)
    with torch.no_grad():
        for n in (1, 5):
            x = inputs_of(factory, n)
            torch.testing.assert_close(run(steps, x), model(*x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "factory",
    [Sequence, ReadAfterwards, ReadBeforeAndAfterwards, AddedInPlace, WrittenThroughAView, WrittenThroughAPart],
    ids=lambda factory: factory.__name__,
)
def test_operators_that_write_in_place_change_nothing_but_their_result(factory):
    model = build(factory)
    steps = Steps.of(trace(model, (images(2),)))
    x = images(3)
    environment = steps.start((x,))
    with torch.no_grad():
        for node in steps.nodes:
            before = {name: value.clone() for name, value in environment.items() if isinstance(value, torch.Tensor)}
            steps.run(environment, [node])
            assert all(torch.equal(environment[name], value) for name, value in before.items())
        torch.testing.assert_close(environment[steps.output], model(x))
    assert torch.equal(x, images(3))


@pytest.mark.parametrize("factory", [ReadAsAWhole, ReadThroughAView], ids=lambda factory: factory.__name__)
def test_what_is_written_in_place_and_read_through_another_view_is_refused(factory):
    with pytest.raises(Untraceable, match=r"relu_.* writes in place to a tensor that is read otherwise too"):
        Steps.of(trace(build(factory), (images(2),)))


def test_a_network_that_fixes_its_batch_runs_one_input_at_a_time():
    model = build(FixedBatch)
    network = trace(model, (images(2),))
    assert not network.dynamic_batch
    x = images(1)
    torch.testing.assert_close(run(Steps.of(network), (x,)), model(x))


def test_its_parameters_are_copies():
    model = build(Sequence)
    steps = Steps.of(trace(model, (images(2),)))
    expected = model(images()).detach()
    steps.parameters["one.weight"].zero_()
    assert torch.equal(model(images()), expected)
    steps.parameters["one.bias"].zero_()
    assert not torch.equal(run(steps, (images(),)), expected)


@pytest.mark.parametrize("factory", [Sequence, AddedInPlace], ids=lambda factory: factory.__name__)
def test_nothing_reads_a_tensor_behind_its_last_use(factory):
    model = build(factory)
    steps = Steps.of(trace(model, (images(2),)))
    environment = steps.start((images(),))
    with torch.no_grad():
        for at, node in enumerate(steps.nodes):
            steps.run(environment, [node])
            for name in [each.name for each in node.all_input_nodes if steps.last_use.get(each.name) == at]:
                environment.pop(name, None)
        torch.testing.assert_close(environment[steps.output], model(images()))
