"""Networks whose inputs aren't images, and every form in which their data may come."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from compress.data import TensorSplit, from_tensors
from compress.errors import BadData, BadInput
from compress.prune import prune
from tests.graph import transformers
from tests.graph.networks import Plain, build, images, inputs_of
from tests.rosters import crossed


class Sound(nn.Sequential):
    """Convolutions over time."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(3, 16, 5), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 8, 3), nn.AdaptiveAvgPool1d(1)
        )


class Volume(nn.Sequential):
    """Convolutions over space."""

    def __init__(self) -> None:
        super().__init__(nn.Conv3d(1, 8, 3), nn.ReLU(), nn.Conv3d(8, 6, 1), nn.ReLU(), nn.Conv3d(6, 4, 1))


class Table(nn.Sequential):
    """A multilayer perceptron."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(7, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))


def sound(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 40, generator=torch.Generator().manual_seed(1))


def volume(n: int) -> torch.Tensor:
    return torch.randn(n, 1, 6, 6, 6, generator=torch.Generator().manual_seed(1))


def table(n: int) -> torch.Tensor:
    return torch.randn(n, 7, generator=torch.Generator().manual_seed(1))


def text(n: int) -> torch.Tensor:
    return inputs_of(transformers.Text, n)[0]


CASES = {Sound: sound, Volume: volume, Table: table, transformers.Text: text}
"""Network -> so many of its inputs."""


@crossed(("method", "factory"), ["reconstruct", "norm", "taylor", "coreset"], CASES)
def test_networks_of_other_inputs_are_pruned(method: str, factory: type[nn.Module]) -> None:
    model, x = build(factory), CASES[factory](24)
    result = prune(model, x[:2], macs=0.6, method=method, data=x)
    share = result.report.after.macs / result.report.before.macs
    assert share <= 0.6
    assert share >= 0.588 or any(note.what == "MACs" for note in result.report.notes)
    with torch.no_grad():
        assert result.model(x).shape == model(x).shape


@pytest.mark.parametrize("factory", CASES)
def test_without_data_the_example_is_enough(factory: type[nn.Module]) -> None:
    result = prune(build(factory), CASES[factory](2), macs=0.6)
    assert result.report.after.macs <= 0.6 * result.report.before.macs


X, Y = table(12), torch.arange(12) % 4
FORMS: dict[str, Any] = {
    "inputs": X,
    "array": X.numpy(),
    "pair": (X, Y),
    "loader": DataLoader(TensorDataset(X, Y), 5),
    "batches": [(X[:7], Y[:7]), (X[7:], Y[7:])],
    "inputs in batches": [X[:7], X[7:]],
    "double": X.double(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_inputs(form: str) -> None:
    data = from_tensors(FORMS[form], X[:1])
    assert isinstance(data.train, TensorSplit)
    assert torch.equal(data.train.values, X)
    assert data.task == ("classification" if form in ("pair", "loader", "batches") else "reconstruction")
    seen = torch.cat([values for values, _ in data.train.batches(5)])
    assert torch.equal(seen, X)
    drawn = data.train.inputs(4, torch.Generator().manual_seed(0))
    assert drawn.shape == (4, 7)
    assert all(any(torch.equal(each, x) for x in X) for each in drawn)


TARGETS: dict[str, Any] = {
    "one an input": (X, X.sum(1)),
    "several an input": (X, X[:, :3]),
    "in batches": [(X[:7], X[:7, :3]), (X[7:], X[7:, :3])],
    "of the inputs' shape, in batches": [(X[:7], -X[:7]), (X[7:], -X[7:])],
    "whole numbers as decimals": (X, Y.float()),
}


@pytest.mark.parametrize("form", TARGETS)
def test_targets_that_are_no_classes_stay_with_their_inputs(form: str) -> None:
    given = TARGETS[form] if isinstance(TARGETS[form], list) else [TARGETS[form]]
    data = from_tensors(TARGETS[form], X[:1])
    assert data.task == "reconstruction"
    batches = list(data.train.batches(5, torch.Generator().manual_seed(3)))
    expected = torch.cat([targets for _, targets in given])
    row = {tuple(x.tolist()): target for x, target in zip(X, expected, strict=True)}
    assert all(
        torch.equal(row[tuple(x.tolist())], target) for xs, ys in batches for x, target in zip(xs, ys, strict=True)
    )
    assert data.sha256 != from_tensors(X, X[:1]).sha256


def test_taylor_measures_the_error_to_a_regressions_targets() -> None:
    """Units that the targets need nothing of go first, which the network's own outputs would keep."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(2, 4, bias=False), nn.Linear(4, 1, bias=False)
            with torch.no_grad():
                self.hidden.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
                self.out.weight.copy_(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.out(torch.relu(self.hidden(x)))
            return result

    # The output is x_0 + x_1. Where x_0 isn't 0 the target is that, and the error's slope along its units is 0.
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    targets = torch.tensor([1.0, -1.0, 3.0, -3.0])
    result = prune(Two(), x[:1], params=0.5, method="taylor", data=(x, targets))
    kept = result.model.hidden.weight
    assert torch.equal(kept, torch.tensor([[0.0, 1.0], [0.0, -1.0]]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (table(4)[:, :5], "its inputs are 5, the example is 7"),
        ((X, Y[:3]), "12 inputs but 3 labels"),
        ((X, Y - 1), "below 0"),
        ((X, X.sum(1)[:3]), "12 inputs but 3 labels"),
        ((X, X.sum(1) / 0), "some targets hold NaN or infinity"),
        (X * float("nan"), "NaN or infinity"),
        (X[:0], "it holds no inputs"),
        ([(X, Y), X], "some batches have labels and some have none"),
        ([X, X[:, :3]], "batches differ in shape"),
        ("table.csv", "it is a str"),
    ],
)
def test_data_that_cant_be_used_is_refused(data: Any, message: str) -> None:
    with pytest.raises(BadData, match=message):
        prune(build(Table), X[:2], macs=0.5, data=data)


def test_other_numbers_than_float32_are_refused_with_the_way_out() -> None:
    with pytest.raises(BadInput, match=r"are torch\.float64; give float32, model\.float\(\)"):
        prune(build(Plain).double(), images(2).double(), macs=0.5)


def test_an_example_alone_of_images_and_data_of_another_size_are_refused() -> None:
    with pytest.raises(BadData, match="its inputs are 3 x 8 x 8, the example is 3 x 16 x 16"):
        prune(build(Plain), images(2), macs=0.5, data=images(8)[:, :, :8, :8])
