"""Laws of pruning, over the roster of methods and of networks; and what magnitude means by formula."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import replace
from functools import cache

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from compress import data as datasets
from compress.errors import BadInput, NoPrunableAxis, UnknownName
from compress.export.torch_exporter import operators_read_once
from compress.graph import costs
from compress.graph.groups import find
from compress.graph.surgery import remove, units_of
from compress.graph.trace import trace
from compress.prune import Pruned, prune
from compress.prune.amounts import granularity, uniform
from compress.prune.counter import Counter
from compress.prune.goal import Goal
from compress.prune.norm import magnitude
from compress.prune.prunable import prunable
from compress.prune.recalibrate import recalibrate
from compress.prune.roster import METHODS
from compress.types import Budget
from tests.graph.networks import (
    ARCHITECTURES,
    ROSTER,
    Attention,
    Depthwise,
    Perceptron,
    Plain,
    Residual,
    UNet,
    build,
    images,
    inputs_of,
)
from tests.graph.traced import traced
from tests.graph.transformers import TorchTransformer
from tests.rosters import some

methods = some("method", list(METHODS), quick=["reconstruct", "norm", "coreset"])
"""By reconstruction, by a score of channels, by a coreset; the rest of both kinds in the long run."""

NETWORKS = tuple(
    factory for factory in ARCHITECTURES if len(inputs_of(factory)) == 1 and inputs_of(factory)[0].is_floating_point()
)
"""All with one input of numbers."""

FEW = (Plain, Residual, UNet, Perceptron)
"""A chain with batch norm, a residual stream, concatenation without batch norm, linear layers on tokens."""

COMBINATIONS = [
    *(("reconstruct", factory) for factory in NETWORKS),
    *(("norm", factory) for factory in ROSTER),
    *((method, factory) for method in METHODS if method not in ("reconstruct", "norm") for factory in FEW),
]
METHOD_ON = {method: FEW[at % len(FEW)] for at, method in enumerate(METHODS)}
"""Each method's network in the default run, beside the few that are rebuilt."""

roster = some(
    ("method", "factory"),
    COMBINATIONS,
    quick=[(m, f) for m, f in COMBINATIONS if METHOD_ON[m] is f or (m == "reconstruct" and f in FEW)],
)


CALIBRATION = 16
"""Inputs that are enough to tell a rebuilt network from one that isn't."""


@cache
def pruned(method: str, factory: type[nn.Module]) -> tuple[nn.Module, dict[str, torch.Tensor], Pruned]:
    """A network, its state before it was pruned, and what pruning gave; the same for every law."""
    model = build(factory)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return model, before, prune(model, images(2), macs=0.7, method=method, data=images(CALIBRATION), seed=5)


@roster
def test_shape_dtype_and_class_stay_and_the_original_is_untouched(method, factory):
    model, before, result = pruned(method, factory)
    assert type(result.model) is factory
    with torch.no_grad():
        assert result.model(images()).shape == model(images()).shape
        assert result.model(images()).dtype == torch.float32
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@roster
def test_the_plan_says_how_many_channels_each_layer_has(method, factory):
    _, _, result = pruned(method, factory)
    weights = dict(result.model.named_parameters())
    for layer in result.plan.layers:
        module = dict(result.model.named_modules()).get(layer.name)
        transposed = isinstance(module, nn.ConvTranspose2d) and module.groups == 1
        weight = weights.get(f"{layer.name}.weight", weights.get(layer.name))
        assert weight.shape[1 if transposed else 0] == len(layer.keep)
        assert list(layer.keep) == sorted(set(layer.keep))


@roster
def test_it_is_as_small_as_asked_and_where_more_than_two_percent_smaller_the_report_says_why(method, factory):
    report = pruned(method, factory)[2].report
    share = report.after.macs / report.before.macs
    assert share <= 0.7
    assert share >= 0.98 * 0.7 or any(note.what == "MACs" for note in report.notes)


