"""The figures of targets/cpu.toml: what ONNX Runtime reaches on this machine, and how far predictions are off.

Chains of convolutions with ReLU, float, 8-bit, and 8-bit with weights stored in 4 bits, one input at a time,
with ONNX Runtime's own number of threads. ``predicted_ms`` is the roofline of the target ``cpu`` as it ships.
Run it on an idle machine: beside another program on the same cores, most rows take two to three times as long.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compress.graph.operators import Operator
from compress.profiling.latency import predict
from compress.serial import write_json
from compress.targets import load
from compress.types import FLOAT32, Precision, Target

RESULTS = Path(__file__).parent / "results" / "cpu_target.json"
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


def row(chain: Chain, label: str, target: Target) -> dict[str, Any]:
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


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    target, load_average = load("cpu"), os.getloadavg()[0]
    rows = [row(chain, label, target) for chain in CHAINS for label in FORMATS]
    for entry in rows:
        print(
            "  ".join(f"{entry[key]!s:>{width}}" for key, width in zip(entry, (46, 6, 8, 8, 6, 7, 7, 8), strict=True))
        )
    document = {
        "benchmark": "cpu_target",
        "command": "python -m benchmarks.cpu_target",
        "date": datetime.date.today().isoformat(),
        "load_average_before": load_average,
        "machine": {
            "cpu": processor(),
            "cores": os.cpu_count(),
            "gpu": None,
            "os": f"{platform.system()} {platform.machine()}",
        },
        "versions": {name: importlib.metadata.version(name) for name in ("onnxruntime", "onnx", "numpy")}
        | {"python": platform.python_version()},
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, document)


if __name__ == "__main__":
    main()
