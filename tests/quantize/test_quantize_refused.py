"""What quantization refuses, in one line that says what to do, and what it leaves in float and says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import BadData, BadInput, CompressError, NoGradient
from compress.graph.costs import layer_operators
from compress.graph.trace import trace
from compress.quantize import quantize, roster, sensitivity
from compress.quantize.placement import FLOATS, place
from compress.types import LayerPlan, Plan, Precision
from tests.graph.networks import ROSTER, Attention, Plain, build, images
from tests.quantize.test_hessian_aware import FixedBatch

methods = pytest.mark.parametrize("method", roster.METHODS)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(48, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x[:, :, ::4, ::4].flatten(1))))


class Detached(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Signs(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sign()


class Frozen(Small):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Mixture(nn.Module):
    """Everything that has no integer kernel, and layers that have one in between."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.proj = nn.ConvTranspose1d(3, 8, 2, 2), nn.Linear(8, 8)
        self.volume = nn.ConvTranspose3d(1, 1, 1)
        self.qkv, self.norm, self.mlp, self.head = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.table = nn.Embedding(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(self.up(x.flatten(2)).transpose(1, 2))
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v)
        x = x + (q @ k.transpose(1, 2)).softmax(-1) @ v
        x = x + self.mlp(F.gelu(self.norm(x))) + self.table(torch.zeros(1, dtype=torch.long))
        return self.head(self.volume(x[:, None, None])[:, 0, 0].mean(1))


def refused(error: type[CompressError], call) -> str:
    with pytest.raises(error) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@methods
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (torch.empty(0, 3, 16, 16), "a split is empty"),
        (torch.full((16, 3, 16, 16), 0.5), "all inputs are alike"),
        (torch.full((16, 3, 16, 16), torch.nan), "hold NaN or infinity"),
        (torch.rand(16, 1, 16, 16), "inputs of 1 x 16 x 16 don't go through the network"),
        (torch.rand(16, 3, 7, 7), "inputs of 3 x 7 x 7 don't go through the network"),
        (torch.rand(16), "give (N, C, H, W)"),
        (None, "give a DataLoader"),
    ],
    ids=["empty", "constant", "NaN", "channels", "size", "dimensions", "None"],
)
def test_calibration_data_that_cannot_be_used(method, data, said):
    assert said in refused(BadData, lambda: quantize(build(Plain), data, weight_bits=8, method=method))


def test_sensitivities_refuse_inputs_of_another_shape_too():
    assert "don't go through" in refused(BadData, lambda: sensitivity(build(Plain), torch.rand(16, 1, 16, 16)))


def test_a_network_that_takes_one_input_at_a_time_is_not_refused_for_two():
    assert quantize(build(FixedBatch), images(8), method="uniform").report.after.weight_bits == 8


@pytest.mark.parametrize("factory", [Detached, Signs])
def test_a_loss_without_a_gradient_is_refused_where_bits_are_chosen_by_it(factory):
    for call in (
        lambda: quantize(build(factory), images(16), weight_bits=6),
        lambda: sensitivity(build(factory), images(16)),
    ):
        assert "the loss gives no gradient" in refused(NoGradient, call)
    assert quantize(build(factory), images(16), weight_bits=6, method="layer-error").report.after.weight_bits <= 6
    wide = quantize(build(factory), images(16), weight_bits=8).report
    assert wide.after.weight_bits == 8
    assert [note.what for note in wide.notes if "has no gradient" in note.why] == ["activations"]


def test_parameters_that_need_no_gradient_do_not_matter():
    one, two = (quantize(build(factory), images(16), weight_bits=6) for factory in (Frozen, Small))
    assert one.plan == two.plan
    assert not any(parameter.requires_grad for parameter in build(Frozen).parameters())


@methods
def test_a_network_without_layers_is_refused(method):
    said = refused(BadInput, lambda: quantize(nn.ReLU(), images(8), method=method))
    assert said == "the network has no convolution or linear layer, so there is nothing to quantize"


@pytest.mark.parametrize("bits", [0, 0.5, 9, float("nan")])
def test_bits_that_no_integer_has_are_refused(bits):
    assert "integer weights have 1 to 8 bits" in refused(
        BadInput, lambda: quantize(build(Plain), images(8), weight_bits=bits)
    )


def test_what_stays_float_is_said_with_the_place_and_the_reason():
    notes = {note.what: note for note in quantize(build(Mixture), images(16)).report.notes}
    for kind, place_of in (
        ("conv_transpose1d", "up"),
        ("conv_transpose3d", "volume"),
        ("layer_norm", "norm and 1 more"),
        ("scaled_dot_product_attention", "scaled_dot_product_attention"),
        ("softmax", "softmax"),
        ("gelu", "gelu"),
        ("embedding", "table"),
    ):
        assert notes[kind].where == place_of
        assert notes[kind].why == f"stays float: {FLOATS[kind]}"
    assert notes["matmul"].where == "matmul and 1 more"


@pytest.mark.parametrize("factory", [*ROSTER, Mixture], ids=lambda factory: factory.__name__)
def test_every_layer_is_quantized_or_noted(factory):
    network = trace(build(factory), (images(2),))
    names = [operator.path for operator in layer_operators(network)]
    found = place(network, Plan().updated(*(LayerPlan(name, None, Precision(8, 8, "integer")) for name in names)))
    assert {name.removesuffix(".weight") for name in found.weights} == set(names)
    floats = {node.target._opname for node in network.nodes if hasattr(node.target, "_opname")} & set(FLOATS)
    assert {note.what for note in found.notes} == floats
    if factory is Attention:
        assert "layer_norm" in floats
