"""The figures of targets/cpu.toml: what ONNX Runtime reaches on this machine, and how far predictions are off.

Chains of convolutions with ReLU, float, 8-bit, and 8-bit with weights stored in 4 bits, one input at a time,
with ONNX Runtime's own number of threads. ``predicted_ms`` is the roofline of the target ``cpu`` as it ships.
Run it on an idle machine: beside another program on the same cores, most rows take two to three times as long.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from compress.graph.operators import Operator
from compress.profiling.latency import predict
from compress.targets import load
from compress.types import FLOAT32, Precision, Target

FORMATS = {"float": FLOAT32, "W8A8": Precision(8, 8, "integer"), "W4A8": Precision(4, 8, "integer")}


@dataclass(frozen=True)
class Chain:
    """Convolutions one behind another: (output channels, kernel size, stride) of each, on square images."""

    name: str
    layers: tuple[tuple[int, int, int], ...]
    size: int
    channels: int


CHAINS = (
    Chain("256 channels, 56x56", ((256, 3, 1),) * 4, 56, 256),
    Chain("128 channels, 28x28", ((128, 3, 1),) * 8, 28, 128),
    Chain("512 channels, 28x28, 1x1", ((512, 1, 1),) * 8, 28, 512),
    Chain("64 channels, 8x8", ((64, 3, 1),) * 16, 8, 64),
    Chain("32 channels, 16x16", ((32, 3, 1),) * 16, 16, 32),
    Chain("16 channels, 32x32", ((16, 3, 1),) * 16, 32, 16),
    Chain(
        "the convolutions of ResNet-20",
        ((16, 3, 1),) * 7 + ((32, 3, 2),) + ((32, 3, 1),) * 5 + ((64, 3, 2),) + ((64, 3, 1),) * 5,
        32,
        3,
    ),
    Chain("2048 channels, one pixel (weights stream)", ((2048, 1, 1),) * 4, 1, 2048),
    Chain("16 channels, one pixel (nothing but launches)", ((16, 1, 1),) * 64, 1, 16),
)


def operators(chain: Chain) -> list[Operator]:
    made: list[Operator] = []
    source, channels, size = "x", chain.channels, chain.size
    for index, (out, kernel, stride) in enumerate(chain.layers):
        size = -(-size // stride)
        weights, name = out * channels * kernel**2, f"conv{index}"
        made.append(
            Operator(name, name, "conv2d", weights * size**2, weights, weights, (source,), out * size**2, channels, out)
        )
        made.append(Operator(f"relu{index}", "", "relu", 0, 0, 0, (name,), out * size**2, fused_into=name))
        source, channels = f"relu{index}", out
    return made


def model(chain: Chain, precision: Precision) -> bytes:
    """The chain as an ONNX file; quantized, with explicit Q/DQ around every convolution."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    quantized = precision.kind == "integer"
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def requantized(tensor: str) -> str:
        grid = ["activation_scale", "activation_zero"]
        return add("DequantizeLinear", [add("QuantizeLinear", [tensor, *grid], f"{tensor}_q"), *grid], f"{tensor}_d")

    def weight(index: int, value: NDArray[np.float32]) -> str:
        if not quantized:
            return constant(f"w{index}", value)
        high = 2 ** (precision.weight_bits - 1) - 1
        integers = np.clip(np.round(value * high / 3), -high, high).astype(np.int8)
        if precision.weight_bits == 8:
            stored = constant(f"w{index}_q", integers)
        else:
            constants.append(
                helper.make_tensor(f"w{index}_q4", TensorProto.INT4, integers.shape, integers.ravel().tolist())
            )
            stored = add("Cast", [f"w{index}_q4"], f"w{index}_q", to=TensorProto.INT8)
        scale = constant(f"w{index}_scale", np.full(len(value), 3 / high, np.float32))
        return add("DequantizeLinear", [stored, scale], f"w{index}", axis=0)

    if quantized:
        constant("activation_scale", np.array(0.05, np.float32))
        constant("activation_zero", np.array(0, np.uint8))
    tensor, channels = "x", chain.channels
    if quantized:
        tensor = requantized(tensor)
    for index, (out, kernel, stride) in enumerate(chain.layers):
        kernels = rng.standard_normal((out, channels, kernel, kernel)).astype(np.float32)
        settings = {"pads": [kernel // 2] * 4, "strides": [stride] * 2}
        tensor = add("Conv", [tensor, weight(index, kernels)], f"conv{index}", **settings)
        tensor = add("Relu", [tensor], f"relu{index}")
        channels = out
        if quantized:
            tensor = requantized(tensor)
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, chain.channels, chain.size, chain.size])],
        [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None)],
        constants,
    )
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(file.SerializeToString())


