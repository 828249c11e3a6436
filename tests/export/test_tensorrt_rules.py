# ruff: noqa: E501  # a table: one broken network a line
"""The checker of TensorRT's rules: a network that breaks each one, and the node that it names."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.export.tensorrt_rules import check


def model(nodes, constants=None, inputs=(("x", (1, 4, 8, 8)),), kind=TensorProto.FLOAT, opset=19, domain=None):
    """A model of nodes ``(operator, inputs, output, attributes)`` and constants by name."""
    made = [
        helper.make_node(
            op,
            ins,
            [out] if isinstance(out, str) else out,
            name=f"n_{op}{k}",
            domain=domain if k == 0 else None,
            **more,
        )
        for k, (op, ins, out, more) in enumerate(nodes)
    ]
    last = made[-1].output[0]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        [
            c if isinstance(c, onnx.TensorProto) else numpy_helper.from_array(c, name)
            for name, c in (constants or {}).items()
        ],
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets)


S, Z, U = np.float32(0.1), np.int8(0), np.uint8(0)
W = np.ones((6, 4, 3, 3), np.int8)
PER_CHANNEL = np.full(6, 0.1, np.float32)
PAIR = [("QuantizeLinear", ["x", "s", "z"], "q", {}), ("DequantizeLinear", ["q", "s", "z"], "d", {})]
CONV = [*PAIR, ("DequantizeLinear", ["w", "ws"], "wd", {"axis": 0}), ("Conv", ["d", "wd"], "c", {})]
GOOD = {"s": S, "z": Z, "w": W, "ws": PER_CHANNEL}
INT4 = helper.make_tensor("w", TensorProto.INT4, (128, 8), bytes(512), raw=True)

BROKEN = {
    "operator": (model([("QLinearConv", ["x", "s", "z", "w", "ws", "wz", "s", "z"], "y", {})], {**GOOD, "wz": np.zeros(6, np.int8)}), "n_QLinearConv0", "error"),
    "own operator": (model([("Frob", ["x"], "y", {})], domain="mine"), "n_Frob0", "error"),
    "zero point": (model([*PAIR[:1], ("DequantizeLinear", ["q", "s", "z"], "d", {})], {"s": S, "z": np.int8(3)}), "n_QuantizeLinear0", "error"),
    "quantized type": (model(PAIR, {"s": S, "z": U}), "n_QuantizeLinear0", "error"),
    "scale": (model(PAIR, {"s": np.float32(0), "z": Z}), "n_QuantizeLinear0", "error"),
    "computed scale": (model([("Abs", ["t"], "s", {}), *PAIR], {"z": Z}, (("x", (1, 4, 8, 8)), ("t", ()))), "n_QuantizeLinear1", "error"),
    "granularity": (model(PAIR, {"s": np.full(4, 0.1, np.float32), "z": np.zeros(4, np.int8)}), "n_QuantizeLinear0", "error"),
    "axis": (model([*PAIR, ("DequantizeLinear", ["w", "ws"], "wd", {"axis": 1}), CONV[3]], {**GOOD, "ws": np.full(4, 0.1, np.float32)}), "n_Conv3", "error"),
    "weights": (model([CONV[2], ("Conv", ["x", "wd"], "y", {})], GOOD), "n_Conv1", "slow"),
    "weights in float": (model([*PAIR, ("Conv", ["d", "f"], "y", {})], {**GOOD, "f": W.astype(np.float32)}), "n_Conv2", "slow"),
    "bias": (model([("DequantizeLinear", ["b", "ws"], "y", {"axis": 0})], {"b": np.ones(6, np.int32), "ws": PER_CHANNEL}), "n_DequantizeLinear0", "error"),
    "INT4": (model([("DequantizeLinear", ["w", "ws"], "wd", {"axis": 1}), ("Add", ["x", "wd"], "y", {})], {"w": INT4, "ws": np.ones(8, np.float32)}, (("x", (128, 8)),), opset=21), "n_DequantizeLinear0", "error"),
    "cast": (model([("Cast", ["w"], "y", {"to": TensorProto.INT8}), ("DequantizeLinear", ["y", "s"], "d", {})], {"w": INT4, "s": S}, opset=21), "n_Cast0", "error"),
    "fusion": (model([*CONV, ("QuantizeLinear", ["c", "s", "z"], "q2", {}), ("DequantizeLinear", ["q2", "s", "z"], "d2", {}), ("Relu", ["d2"], "y", {})], GOOD), "n_Conv3", "slow"),
    "residual": (model([*PAIR, ("MaxPool", ["t"], "m", {"kernel_shape": [1, 1]}), ("Add", ["d", "m"], "y", {})], GOOD, (("x", (1, 4, 8, 8)), ("t", (1, 4, 8, 8)))), "n_Add3", "slow"),
    "pooling": (model([("MaxPool", ["x"], "y", {"kernel_shape": [2, 2], "dilations": [2, 2]})]), "n_MaxPool0", "error"),
    "resize": (model([("Resize", ["x", "", "f"], "y", {"mode": "cubic"})], {"f": np.array([1, 1, 2, 2], np.float32)}), "n_Resize0", "error"),
    "strong typing": (model([("Cast", ["x"], "h", {"to": TensorProto.FLOAT16}), ("Add", ["x", "h"], "y", {})]), "n_Add1", "error"),
    "type": (model([("Cast", ["x"], "y", {"to": TensorProto.FLOAT})], kind=TensorProto.UINT16), "x", "error"),
    "rank": (model([("Conv", ["x", "f"], "y", {})], {"f": np.ones((6, 4, 3, 3, 3, 3), np.float32)}, (("x", (1, 4, 8, 8, 8, 8)),)), "n_Conv0", "error"),
    "opset": (model([("Relu", ["x"], "y", {})], opset=25), "the file", "warning"),
    "old opset": (model([("Relu", ["x"], "y", {})], opset=8), "the file", "error"),
}  # fmt: skip
RULE = {
    "own operator": "operator",
    "computed scale": "scale",
    "weights in float": "weights",
    "bias": "quantized type",
    "old opset": "opset",
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_violation_names_its_node_and_what_to_do(name):
    broken, node, level = BROKEN[name]
    found = [v for v in check(broken) if v.rule == RULE.get(name, name)]
    assert found, check(broken)
    assert found[0].node == node
    assert found[0].level == level
    assert found[0].found
    assert found[0].fix


def test_a_quantized_convolution_breaks_none():
    assert check(model(CONV, GOOD)) == ()


@pytest.mark.parametrize(
    ("operator", "versions"), [("Swish", ("10.3",)), ("BitShift", ("10.3", "10.15", "11")), ("Relu", ())]
)
def test_operators_are_known_by_release(operator, versions):
    found = [v for v in check(model([(operator, ["x"], "y", {})], opset=24)) if v.rule == "operator"]
    assert [v.versions for v in found] == ([versions] if versions else [])
