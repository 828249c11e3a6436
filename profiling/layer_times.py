"""Times by layer, measured here: ONNX Runtime's own clock, node by node, put together by layer.

The runtime fuses, renames and adds nodes, so an event is followed back to the file's node that it computes and from
there to the layer whose weights that reads; what has no weights goes by its kind and its place in the order. What the
runtime adds (quantizing, reordering) is counted apart. Its clock ticks in microseconds, so a time is a mean over runs.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.explanation import LayerTimes, LayerWork
from compress.export.onnx_view import View
from compress.profiling import session

RUNS, LEAST, SECONDS = 400, 20, 1.0
"""So many runs at most, at least so many, and no more than about so many seconds."""
WARM_UP = 10
KEPT = 0.8
"""The fastest share of the runs is what a time is the mean of: the rest was interrupted."""
NOISY = 1.5
"""A 90th percentile of whole runs this many times their median says that the machine was busy."""
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
KINDS: Mapping[str, tuple[str, ...]] = {
    "Add": ("add",),
    "Sub": ("sub",),
    "Mul": ("mul",),
    "Div": ("div",),
    "Relu": ("relu",),
    "LeakyRelu": ("leaky_relu",),
    "Clip": ("relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"),
    "Sigmoid": ("sigmoid",),
    "HardSigmoid": ("hardsigmoid",),
    "HardSwish": ("hardswish",),
    "Gelu": ("gelu",),
    "Softmax": ("softmax", "_softmax"),
    "LayerNormalization": ("layer_norm",),
    "BatchNormalization": ("batch_norm",),
    "MaxPool": ("max_pool2d",),
    "AveragePool": ("avg_pool2d",),
    "GlobalAveragePool": ("mean", "adaptive_avg_pool2d"),
    "ReduceMean": ("mean", "adaptive_avg_pool2d"),
    "Concat": ("cat",),
    "MatMul": ("matmul", "bmm", "mm"),
}
"""ONNX's operator -> the traced kinds that become it."""


@dataclass(frozen=True, slots=True)
class NodeTime:
    """One node as the runtime ran it: its name and operator there, and the mean seconds of a run."""

    name: str
    operator: str
    seconds: float


def measure(path: Path, x: npt.NDArray[np.float32], layers: Sequence[LayerWork]) -> tuple[dict[str, float], LayerTimes]:
    """Seconds of each layer, by its operator, and what they are worth.

    Args:
        path: the ONNX file.
        x: one input, float32 (1, ...).
        layers: what the network consists of, in the order of execution. One of which no node was found has no entry:
            the runtime computes it with another.

    Raises:
        BadInput: the runtime can't load the file.
    """
    nodes, runs, noisy = times(path, x)
    found, rest = attributed(nodes, path, layers)
    names: dict[str, float] = {}
    for node in rest:
        names[node.operator] = names.get(node.operator, 0.0) + node.seconds
    said = tuple(sorted(names, key=lambda name: (-names[name], name)))
    total = sum(node.seconds for node in rest)
    return found, LayerTimes(session.machine(), "onnxruntime", runs, total, said, noisy)


def with_times(
    layers: Sequence[LayerWork], now: Mapping[str, float], before: Mapping[str, float]
) -> tuple[LayerWork, ...]:
    """The layers with their measured times, by operator; ``before`` are those of the float network, by layer's name.

    A layer that the runtime computes with another takes no time of its own.
    """
    return tuple(
        replace(layer, measured_s=now.get(layer.operator, 0.0), measured_before_s=before.get(layer.name))
        for layer in layers
    )


def times(path: Path, x: npt.NDArray[np.float32]) -> tuple[tuple[NodeTime, ...], int, bool]:
    """Every node's time, over how many runs, and whether the machine was busy meanwhile.

    Raises:
        BadInput: the runtime can't load the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        opened = session.open_session(path, profile=Path(folder))
        run = session.runner(opened)
        start, runs = time.perf_counter(), 0
        while runs < WARM_UP + LEAST or (runs < WARM_UP + RUNS and time.perf_counter() - start < SECONDS):
            run(x)
            runs += 1
        events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
    seconds: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"].removesuffix("_kernel_time"), str(event["args"]["op_name"])
            seconds.setdefault(key, []).append(1e-6 * float(event["dur"]))
    # Nodes of one name run several times in a run.
    warm = {key: np.reshape(values, (runs, -1)).sum(1)[WARM_UP:] for key, values in seconds.items()}
    nodes = tuple(NodeTime(name, operator, _mean(values)) for (name, operator), values in warm.items())
    totals = np.sum(list(warm.values()), axis=0)
    noisy = bool(warm) and float(np.percentile(totals, 90)) > NOISY * float(np.median(totals))
    return nodes, runs - WARM_UP, noisy


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(np.mean(np.sort(values)[: max(1, round(KEPT * len(values)))]))


def attributed(
    nodes: Sequence[NodeTime], path: Path, layers: Sequence[LayerWork]
) -> tuple[dict[str, float], tuple[NodeTime, ...]]:
    """Seconds of each layer by its operator, and the nodes that belong to none."""
    import onnx

    view = View.of(onnx.load(path))
    by_name = {node.name: node for node in view.model.graph.node}
    order = {node.name: place for place, node in enumerate(view.model.graph.node)}
    weighted = {layer.name: layer.operator for layer in layers if layer.out_channels}
    rest: list[NodeTime] = []
    found: dict[str, float] = {}
    unnamed: dict[tuple[str, ...], list[tuple[int, NodeTime]]] = {}
    for node in nodes:
        plain = re.sub(r"(_nchwc|_token_\d+)+$", "", node.name)
        operator = re.sub(r"^(QLinear|FusedMatMul|Fused|Q)(?=[A-Z])", "", node.operator)
        source = by_name.get(plain, view.producers.get(plain))
        layer = _layer(view, source, operator)
        if layer in weighted:
            found[weighted[layer]] = found.get(weighted[layer], 0.0) + node.seconds
        elif operator in KINDS:
            place = order.get(source.name, len(order)) if source is not None else len(order)
            unnamed.setdefault(KINDS[operator], []).append((place, node))
        else:
            rest.append(node)
    for kinds, those in unnamed.items():
        of_kind = [layer.operator for layer in layers if layer.kind in kinds]
        if len(of_kind) != len(those):
            rest += [node for _, node in those]  # some are fused, so that the order says nothing
            continue
        those.sort(key=lambda each: each[0])
        found |= {operator: node.seconds for operator, (_, node) in zip(of_kind, those, strict=True)}
    return found, tuple(rest)


def _layer(view: View, node: Any, operator: str) -> str | None:
    """The module path of the layer whose weights a node's kernel reads: its own, or those of what is fused in front."""
    if operator not in WEIGHTED:
        return None
    while node is not None and node.op_type not in WEIGHTED:
        node = view.producers.get(node.input[0]) if node.input else None
    if node is None or len(node.input) < 2:
        return None
    name = str(node.input[1])
    for _ in range(4):  # through DequantizeLinear, Transpose and Cast to the weights
        maker = view.producers.get(name)
        if name in view.initializers or maker is None or not maker.input:
            break
        name = str(maker.input[0])
    return re.sub(r"\.weight(_quantized(_int\d+)?)?$", "", name) if ".weight" in name else None


__all__ = ["NodeTime", "attributed", "measure", "times", "with_times"]