def seconds(file: bytes, chain: Chain, rounds: int = 5, at_least: float = 0.2) -> float:
    """The lowest of the medians of several rounds, so that other work on the machine counts little."""
    import onnxruntime as ort

    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).random((1, chain.channels, chain.size, chain.size), np.float32)
    for _ in range(10):
        session.run(None, {"x": x})
    medians: list[float] = []
    for _ in range(rounds):
        runs: list[float] = []
        while sum(runs) < at_least:
            start = time.perf_counter()
            session.run(None, {"x": x})
            runs.append(time.perf_counter() - start)
        medians.append(statistics.median(runs))
    return min(medians)


def row(chain: Chain, label: str, target: Target) -> common.Row:
    precision, made = FORMATS[label], operators(chain)
    inputs = {"x": chain.channels * chain.size**2}
    predicted = predict(made, lambda _: precision, target, 0, 0, inputs=inputs).latency_s
    measured = seconds(model(chain, precision), chain)
    macs, weights = sum(o.macs for o in made), sum(o.weights for o in made)
    return {
        "chain": chain.name,
        "precision": label,
        "latency_ms": round(measured * 1e3, 4),
        "predicted_ms": round(predicted * 1e3, 4),
        "measured_over_predicted": round(measured / predicted, 3),
        "gmac_per_s": round(macs / measured / 1e9, 1),
        "weight_gbytes_per_s": round(weights * max(precision.weight_bits, 8) / 8 / measured / 1e9, 2),
        "us_per_layer": round(measured / len(chain.layers) * 1e6, 2),
    }


def measure() -> list[common.Row]:
    target = load("cpu")
    return [row(chain, label, target) for chain in CHAINS for label in FORMATS]


def section(document: Mapping[str, Any]) -> str:
    rows = document["rows"]
    share = max(max(row["measured_over_predicted"], 1 / row["measured_over_predicted"]) for row in rows)
    slow = sum(row["measured_over_predicted"] > 1 for row in rows)
    table = common.markdown_table(
        ["chain of convolutions", "precision", "measured, ms", "predicted, ms", "measured / predicted", "GMAC/s"],
        [
            [
                row["chain"],
                row["precision"],
                common.shown(row["latency_ms"], 3),
                common.shown(row["predicted_ms"], 3),
                common.shown(row["measured_over_predicted"], 2),
                common.shown(row["gmac_per_s"], 1),
            ]
            for row in rows
        ],
        text_columns=2,
    )
    return (
        "Where the rates of the target `cpu` come from, and how far its predictions are off: ONNX Runtime on chains of "
        "convolutions with ReLU, batch 1, all cores. The prediction is the roofline with the figures of "
        "`targets/cpu.toml`, which were taken from these very chains; a network is another matter. The largest "
        f"factor between the two is {share:.2f}, and {slow} of {len(rows)} rows are slower than predicted. Candidates "
        "for `cpu` are sorted by such predictions only until they are measured.\n\n" + table
    )


BENCHMARK = common.Benchmark(
    name="cpu_target",
    title="the rates of targets/cpu.toml, and how far its predictions are off",
    needs=(),
    packages=("onnxruntime", "onnx", "numpy"),
    measure=measure,
    section=section,
    minutes=1,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
