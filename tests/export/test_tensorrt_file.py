"""The typed file: TensorRT's rules hold on it, and it computes what the interchange file does."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.errors import BadInput
from compress.export import tensorrt_file, tensorrt_rules
from compress.export.onnx import serialize
from tests.export.small_bundles import quantized_for
from tests.graph.networks import ROSTER, Attention, Plain, Residual, Squeeze, images, inputs_of

HALF_ERROR = 0.03
"""Of the largest output: float16 sums and, now and then, an activation on the other side of a rounding step."""


def run(content: bytes, x: np.ndarray) -> np.ndarray:
    """A file by the definitions of its operators: ONNX Runtime's own fusions of float16 quantizers differ from them."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def file_for(factory, bits, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(
        serialize(quantized_for("jetson" if bits == 8 else "visionfive-2", factory, bits), inputs_of(factory, 2)[0])
    )
    return path


def cases():
    for factory in ROSTER:
        if factory is not Attention:  # ONNX Runtime can't load its own interchange file
            for bits in (8, 4):
                quick = factory in (Plain, Squeeze) or (factory, bits) == (Residual, 8)
                marks = () if quick else pytest.mark.slow
                yield pytest.param(factory, bits, marks=marks, id=f"{factory.__name__}-{bits}")


@pytest.mark.parametrize(("factory", "bits"), cases())
def test_it_breaks_no_rule_and_computes_the_same(factory, bits, tmp_path):
    path = file_for(factory, bits, tmp_path)
    before = {v.rule for v in tensorrt_rules.check(onnx.load(path))}
    assert "quantized type" in before  # biases of int32
    x = inputs_of(factory, 8)[0].numpy()
    wanted = run(path.read_bytes(), x)
    for dla in (False, True):
        made = tensorrt_file.typed(path, dla=dla)
        model = onnx.load_from_string(made.content)
        assert [v for v in tensorrt_rules.check(model) if v.level != "warning"] == []
        found = run(made.content, x)
        assert found.dtype == np.float32
        assert np.abs(found - wanted).max() < HALF_ERROR * np.abs(wanted).max()
        kinds = {node.op_type for node in model.graph.node}
        assert ("QuantizeLinear" in kinds) is not dla


def test_integers_and_scales_are_those_of_the_file(tmp_path):
    path = file_for(Residual, 8, tmp_path)
    old, new = onnx.load(path), onnx.load_from_string(tensorrt_file.typed(path).content)
    have = {i.name: numpy_helper.to_array(i) for i in new.graph.initializer}
    weights = {
        i.name: numpy_helper.to_array(i)
        for i in old.graph.initializer
        if i.data_type == TensorProto.INT8 and len(i.dims) > 1
    }
    integers = [a for a in have.values() if a.dtype == np.int8 and a.ndim > 1]
    assert len(weights) == len(integers) > 5
    for array in weights.values():
        assert any(array.shape == other.shape and np.array_equal(array, other) for other in integers)
    assert {i.data_type for i in new.graph.initializer} <= {
        TensorProto.INT8,
        TensorProto.FLOAT16,
        TensorProto.FLOAT,
        TensorProto.INT64,
    }
    for node in new.graph.node:
        if node.op_type == "Add":
            makers = [next(n for n in new.graph.node if name in n.output).op_type for name in node.input]
            assert makers == ["DequantizeLinear", "DequantizeLinear"]  # both inputs of residual additions


def test_small_scales_keep_their_layer_in_float32(tmp_path):
    path = file_for(Plain, 8, tmp_path)
    model = onnx.load(path)
    dequantize = next(
        n
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and "conv2" in n.input[0] and "weight" in n.input[0]
    )
    scale = next(i for i in model.graph.initializer if i.name == dequantize.input[1])
    values = numpy_helper.to_array(scale) * 1e-6
    scale.CopyFrom(numpy_helper.from_array(values.astype(np.float32), scale.name))
    onnx.save(model, path)
    made = tensorrt_file.typed(path)
    assert [note.why for note in made.notes] == ["stays in float32: a scale is too small for float16"]
    assert tensorrt_rules.check(onnx.load_from_string(made.content)) == ()
    x = images(8).numpy()
    wanted, found = run(path.read_bytes(), x), run(made.content, x)
    assert np.abs(found - wanted).max() < HALF_ERROR * np.abs(wanted).max()


def test_int4_stays_with_matrix_products_alone(tmp_path):
    path = file_for(Plain, 4, tmp_path)
    kinds = {
        i.data_type for i in onnx.load_from_string(tensorrt_file.typed(path, int4=False).content).graph.initializer
    }
    assert TensorProto.INT4 not in kinds
    model = onnx.load_from_string(tensorrt_file.typed(path).content)
    (packed,) = [i for i in model.graph.initializer if i.data_type == TensorProto.INT4]
    (reader,) = [n for n in model.graph.node if packed.name in n.input]
    (user,) = [n for n in model.graph.node if reader.output[0] in n.input]
    assert user.op_type == "MatMul"
    assert {a.name: a.i for a in reader.attribute} == {"axis": 0, "block_size": 64}
    assert not any(n.op_type == "DequantizeLinear" and n.output[0] == user.input[0] for n in model.graph.node)


def test_no_quantizer_splits_a_layer_from_its_activation(tmp_path):
    path = file_for(Squeeze, 8, tmp_path)
    assert "fusion" in {v.rule for v in tensorrt_rules.check(onnx.load(path))}
    made = onnx.load_from_string(tensorrt_file.typed(path).content)
    assert "fusion" not in {v.rule for v in tensorrt_rules.check(made)}


def test_packing_is_onnxs():
    values = np.array([[-8, 7, 3], [-1, 0, 5]], np.int8)
    tensor = helper.make_tensor("t", TensorProto.INT4, values.shape, tensorrt_file._packed(values), raw=True)
    assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), values)


def test_unsigned_files_are_refused_with_the_way_out(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize(quantized_for("cpu", Residual), images(2)))
    with pytest.raises(BadInput, match="--target jetson"):
        tensorrt_file.typed(path)


@pytest.mark.parametrize(("content", "says"), [(b"\x00junk", "can't be read"), (b"", "holds no network")])
def test_files_that_are_no_onnx(tmp_path, content, says):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=says):
        tensorrt_file.typed(path)
