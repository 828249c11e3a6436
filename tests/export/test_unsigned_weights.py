"""Files whose sums of 8-bit products are exact in ONNX Runtime, also on x86 processors without VNNI."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress import targets
from compress.export import onnx as interchange
from compress.export import onnxruntime as exporter
from compress.export.kernels import backends
from compress.export.kernels.isa import X86_AVX2
from compress.export.manifest import read_manifest
from compress.profiling import session, verify
from compress.quantize import quantize
from tests.export.small_bundles import make_bundle
from tests.graph.networks import ROSTER, Attention, Plain, Residual, build, images
from tests.rosters import some
from tests.support import quantized


def convolution(weight: np.ndarray) -> bytes:
    """Integers 0 to 255 by int8 weights, (O, I, 3, 3), as quantize/dequantize pairs; the output counts thousands."""
    constants = {
        "one": np.array(1, np.float32),
        "thousand": np.array(1000, np.float32),
        "zero": np.array(0, np.uint8),
        "middle": np.array(128, np.uint8),
        "w": weight,
        "w_zero": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "one", "w_zero"], ["weight"]),
        helper.make_node("Conv", ["x", "weight"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "thousand", "middle"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "thousand", "middle"], ["output"]),
    ]
    ends = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, weight.shape[1], 5, 5]),
        helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, weight.shape[0], 3, 3]),
    ]
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "saturating", ends[:1], ends[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("channels", [2, 8, 16])
def test_the_largest_products_are_added_without_saturation(tmp_path, channels):
    # A pair of products of 255 and 127 is 64,770, twice what 16 bits hold. As many negative ones, each with a zero
    # beside it, take the sum back to the last weight's product.
    weight = np.full((8, channels, 3, 3), 127, np.int8)
    weight[:, ::2, 1:], weight[:, 1::2, 1:] = -127, 0
    weight[:, 1, 2, 2] = 99
    x = np.full((1, channels, 5, 5), 255, np.float32)
    path = tmp_path / "model.onnx"
    path.write_bytes(interchange.stored(convolution(weight), "unsigned"))
    found = session.runner(session.open_session(path))(x)
    path.write_bytes(convolution(weight))
    np.testing.assert_array_equal(session.runner(session.open_session(path, exact=True))(x), found)
    total = 255 * int(weight[0].astype(int).sum())
    wanted = 1000 * np.clip(np.round(total / 1000), -128, 127)
    np.testing.assert_array_equal(found, np.full((1, 8, 3, 3), wanted, np.float32))


def held(content: bytes) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(content).graph.initializer}


@some("factory", ROSTER, quick=(Plain, Residual, Attention))
def test_unsigned_weights_are_the_same_numbers(factory):
    state, x = quantized(factory).state, images(8)
    signed, unsigned = (interchange.serialize(state, images(2), weights=each) for each in ("signed", "unsigned"))
    options = onnxruntime.SessionOptions()
    # Each operator as it is defined.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    runs = [onnxruntime.InferenceSession(each, options) for each in (signed, unsigned)]
    one, other = (run.run(None, {"input": x.numpy()})[0] for run in runs)
    np.testing.assert_array_equal(one, other)
    onnx.shape_inference.infer_shapes(onnx.load_from_string(unsigned), check_type=True, strict_mode=True)
    before, after = held(signed), held(unsigned)
    wide = {name for name, value in before.items() if value.dtype == np.int8 and np.abs(value.astype(int)).max() > 64}
    moved = {name for name in wide if after[name].dtype == np.uint8}
    assert moved
    assert all(np.array_equal(after[name].astype(int) - 128, before[name]) for name in moved)
    assert wide == moved


def test_weights_around_another_zero_point_are_left_alone():
    file = onnx.load_from_string(convolution(np.full((8, 2, 3, 3), 127, np.int8)))
    (zero,) = (tensor for tensor in file.graph.initializer if tensor.name == "w_zero")
    zero.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), "w_zero"))
    before = file.SerializeToString(deterministic=True)
    assert interchange.stored(before, "unsigned") == before


def test_weights_that_cannot_saturate_stay_signed():
    made = quantize(build(Residual), images(16), weight_bits=4, method="uniform").state
    assert interchange.serialize(made, images(2), weights="unsigned") == interchange.serialize(made, images(2))


@pytest.mark.parametrize(
    ("target", "weights"),
    [("x86-64", "unsigned"), ("raspberry-pi-5", "signed"), ("jetson-orin-nano", "signed"), ("cortex-m4", "signed")],
)
def test_files_for_processors_that_saturate_have_unsigned_weights(target, weights):
    assert exporter.weight_storage(targets.load(target)) == weights


@pytest.mark.parametrize(
    ("target", "changed"),
    [("cpu", False), ("x86-64", False), ("mine.toml", False), ("raspberry-pi-5", True), ("jetson", True)],
)
def test_a_bundle_is_verified_as_it_is_on_a_processor_of_its_own_kind(tmp_path, monkeypatch, target, changed):
    # A bundle with signed weights, as one for `cpu` that was made on a machine with VNNI, on one without.
    monkeypatch.setattr(backends, "host", lambda: X86_AVX2)
    bundle, asked = make_bundle(tmp_path / "bundle", "cpu", runtimes=()), []
    monkeypatch.setattr(
        verify, "open_session", lambda *given, **more: asked.append(more) or session.open_session(*given)
    )
    verify.run_golden(bundle, replace(read_manifest(bundle), target=target))
    assert asked == [{"exact": changed}]
