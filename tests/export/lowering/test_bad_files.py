"""Files that can't be lowered: one line that names the operator, its node and a way out; never a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compress.errors import BadInput
from compress.export.lowering import CannotLower, lower
from tests.export.lowering.small import Net, check


def plain() -> bytes:
    net = Net(1, 3, 6, 6)
    return net.file(net.quantized(net.conv(net.quantized("x"), 4, 3, 3, 3), 0.05))


def refusal(source: bytes | Path) -> CannotLower:
    with pytest.raises(CannotLower) as caught:
        lower(source)
    assert isinstance(caught.value, BadInput)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 400
    return caught.value


NOT_ONNX = {"nothing": b"", "text": b"hello", "zeros": bytes(100), "noise": np.random.default_rng(0).bytes(500)}


@pytest.mark.parametrize("name", NOT_ONNX)
def test_what_is_not_onnx(name):
    assert "can't be read as ONNX" in str(refusal(NOT_ONNX[name]))


def test_a_file_that_is_not_there(tmp_path):
    assert "missing.onnx" in str(refusal(tmp_path / "missing.onnx"))
    assert str(tmp_path) in str(refusal(tmp_path))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_truncated_file(share):
    refusal(plain()[: int(len(plain()) * share)])


@pytest.mark.parametrize("seed", range(150))
def test_a_file_with_wrong_bytes_is_lowered_or_refused_and_nothing_else(seed):
    g = np.random.default_rng(seed)
    content = bytearray(plain())
    for _ in range(int(g.integers(1, 6))):
        content[int(g.integers(len(content)))] = int(g.integers(256))
    with contextlib.suppress(CannotLower):
        lower(bytes(content))


def test_weights_in_other_files(tmp_path):
    model = onnx.load_from_string(plain())
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    assert "save it as one file" in str(refusal(tmp_path / "m.onnx"))


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_an_open_size(axis):
    shape: list[int | str] = [1, 3, 6, 6]
    shape[axis] = "size"
    net = Net(*shape)
    said = str(refusal(net.file(net.node("Relu", "x"))))
    assert "'x'" in said
    assert f"axis {axis} (size)" in said
    assert "fixed sizes" in said


@pytest.mark.parametrize("batch", ["batch", 0])
def test_an_open_batch_is_one(batch):
    net = Net(batch, 3, 6, 6)
    assert lower(net.file(net.node("Relu", "x"))).tensors["x"].shape == (6, 6, 3)


def test_a_batch_of_four():
    net = Net(4, 3, 6, 6)
    assert "export it with a batch of 1" in str(refusal(net.file(net.node("Relu", "x"))))


def test_a_graph_of_nothing():
    refusal(Net(1, 3).file("x"))


def test_an_output_that_is_constant():
    net = Net(1, 3)
    net.node("Relu", "x")
    assert "doesn't depend on the input" in str(refusal(net.file(net.node("Neg", net.constant([1.0, 2.0])))))


def test_a_size_that_depends_on_the_input():
    net = Net(1, 3, 6, 6)
    y = net.node("Reshape", "x", net.node("Cast", net.node("ReduceMax", "x", keepdims=0), to=TensorProto.INT64))
    assert refusal(net.file(y)).node


def lstm(net: Net) -> str:
    x = net.node("Reshape", "x", net.constant([6, 1, 18], np.int64))
    w, r = net.constant(np.ones((1, 16, 18))), net.constant(np.ones((1, 16, 4)))
    return str(net.node("LSTM", x, w, r, hidden_size=4))


def loop(net: Net) -> str:
    inner = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
    ]
    nodes = [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("Relu", ["s"], ["so"])]
    ends = [helper.make_tensor_value_info("co", TensorProto.BOOL, []), inner[2]]
    ends[1] = helper.make_tensor_value_info("so", TensorProto.FLOAT, None)
    body = helper.make_graph(nodes, "body", inner, ends)
    return str(net.node("Loop", net.constant(3, np.int64), net.constant(True, np.bool_), "x", body=body))


UNKNOWN: dict[str, Callable[[Net], str]] = {
    "LSTM": lstm,
    "Loop": loop,
    "Einsum": lambda n: n.node("Einsum", "x", "x", equation="nchw,nchw->nc"),
    "TopK": lambda n: n.node("TopK", "x", n.constant([2], np.int64), outputs=2)[0],
    "NonZero": lambda n: n.node("Cast", n.node("NonZero", "x"), to=TensorProto.FLOAT),
    "LpPool": lambda n: n.node("LpPool", "x", kernel_shape=[2, 2]),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_operator_without_a_rule_is_named_with_its_node_and_a_way_out(name):
    net = Net(1, 3, 6, 6)
    refused = refusal(net.file(UNKNOWN[name](net)))
    assert refused.operator == name
    assert refused.node in {node.name for node in net.nodes if node.op_type == name}
    assert refused.node in str(refused)
    assert "ONNX Runtime" in str(refused)


def test_an_operator_of_another_domain():
    net = Net(1, 3, 6, 6)
    model = onnx.load_from_string(net.file(net.node("Fancy", "x", domain="my.own")))
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    refused = refusal(model.SerializeToString())
    assert "'my.own'" in str(refused)
    assert refused.operator == "Fancy"


def per_channel(net: Net) -> str:
    ends = net.constant([0.1, 0.2, 0.3]), net.constant([0, 0, 0], np.int8)
    return str(net.node("DequantizeLinear", net.node("QuantizeLinear", "x", *ends, axis=1), *ends, axis=1))


def blockwise(net: Net) -> str:
    scale = net.constant(np.full((4, 2), 0.1))
    weight = net.node("DequantizeLinear", net.constant(np.ones((4, 108)), np.int8), scale, axis=1, block_size=54)
    return str(net.node("Gemm", net.node("Flatten", net.quantized("x")), weight, transB=1))


GRIDS: dict[str, tuple[Callable[[Net], str], str, str]] = {
    "16 bits": (lambda n: n.quantized("x", 0.01, 0, "int16"), "QuantizeLinear", "int16"),
    "16 bits unsigned": (lambda n: n.quantized("x", 0.01, 0, "uint16"), "QuantizeLinear", "uint16"),
    "a channel": (per_channel, "QuantizeLinear", "a scale a channel"),
    "blocks": (blockwise, "DequantizeLinear", "each block"),
}


@pytest.mark.parametrize("name", GRIDS)
def test_grids_that_are_not_lowered(name):
    make, operator, said = GRIDS[name]
    net = Net(1, 3, 6, 6)
    refused = refusal(net.file(make(net)))
    assert refused.operator == operator
    assert refused.node
    assert said in str(refused)


def test_a_scale_of_zero_is_refused():
    net = Net(1, 3, 6, 6)
    refusal(net.file(net.quantized(net.conv(net.quantized("x", 0.0), 4, 3, 3, 3), 0.05)))


def test_a_scale_that_is_no_number_is_refused():
    net = Net(1, 3, 6, 6)
    refusal(net.file(net.quantized(net.conv(net.quantized("x", float("nan")), 4, 3, 3, 3), 0.05)))


def test_a_computed_scale_is_refused():
    net = Net(1, 3, 6, 6)
    scale = net.node("ReduceMax", "x", keepdims=0)
    y = net.node("QuantizeLinear", "x", scale, net.constant(0, np.uint8))
    refusal(net.file(net.node("DequantizeLinear", y, scale, net.constant(0, np.uint8))))


@pytest.mark.parametrize("kind", ["INT64", "UINT8", "STRING", "FLOAT16"])
def test_an_input_that_is_not_float32(kind):
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.DataType.Value(kind), [1, 3]))
    assert f"'x' is {kind}" in str(refusal(net.file(net.node("Identity", net.node("Cast", "x", to=1)))))


def test_a_table_that_is_looked_up_by_what_is_computed():
    net = Net(1, 3)
    index = net.node("Cast", "x", to=TensorProto.INT64)
    refused = refusal(net.file(net.node("Gather", net.constant(np.ones((5, 2))), index)))
    assert refused.operator in ("Gather", "Cast")


def test_integers_in_another_form_than_pairs():
    net = Net(1, 4)
    y, scale, zero = net.node("DynamicQuantizeLinear", "x", outputs=3)
    refused = refusal(net.file(net.node("DequantizeLinear", y, scale, zero)))
    assert refused.operator == "DynamicQuantizeLinear"
    assert "QuantFormat.QDQ" in str(refused)


@pytest.mark.parametrize(("dtype", "low"), [("int16", -30000), ("uint16", 0)])
def test_weights_of_16_bits_are_computed_in_float(dtype, low):
    net = Net(1, 3, 6, 6)
    integers = net.constant(net.random.integers(low, low + 50_000 if low < 0 else 60_000, (4, 3, 3, 3)), dtype)
    zero = net.constant(0 if low else 30_000, dtype)
    weight = net.node("DequantizeLinear", integers, net.constant(1e-5), zero)
    y = net.quantized(net.node("Conv", net.quantized("x"), weight), 0.05)
    check(net.file(y), floats={"Conv"})
