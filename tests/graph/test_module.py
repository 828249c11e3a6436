"""Networks that torch.export made, and networks whose code holds on to their sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import compress
from compress.errors import BadInput
from compress.graph.groups import find
from compress.graph.interpret import Steps
from compress.graph.module import in_evaluation_mode, plain_module
from compress.graph.surgery import proven
from compress.graph.trace import trace
from compress.lending import set_mode
from compress.prune import prune
from compress.quantize import quantize
from tests.graph.networks import ROSTER, Attention, Depthwise, Plain, Residual, build, images
from tests.rosters import some


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(model, (images(2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


class LiteralView(nn.Module):
    """The flatten in front of ``one`` is written as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 64, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(F.relu(self.one(F.max_pool2d(F.relu(self.conv(x)), 2).view(-1, 512))))


class Unregistered(nn.Module):
    """Holds a tensor as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 4, 3), torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.conv(x) * self.scale).mean((2, 3))


class Switching(nn.Module):
    """Switches gradients on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = torch.relu(self.a(x))
        return self.b(x).mean((2, 3))


class LiteralGroups(nn.Module):
    """A depthwise convolution whose groups are written as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 1), nn.Linear(16, 5)
        self.kernel = nn.Parameter(torch.randn(8, 1, 3, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.out(F.conv2d(self.conv(x), self.kernel, groups=8)).mean((2, 3)))


@pytest.mark.parametrize("factory", ROSTER, ids=lambda factory: factory.__name__)
def test_an_exported_network_becomes_an_ordinary_one_that_computes_the_same(factory):
    model = build(factory)
    ordinary = in_evaluation_mode(exported(model).module())
    torch.testing.assert_close(ordinary(images()), model(images()))
    assert ordinary.train().training
    assert in_evaluation_mode(model) is model


def test_only_what_torch_export_says_of_modes_is_taken_for_it():
    class Own(nn.Module):
        def train(self, mode=True):
            raise NotImplementedError("mine")

    with pytest.raises(BadInput, match="a network that torch.export made has no modes"):
        set_mode(nn.Sequential(exported(build(Plain)).module()), False)
    for change in (in_evaluation_mode, lambda model: set_mode(model, True)):
        with pytest.raises(NotImplementedError, match="mine"):
            change(Own())


@some(
    "factory",
    [factory for factory in ROSTER if factory is not Attention],
    quick=(Plain, Residual),
)
def test_an_exported_network_is_pruned_and_quantized_like_its_original(factory):
    result = prune(exported(build(factory)).module(), images(2), macs=0.8)
    assert result.report.after.macs <= 0.8 * result.report.before.macs
    assert result.model(images()).shape == build(factory)(images()).shape
    assert quantize(result.model, images(64)).report.after.weight_bits == 8


@pytest.mark.slow
def test_a_pt2_file_goes_through_the_whole_job(tmp_path):
    torch.export.save(exported(build(Residual)), tmp_path / "network.pt2")
    data = (images(80), torch.arange(80) % 5)
    front = compress.run(
        str(tmp_path / "network.pt2"), data, target="cortex-m7", out=tmp_path / "run", candidates=2, epochs=1
    )
    smallest = min(front.candidates, key=lambda candidate: candidate.macs)
    assert smallest.macs < 0.5 * front.baseline.macs
    assert [record.stage for record in smallest.records] == [
        "prune with reconstruction",
        "fine-tune",
        "quantize uniformly",
        "train with quantizers",
        "compile",
    ]


@pytest.mark.parametrize(
    ("model", "operator"),
    [(build(Plain).train(), "batch_norm"), (nn.Sequential(nn.Conv2d(3, 2, 1), nn.Dropout()).train(), "dropout")],
)
def test_a_network_exported_in_training_mode_is_refused(model, operator, tmp_path):
    torch.export.save(exported(model), tmp_path / "network.pt2")
    with pytest.raises(BadInput, match=rf"exported in training mode \(its {operator} trains\); call model.eval\(\)"):
        compress.run(str(tmp_path / "network.pt2"), (images(8), torch.arange(8) % 2), target="cpu", out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("factory", "stays", "goes"), [(LiteralView, "conv", "one"), (LiteralGroups, "conv", "out")])
def test_what_a_literal_in_the_source_fixes_is_left_alone_and_reported(factory, stays, goes):
    model = factory().eval()
    result = prune(model, images(2), macs=0.95)
    assert result.model.get_submodule(stays).weight.shape == model.get_submodule(stays).weight.shape
    assert len(result.model.get_submodule(goes).weight) < len(model.get_submodule(goes).weight)
    assert any(note.where == stays and "code fixes their number" in note.why for note in result.report.notes)


@pytest.mark.parametrize("factory", [factory for factory in ROSTER if factory is not Attention])
def test_sizes_that_follow_from_shapes_are_all_proven(factory):
    model = build(factory)
    dependencies = find(trace(model, (images(2),)))
    assert proven(model, dependencies, images(2)) is dependencies


def test_only_the_depthwise_group_of_an_exported_network_stays():
    model = in_evaluation_mode(exported(build(Depthwise)).module())
    dependencies = proven(model, find(trace(model, (images(2),))), images(2))
    assert {group.name for group in dependencies.groups} == {"stem+project"}


class TwoNames(nn.Module):
    """Two layers with the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).relu())


def test_a_parameter_with_two_names_stays_one():
    model, x = TwoNames(), torch.randn(3, 4)
    module = plain_module(trace(model, (x,)))
    assert torch.allclose(module(x), model(x))
    assert module.one.weight is module.two.weight
    steps = Steps.of(trace(model, (x,)))
    assert steps.parameters["one.weight"].data_ptr() == steps.parameters["two.weight"].data_ptr()


@pytest.mark.parametrize("method", ["hessian", "uniform"])
def test_a_tensor_that_is_not_registered_is_refused_by_its_name(method):
    with pytest.raises(BadInput, match="the tensor 'scale', which isn't registered; make it a buffer"):
        quantize(Unregistered().eval(), images(8), method=method)


def test_a_forward_that_switches_gradients_is_refused_in_one_line():
    with pytest.raises(BadInput, match=r"a block of torch\.no_grad or torch\.enable_grad.*take the block out"):
        quantize(Switching().eval(), images(8))
