"""Files that other tools wrote (make_fixtures.py): integers throughout, and in agreement with ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from compress import targets
from compress.export.lowering import lower
from compress.export.onnxruntime import weight_storage
from compress.integer import program as p
from tests.export.lowering import comparing
from tests.export.lowering.make_fixtures import FILES, TOOLS
from tests.export.lowering.small import check, islands
from tests.support import exact_here

FLOAT: dict[str, set[str]] = {"modelopt": {"Add", "Gemm"}}
"""What a tool itself leaves in float: modelopt the sum, and the linear layer."""


@pytest.mark.parametrize("tool", TOOLS)
def test_a_small_network(tool):
    model = (FILES / f"{tool}.onnx").read_bytes()
    found = islands(lower(model))
    assert found <= FLOAT.get(tool, set())
    program = check(model, floats=found)
    kinds = [type(op) for op in program.ops]
    # Five convolutions and a linear layer.
    assert kinds.count(p.Convolution) + kinds.count(p.FloatConvolution) == 6
    assert kinds.count(p.Convolution) == (5 if "Gemm" in FLOAT.get(tool, set()) else 6)


@pytest.mark.parametrize("tool", TOOLS)
def test_it_is_close_to_onnx_runtimes_own_integers(tool):
    if tool == "brevitas" and weight_storage(targets.load("cpu")) == "unsigned":
        pytest.skip("its weights are behind a Clip, and ONNX Runtime's sums of them saturate on x86 without VNNI")
    model = (FILES / f"{tool}.onnx").read_bytes()
    program = lower(model)
    for seed in range(4):
        inputs = comparing.random_inputs(model, seed)
        assert comparing.difference(exact_here(model), inputs, program, optimized=True) <= 0.05


def test_a_scale_a_channel_for_a_depthwise_convolution_is_refused_by_name():
    """As NNCF gives one by default."""
    from compress.export.lowering import CannotLower
    from tests.export.lowering.small import Net

    net = Net(1, 4, 6, 6)
    ends = net.constant([0.1, 0.2, 0.3, 0.4]), net.constant([0, 0, 0, 0], np.uint8)
    x = net.node("Relu", net.conv(net.quantized("x"), 4, 4, 3, 3))
    y = net.node("DequantizeLinear", net.node("QuantizeLinear", x, *ends, axis=1), *ends, axis=1)
    with pytest.raises(CannotLower, match="a scale a channel") as caught:
        lower(net.file(net.conv(y, 4, 1, 3, 3, group=4)))
    assert caught.value.operator == "QuantizeLinear"
