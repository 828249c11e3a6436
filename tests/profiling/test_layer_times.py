"""Times by layer: every node of the runtime goes to the layer that it computes, or to the rest, and none is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from compress import targets
from compress.export.onnx import serialize
from compress.job import assess
from compress.profiling import latency, roofline
from compress.profiling.layer_times import NodeTime, attributed, measure, times, with_times
from compress.types import State
from tests.graph.networks import Residual, build, images
from tests.support import quantized


@pytest.fixture(scope="module")
def states():
    return {"float": State(build(Residual)), "quantized": quantized(Residual).state}


def layers_of(state: State):
    assessed = assess(state, targets.load("cpu"), images(2))
    estimate = latency.predict(
        assessed.operators, assessed.precisions, targets.load("cpu"), 0, 0, inputs=assessed.inputs
    )
    return roofline.works(
        assessed.operators, assessed.precisions, targets.load("cpu"), estimate, inputs=assessed.inputs
    )


@pytest.mark.parametrize("kind", ["float", "quantized"])
def test_every_node_of_a_real_run_is_counted_once(states, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize(states[kind], images(2)))
    layers = layers_of(states[kind])
    x = np.asarray(images(1), np.float32)
    nodes, runs, _ = times(path, x)
    found, rest = attributed(nodes, path, layers)
    assert runs >= 20
    assert sum(found.values()) + sum(n.seconds for n in rest) == pytest.approx(sum(n.seconds for n in nodes))
    weighted = {layer.operator for layer in layers if layer.out_channels}
    assert weighted <= set(found)
    assert len(weighted) == 7
    assert {node.operator for node in rest}.isdisjoint({"Conv", "QLinearConv", "Gemm", "QGemm", "FusedConv"})
    if kind == "quantized":
        adds = [layer.operator for layer in layers if layer.kind == "add"]
        assert set(adds) <= set(found)
        assert "QuantizeLinear" in {node.operator for node in rest}


def test_a_node_goes_to_the_layer_whose_weights_it_reads(states, tmp_path: Path) -> None:
    """Names as the runtime gives them: of the file's node with a suffix, or of the tensor behind what it fused."""
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize(states["float"], images(2)))
    layers = layers_of(states["float"])
    first = layers[0]
    graph = onnx.load(path).graph
    conv, relu = (next(node for node in graph.node if node.op_type == kind) for kind in ("Conv", "Relu"))
    nodes = [
        NodeTime(conv.name, "Conv", 1.0),
        NodeTime(f"{relu.output[0]}_nchwc", "Conv", 2.0),
        NodeTime(f"{conv.name}_token_7", "FusedConv", 4.0),
        NodeTime("Transpose_token_3", "Transpose", 8.0),
        NodeTime("nobody", "Conv", 16.0),
    ]
    found, rest = attributed(nodes, path, layers)
    assert found == {first.operator: 7.0}
    assert [node.seconds for node in rest] == [8.0, 16.0]


def test_measured_times_stand_beside_the_predicted_ones(states, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize(states["float"], images(2)))
    layers = layers_of(states["float"])
    found, said = measure(path, np.asarray(images(1), np.float32), layers)
    timed = with_times(layers, found, {layers[0].name: 1.0})
    assert [layer.predicted_s for layer in timed] == [layer.predicted_s for layer in layers]
    assert timed[0].measured_s == found[layers[0].operator]
    assert timed[0].before_s == 1.0
    # What the runtime computes with another layer takes no time of its own.
    assert {layer.measured_s for layer in timed if layer.operator not in found} <= {0.0}
    assert said.runtime == "onnxruntime"
    assert said.rest_s >= 0
