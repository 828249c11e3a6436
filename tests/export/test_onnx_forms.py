"""How the ONNX file says things: in the forms that runtimes have integer kernels for, and with the same results."""

from __future__ import annotations

from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from compress.export import onnx_forms
from compress.export.onnx import export
from compress.graph.qdq import insert
from compress.graph.trace import trace
from compress.profiling.session import open_session, runner
from compress.quantize import quantize
from tests.support import optimized_operators


class Padded(nn.Module):
    """Zeros around the input and between convolutions, more behind than before; a depthwise one too, and a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, 2)
        self.b = nn.Conv2d(8, 8, 3, 2, groups=8)
        self.c = nn.Conv2d(8, 6, 3, padding=1)
        self.d = nn.Conv2d(8, 6, 5, padding=(2, 2))
        self.e = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pad = nn.functional.pad
        x = torch.clamp(self.a(pad(x, (0, 1, 0, 1))), 0, 6)
        x = pad(torch.relu(self.b(pad(x, (1, 2, 0, 1)))), (1, 0, 2, 1))
        return self.e((self.c(x) + self.d(x)).mean((2, 3), keepdim=True).flatten(1))


def images(count: int = 16, size: int = 20) -> torch.Tensor:
    return torch.randn((count, 3, size, size), generator=torch.Generator().manual_seed(0))


def built(model: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return model().eval()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("target", ["cpu", "visionfive-2"])
def test_zeros_around_an_image_are_padding_of_the_convolutions_that_read_it(tmp_path, bits, target):
    x = images()
    state = quantize(built(Padded), x, weight_bits=bits, method="uniform", target=target).state
    path = tmp_path / "model.onnx"
    export(state, x[:2], path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert "Pad" not in {node.op_type for node in onnx.load(path).graph.node}
    pads = [
        attribute.ints[:]
        for node in onnx.load(path).graph.node
        for attribute in node.attribute
        if attribute.name == "pads"
    ]
    assert sorted(pads) == sorted([[0, 0, 1, 1], [0, 1, 1, 2], [3, 2, 2, 1], [4, 3, 3, 2]])
    simulated = insert(trace(state.model, (x[:2],)), state.quantization)(x)
    got = torch.from_numpy(runner(open_session(path))(x.numpy()))
    assert float((got - simulated).norm() / simulated.norm()) < 0.02


def test_nothing_between_integer_layers_runs_in_float_and_no_weight_is_dequantized_at_a_run(tmp_path):
    x = images()
    path = tmp_path / "model.onnx"
    export(quantize(built(Padded), x, weight_bits=8, method="uniform", target="cpu").state, x[:2], path)
    found = Counter(optimized_operators(path))
    assert found["QLinearConv"] == 4
    assert found["QGemm"] == 1
    assert not {"Conv", "Gemm", "Pad", "DequantizeLinear"} & set(found)


def graph(pad: dict, *readers: onnx.NodeProto, pads=(0, 0, 1, 1, 0, 0, 1, 1), value=0.0) -> onnx.ModelProto:
    """An image that is padded, and what reads it."""
    known = [
        numpy_helper.from_array(torch.tensor(pads).numpy(), "pads"),
        numpy_helper.from_array(torch.tensor(value).numpy(), "value"),
        numpy_helper.from_array(torch.ones(2, 3, 3, 3).numpy(), "weight"),
        numpy_helper.from_array(torch.tensor(0.5).numpy(), "half"),
    ]
    node = helper.make_node("Pad", ["input", "pads", "value"], ["padded"], **pad)
    ends = [helper.make_tensor_value_info(each.output[0], onnx.TensorProto.FLOAT, None) for each in readers]
    given = helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    made = helper.make_graph([node, *readers], "padded", [given], ends, known)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)])


def convolution(output: str = "output", of: str = "padded", **attributes) -> onnx.NodeProto:
    return helper.make_node("Conv", [of, "weight"], [output], **attributes)


def clip(*bounds: str) -> onnx.NodeProto:
    return helper.make_node("Clip", ["padded", *bounds], ["clipped"])


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (graph({}, convolution(), value=1.0), "not zeros"),
        (graph({"mode": "reflect"}, convolution()), "not zeros"),
        (graph({}, convolution(), pads=(0, 1, 0, 0, 0, 0, 0, 0)), "channels"),
        (graph({}, convolution(), pads=(0, 0, -1, 0, 0, 0, 0, 0)), "it crops"),
        (graph({}, convolution(), helper.make_node("Relu", ["padded"], ["other"])), "something else reads it"),
        (graph({}, clip("half"), convolution(of="clipped")), "the clip lifts zeros"),
        (graph({}, clip("", "output"), convolution(of="clipped")), "the clip's end is computed"),
        (graph({}, convolution(auto_pad="SAME_UPPER")), "the convolution finds its own padding"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_padding_stays(model, why):
    before = model.SerializeToString()
    onnx_forms.padded_convolutions(model.graph, {each.name: each for each in model.graph.initializer})
    assert model.SerializeToString() == before, why


def test_a_convolutions_own_padding_is_added_to_even_behind_a_clip_and_from_zeros_around_zeros():
    model = graph({}, convolution(of="clipped"), convolution("second", pads=[1, 0, 0, 2]))
    model.graph.node.insert(1, clip("", "half"))
    model.graph.node.insert(0, helper.make_node("Pad", ["input", "pads"], ["once"]))
    model.graph.node[1].input[0] = "once"
    x = images(1, 8).numpy()

    def run() -> list:
        options = {"providers": ["CPUExecutionProvider"]}
        return onnxruntime.InferenceSession(model.SerializeToString(), **options).run(None, {"input": x})

    before = run()
    onnx_forms.padded_convolutions(model.graph, {each.name: each for each in model.graph.initializer})
    assert [node.op_type for node in model.graph.node] == ["Clip", "Conv", "Conv"]
    assert [list(node.attribute[0].ints) for node in model.graph.node[1:]] == [[2, 2, 2, 2], [3, 2, 2, 4]]
    for one, other in zip(before, run(), strict=True):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other))


class Widening(nn.Module):
    """Option A's shortcut, of one stride or of a stride by axis, beside convolutions."""

    def __init__(self, before: int, after: int, strides: tuple[int, int]) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8 + before + after, 3, strides, 1)
        self.c = nn.Linear(8 + before + after, 4)
        self.channels, self.strides = (before, after), strides

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        short = x[:, :, :: self.strides[0], :: self.strides[1]]
        short = nn.functional.pad(short, (0, 0, 0, 0, *self.channels))
        return self.c(torch.relu(self.b(x) + short).mean((2, 3)))