@roster
def test_the_smaller_network_trains(method, factory):
    model = copy.deepcopy(pruned(method, factory)[2].model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(images()).square().mean().backward()
    optimizer.step()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@some("factory", NETWORKS, quick=ROSTER)
def test_rebuilding_leaves_less_error_than_removal_alone(factory):
    """On the calibration inputs, in evaluation mode, with the same channels gone."""
    model, _, result = pruned("reconstruct", factory)
    dependencies = prunable(model, traced(factory)[1])
    plain = remove(model, dependencies, units_of(result.plan, dependencies))
    x = images(CALIBRATION)
    with torch.no_grad():
        wanted = model(x)
        before, after = (float((other(x) - wanted).square().mean()) for other in (plain, result.model))
    assert after <= max(before, 1e-6 * float(wanted.var()))  # float tolerance, where nothing was lost


@pytest.mark.parametrize("factory", FEW, ids=lambda factory: factory.__name__)
def test_it_exports_to_onnx_where_onnxruntime_agrees(factory, tmp_path):
    model, path = pruned("reconstruct", factory)[2].model, tmp_path / "smaller.onnx"
    with operators_read_once():
        torch.onnx.export(model, (images(2),), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    found = session.run(None, {session.get_inputs()[0].name: images(2).numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, model(images(2)).numpy(), rtol=1e-4, atol=1e-4)


@some(
    ("method", "factory"),
    [*METHOD_ON.items(), *((m, Residual) for m in METHODS if METHOD_ON[m] is not Residual), ("reconstruct", UNet)],
    quick=[*METHOD_ON.items(), ("reconstruct", UNet)],
)
def test_the_same_seed_gives_the_same_plan_and_weights(method, factory):
    first = pruned(method, factory)[2]
    second = prune(build(factory), images(2), macs=0.7, method=method, data=images(CALIBRATION), seed=5)
    assert first.plan.digest() == second.plan.digest()
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_torchs_own_attention_is_rebuilt_and_counted_as_layers():
    """Its operators are others once heads have gone, so before and after are compared by those of the pruned form."""
    result = pruned("reconstruct", TorchTransformer)[2]
    assert not [note for note in result.report.notes if note.what == "reconstruction"]
    positions, width, heads, head_dim = 4 * 4, result.model.embed.out_channels, result.model.attention.num_heads, 3
    operators = {each.path: each for each in costs.operators(trace(result.model, (images(2),))) if each.weights}
    assert heads < 4
    assert operators["attention.in_proj_weight"].macs == positions * width * 3 * heads * head_dim


@methods
def test_keeping_everything_is_the_identity(method):
    model = build(Residual)
    result = prune(model, images(2), macs=1.0, method=method)
    assert torch.equal(result.model(images()), model(images()))
    assert result.report.after == result.report.before


@some(
    ("method", "share"),
    [
        *((method, 0.5) for method in METHODS),
        *((method, share) for method in ("reconstruct", "norm") for share in (0.8, 0.3)),
    ],
    quick=[*((method, 0.5) for method in METHODS), ("norm", 0.8), ("norm", 0.3)],
)
def test_the_macs_that_were_asked_for_are_kept_and_not_more(method, share):
    result = prune(build(Residual), images(2), macs=share, method=method)
    kept = result.report.after.macs / result.report.before.macs
    assert kept <= share
    # No group could get one channel back without exceeding the share.
    network = trace(build(Residual), (images(2),))
    assert kept > share - max(operator.macs for operator in costs.operators(network)) / costs.total_macs(network)


@methods
def test_parameters_and_macs_can_be_asked_for_together(method):
    result = prune(build(Plain), images(2), budget=Budget(macs=0.7, params=0.4), method=method)
    assert result.report.after.macs <= 0.7 * result.report.before.macs
    assert result.report.after.params <= 0.4 * result.report.before.params


@methods
def test_a_layer_to_skip_keeps_its_channels_and_is_reported(method):
    result = prune(build(Residual), images(2), macs=0.6, method=method, skip=["a.0"])
    assert result.model.a[0].out_channels == 8
    assert any(note.where == "a.0" and "skip" in note.why for note in result.report.notes)


def test_counting_agrees_with_tracing_the_pruned_network():
    for factory in (Plain, Residual, Depthwise):
        model = build(factory)
        network = trace(model, (images(2),))
        dependencies = find(network)
        kept = tuple(max(1, len(group.units) * 2 // 3) for group in dependencies.groups)
        units = [unit for group, n in zip(dependencies.groups, kept, strict=True) for unit in group.units[n:]]
        size = costs.size(trace(remove(model, dependencies, units), (images(2),)))
        assert Counter.of(network, dependencies).counts(kept) == (size.macs, size.params)


def test_channel_counts_are_multiples_where_a_group_is_wide_enough():
    network = trace(build(Residual), (images(2),))
    dependencies = find(network)
    for group, kept in zip(dependencies.groups, uniform(Counter.of(network, dependencies), Goal(0.5), 4), strict=True):
        step = granularity(group, 4)
        assert step == {8: 2, 16: 4}[len(group.units)]
        assert kept % step == 0


def test_no_group_falls_below_the_multiple_while_the_others_can_give_enough():
    network = trace(build(Residual), (images(2),))
    dependencies = find(network)
    counter = Counter.of(network, dependencies)
    wide = [i for i, group in enumerate(dependencies.groups) if len(group.units) == 16]
    enough, too_little = uniform(counter, Goal(0.8), 8), uniform(counter, Goal(0.2), 8)
    assert min(enough) == 8
    assert any(enough[i] < 16 for i in wide)
    assert min(too_little) < 8


def test_a_units_magnitude_is_that_of_what_makes_and_reads_it():
    model = build(Plain)
    group = next(group for group in find(trace(model, (images(2),))).groups if group.name == "conv1")
    made = model.conv1.weight.detach().double().square().sum((1, 2, 3))
    read = model.conv2.weight.detach().double().square().sum((0, 2, 3))
    torch.testing.assert_close(magnitude(model, group), (made / made.mean() + read / read.mean()).sqrt())


def test_recalibration_gives_the_statistics_of_the_inputs():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    x = images(64)
    recalibrate(model, x, batch=64)
    seen = model[0](x)
    torch.testing.assert_close(model[1].running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, seen.var((0, 2, 3), unbiased=True))
    assert not model.training
    assert not model[1].training


def test_statistics_are_of_images_as_in_training():
    """Crops from a border of black: of an image of ones, a row or column less for each pixel of the shift."""
    ones = torch.full((64, 3, 16, 16), 255, dtype=torch.uint8)
    split = datasets.ArraySplit(ones, None, (0.5,) * 3, (0.5,) * 3)
    data = datasets.Data("ones", "reconstruction", split, split, (), "", split.mean, split.std)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).eval()
    plain = prune(model, images(2), macs=0.5, method="norm", data=data).model
    seen = plain[0](torch.ones(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(plain[1].running_mean, seen)
    augmented = prune(model, images(2), macs=0.5, method="norm", data=replace(data, augment=datasets.CropFlip())).model
    torch.testing.assert_close(augmented[0].weight, plain[0].weight)
    bright, dark = seen, augmented[0](-torch.ones(1, 3, 1, 1)).flatten()
    share = (augmented[1].running_mean - bright) / (dark - bright)
    # A shift of up to 4 of 16 pixels either way is 20/9 on average, so that 1 - (1 - 20/144)^2 of the pixels are black.
    torch.testing.assert_close(share, torch.full_like(share, 1 - (1 - 20 / 144) ** 2), atol=0.03, rtol=0)
    torch.testing.assert_close(share, share[:1].expand_as(share), atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan"), "0.5", True])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(BadInput, match=r"lies in \(0, 1\]"):
        prune(build(Plain), images(2), macs=share)


def test_nothing_asked_for_is_refused():
    with pytest.raises(BadInput, match="needs macs="):
        prune(build(Plain), images(2))


def test_an_unknown_method_and_an_unknown_layer_are_named_with_the_nearest():
    with pytest.raises(UnknownName, match="nearest: norm"):
        prune(build(Plain), images(2), macs=0.5, method="nrom")
    with pytest.raises(UnknownName, match="conv2"):
        prune(build(Plain), images(2), macs=0.5, skip=["conv22"])


def test_one_layer_may_be_skipped_by_its_name_alone():
    result = prune(build(Plain), images(2), macs=0.7, skip="conv1")
    assert result.model.conv1.out_channels == 8
    assert result.model.conv2.out_channels < 12


def test_skipping_all_there_is_says_so():
    model = nn.Sequential(OrderedDict(first=nn.Conv2d(3, 4, 3), last=nn.Conv2d(4, 2, 3)))
    with pytest.raises(NoPrunableAxis, match="first: you asked to skip them"):
        prune(model, images(2), macs=0.5, skip=["first"])


def test_what_isnt_a_module_or_a_tensor_is_refused():
    with pytest.raises(BadInput, match=r"takes a torch\.nn\.Module, not str"):
        prune("resnet", images(2), macs=0.5)
    with pytest.raises(BadInput, match="takes a tensor or a tuple of one, not ndarray"):
        prune(build(Plain), images(2).numpy(), macs=0.5)


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (3, 16, 16), (2, 3, 32, 32)])
def test_an_example_that_the_network_doesnt_take_is_refused_by_its_shape(shape):
    with pytest.raises(BadInput, match=f"doesn't run on example_inputs of shape {' x '.join(map(str, shape))}"):
        prune(build(Plain), torch.zeros(shape), macs=0.5)


def test_the_least_reachable_is_named():
    with pytest.raises(BadInput, match=r"least reachable is 0\.\d+ of the MACs"):
        prune(build(Attention), images(2), macs=0.001)


def test_a_network_without_a_prunable_axis_is_refused_with_the_reason():
    with pytest.raises(NoPrunableAxis, match="network's output"):
        prune(nn.Conv2d(3, 4, 3), images(2), macs=0.5)


class WithExtraKeys(nn.Module):
    """Attention with a key and a value more than there are inputs, and a branch that can be pruned."""

    def __init__(self, **extra: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **extra)
        self.wide, self.narrow, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.attention(x, x, x, need_weights=False)
        x = x + y
        return self.head((x + self.narrow(torch.relu(self.wide(x)))).mean(1))


@pytest.mark.parametrize("extra", ["add_bias_kv", "add_zero_attn"])
def test_attention_with_extra_keys_keeps_its_heads_and_the_rest_is_pruned(extra: str) -> None:
    torch.manual_seed(0)
    model, x = WithExtraKeys(**{extra: True}).eval(), torch.randn(8, 6, 16)
    result = prune(model, x, macs=0.6, method="norm")
    assert type(result.model.attention) is nn.MultiheadAttention
    assert result.model.attention.num_heads == 4
    assert result.model.wide.out_features < 32
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    assert result.model(x).shape == model(x).shape
    said = [note.why for note in result.report.notes if note.where == "attention.in_proj_weight"]
    reasons = {"add_bias_kv": "bias_k or add_zero_attn keeps its heads", "add_zero_attn": "beside what isn't prunable"}
    assert len(said) == 1
    assert reasons[extra] in said[0]
