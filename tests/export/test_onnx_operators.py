"""ONNX Runtime beside the simulation, operator by operator: on equal integers, one step apart at most."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import fx

from compress import targets
from compress.export.onnx import serialize
from compress.graph.qdq import insert
from compress.graph.trace import trace
from compress.quantize import quantize
from compress.types import Precision, Target
from tests.graph.networks import Depthwise, Residual, build, images
from tests.rosters import crossed
from tests.support import exact_here

PAIR = torch.ops.compress.quantize_dequantize.default


def device(weight_bits: int, activation_bits: int) -> Target:
    """This machine, as if it ran this precision alone."""
    target = targets.load("cpu")
    rate = target.macs_per_s[0]
    return replace(target, macs_per_s=(replace(rate, precision=Precision(weight_bits, activation_bits, "integer")),))


class Integers(fx.Interpreter):
    """Runs a simulation, and keeps the integers of each of its pairs in the order of execution."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: list[tuple[np.ndarray, float]] = []

    def run_node(self, n: fx.Node):
        value = super().run_node(n)
        if n.target is PAIR:
            _, scale, zero_point, _, signed = n.args
            kind = np.int8 if signed else np.uint8
            self.found.append((((value / scale).round() + zero_point).numpy().astype(kind), scale))
        return value


@crossed(("factory", "bits"), [Residual, Depthwise], [(8, 8), (4, 8), (3, 4), (2, 8), (1, 2)])
def test_every_operator_is_within_a_step_of_the_simulation(factory, bits):
    """Every quantized tensor becomes an input of the file, fed with the simulation's integers, so that what comes out
    of the next QuantizeLinear rests on equal ones."""
    weight_bits, activation_bits = bits
    made = quantize(
        build(factory),
        images(32),
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        target=device(weight_bits, activation_bits),
    )
    x = images(2, 9)
    run = Integers(insert(trace(made.model, (x,)), made.state.quantization))
    with torch.no_grad():
        run.run(x)
    file = onnx.load_from_string(serialize(made.state, x))
    constants = {t.name: t for t in file.graph.initializer} | {
        node.output[0]: node.attribute[0].t for node in file.graph.node if node.op_type == "Constant"
    }
    written = [node for node in file.graph.node if node.op_type == "QuantizeLinear"]
    assert len(written) == len(run.found) > 5
    given = {}
    for node, (integers, scale) in zip(written, run.found, strict=True):
        assert float(numpy_helper.to_array(constants[node.input[1]])) == np.float32(scale)
        given[node.output[0]] = integers
    for node in file.graph.node:
        for index, name in enumerate(node.input):
            if name in given:
                node.input[index] = f"{name}_given"
    kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in given.items()}
    file.graph.input.extend(
        onnx.helper.make_tensor_value_info(f"{name}_given", kinds[name], value.shape) for name, value in given.items()
    )
    file.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, kinds[name], value.shape) for name, value in given.items()
    )
    session = onnxruntime.InferenceSession(exact_here(file.SerializeToString()), providers=["CPUExecutionProvider"])
    feeds = {"input": x.numpy()} | {f"{name}_given": value for name, value in given.items()}
    for name, got in zip(given, session.run(list(given), feeds), strict=True):
        apart = np.abs(got.astype(int) - given[name].astype(int))
        assert apart.max() <= 1, name
        assert (apart > 0).mean() < 0.02, name