def widened(tmp_path, monkeypatch, model: nn.Module, target: str = "cpu", most: int | None = None):
    """A network's file, and the one in which channels are padded as before."""
    x = images()
    state = quantize(model, x, weight_bits=8, method="uniform", target=target).state
    paths = tmp_path / "as_convolution.onnx", tmp_path / "as_it_is.onnx"
    if most is not None:
        monkeypatch.setattr(onnx_forms, "MOST_COPYING", most)
    export(state, x[:2], paths[0])
    monkeypatch.setattr(onnx_forms, "padded_channels", lambda graph, initializers: None)
    export(state, x[:2], paths[1])
    return paths


@pytest.mark.parametrize("target", ["cpu", "visionfive-2"])
@pytest.mark.parametrize(
    ("before", "after", "strides"), [(4, 4, (2, 2)), (0, 8, (2, 1)), (3, 0, (1, 1)), (1, 2, (3, 2))]
)
def test_channels_of_zeros_come_from_a_convolution_of_integers_bit_for_bit(
    tmp_path, monkeypatch, before, after, strides, target
):
    torch.manual_seed(0)
    one, other = widened(tmp_path, monkeypatch, Widening(before, after, strides).eval(), target)
    onnx.checker.check_model(onnx.load(one), full_check=True)
    assert not {"Pad", "Slice"} & {node.op_type for node in onnx.load(one).graph.node}
    assert "Pad" in {node.op_type for node in onnx.load(other).graph.node}
    x = images(6).numpy()
    assert (runner(open_session(one))(x) == runner(open_session(other))(x)).all()
    if target == "cpu":  # here ONNX Runtime has integer kernels for its unsigned activations alone
        found = Counter(optimized_operators(one))
        assert not {"Conv", "Pad", "Slice"} & set(found)
        assert found["QLinearConv"] == 3


class Watched(Widening):
    """What is cut out is read by another layer too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        short = x[:, :, :: self.strides[0], :: self.strides[1]]
        wide = nn.functional.pad(short, (0, 0, 0, 0, *self.channels))
        return self.c(torch.relu(self.b(x) + wide).mean((2, 3))) + short.mean((1, 2, 3))[:, None]


def test_what_else_reads_the_slices_keeps_them(tmp_path, monkeypatch):
    torch.manual_seed(0)
    one, other = widened(tmp_path, monkeypatch, Watched(4, 4, (2, 2)).eval())
    operators = Counter(node.op_type for node in onnx.load(one).graph.node)
    assert operators["Pad"] == 0
    assert operators["Slice"] >= 1
    x = images(6).numpy()
    assert (runner(open_session(one))(x) == runner(open_session(other))(x)).all()


def test_channels_that_a_convolution_would_copy_too_slowly_stay_padded(tmp_path, monkeypatch):
    torch.manual_seed(0)
    # 16 channels from 8, on 10 x 10 pixels.
    one, other = widened(tmp_path, monkeypatch, Widening(4, 4, (2, 2)).eval(), most=16 * 8 * 100 - 1)
    assert one.read_bytes() == other.read_bytes()


def test_a_float_network_keeps_its_padding(tmp_path):
    from compress.types import State

    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    export(State(Widening(4, 4, (2, 2)).eval()), images(2), path)
    assert "Pad" in {node.op_type for node in onnx.load(path).graph.node}
