"""CIFAR-10 networks in mixed precision without training, from 8 average weight bits down to 2, beside peers.

Ours is the exported file in ONNX Runtime. Two peers, Sony's Model Compression Toolkit and NVIDIA's TensorRT Model
Optimizer, export no weights below 8 bits that ONNX Runtime would run, so theirs is the accuracy of their simulations.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common, quantizers

NETWORKS = ("resnet20", "resnet56")
BITS = (8.0, 4.0, 3.0, 2.24, 2.0)
WIDTHS = (1, 2, 3, 4, 8)
IMAGES = 1024
PROMISED_PERCENT = {
    ("resnet20", 4.0): 91.6,
    ("resnet20", 3.0): 91.35,
    ("resnet20", 2.24): 90.2,
    ("resnet20", 2.0): 89.5,
    ("resnet56", 4.0): 93.3,
    ("resnet56", 3.0): 93.1,
    ("resnet56", 2.24): 92.3,
}
SECONDS = 120
PEER_BITS = {quantizers.MCT: (8.0, 4.0, 3.0, 2.24), quantizers.MODELOPT: (8.0, 4.0, 3.0, 2.0)}
"""What each peer is asked for; NNCF, which has 8 bits alone, for that."""
PEERS = {
    quantizers.MCT: "Model Compression Toolkit mixes 2, 4 and 8 bits, and is measured in its simulation.",
    quantizers.MODELOPT: (
        "TensorRT Model Optimizer has no integer widths to mix, gets one for all layers, and is measured in its "
        "simulation."
    ),
    quantizers.NNCF: "NNCF has 8 bits, and is measured on its file in ONNX Runtime.",
}
OURS, PLAIN = "compress, hessian", "compress, layer-error"


def device(activation_bits: int = 8) -> Any:
    """The `cpu` target with integer kernels for every width of weights, as ONNX Runtime widens them at load.

    Activations below 8 bits lie in 8, clipped to a smaller grid, so every width runs there too.
    """
    from compress import targets
    from compress.types import Precision

    target = targets.load("cpu")
    rate = next(rate for rate in target.macs_per_s if rate.precision == Precision(8, 8, "integer"))
    precisions = [Precision(bits, activation_bits, "integer") for bits in WIDTHS]
    return replace(target, macs_per_s=tuple(replace(rate, precision=precision) for precision in precisions))


def ours(model: Any, images: Any, data: Any, bits: float, method: str, folder: Path) -> common.Row:
    """One exported file."""
    from compress.export import onnx as interchange
    from compress.profiling import evaluate
    from compress.quantize import quantize

    start = time.perf_counter()
    made = quantize(model, images, weight_bits=bits, target=device(), method=method)
    seconds = time.perf_counter() - start
    path = folder / "model.onnx"
    interchange.export(made.state, images[:2], path)
    found = evaluate.accuracy(path, data)
    widths = [layer.precision.weight_bits for layer in made.plan.layers]
    return {
        "average_bits": round(made.report.after.weight_bits, 4),
        "layers_of_1_2_3_4_8_bits": " ".join(str(widths.count(width)) for width in WIDTHS),
        "accuracy_percent": round(found.value, 2),
        "file_bytes": path.stat().st_size,
        "seconds": round(seconds, 1),
    }


def peer(model: Any, images: Any, data: Any, bits: float, name: str) -> common.Row:
    """A peer's simulation under the same average."""
    from compress.training import evaluate

    start = time.perf_counter()
    made, failed = quantizers.tried(
        lambda: (
            quantizers.mct(model, images, bits)
            if name == quantizers.MCT
            else quantizers.modelopt(model, images, round(bits))
        )
    )
    seconds = time.perf_counter() - start
    if failed is not None:
        print(f"{name} at {bits:g} bits: {failed}", flush=True)
    right, n = evaluate(made, data.evaluate) if failed is None else (0, 1)
    return {
        "average_bits": None,
        "layers_of_1_2_3_4_8_bits": None,
        "accuracy_percent": round(100 * right / n, 2) if failed is None else None,
        "file_bytes": None,
        "seconds": round(seconds, 1),
    }


def nncf(model: Any, images: Any, data: Any, bits: float, folder: Path) -> common.Row:
    """NNCF's 8-bit file."""
    from compress.export import onnx as interchange
    from compress.profiling import evaluate
    from compress.types import State

    interchange.export(State(model), images[:2], folder / "float.onnx")
    start = time.perf_counter()
    _, failed = quantizers.tried(lambda: quantizers.nncf(folder / "float.onnx", folder / "nncf.onnx", images))
    seconds = time.perf_counter() - start
    if failed is not None:
        print(f"{quantizers.NNCF}: {failed}", flush=True)
    return {
        "average_bits": bits,
        "layers_of_1_2_3_4_8_bits": None,
        "accuracy_percent": None if failed else round(evaluate.accuracy(folder / "nncf.onnx", data).value, 2),
        "file_bytes": None if failed else (folder / "nncf.onnx").stat().st_size,
        "seconds": round(seconds, 1),
    }


def measure() -> list[common.Row]:
    import torch

    from compress import data, models
    from compress.training import evaluate

    missing = {name: quantizers.missing(name) for name in (quantizers.MCT, quantizers.MODELOPT, quantizers.NNCF)}
    rows: list[common.Row] = []
    with common.cifar10() as cifar10, tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            weights = next((common.data_dir() or Path()).glob(f"weights/cifar10-akamaster/{name}-*.th"))
            loaded = models.load(name, weights=str(weights))
            dataset = data.load(f"cifar10:{cifar10}", mean=loaded.mean, std=loaded.std)
            images = dataset.train.inputs(IMAGES, torch.Generator().manual_seed(0))
            right, n = evaluate(loaded.model, dataset.evaluate)
            rows.append(
                {
                    "network": name,
                    "made_by": "float",
                    "bits": 32.0,
                    "average_bits": None,
                    "layers_of_1_2_3_4_8_bits": None,
                    "accuracy_percent": 100 * right / n,
                    "file_bytes": None,
                    "seconds": None,
                }
            )
            print(rows[-1], flush=True)
            for bits in BITS:
                made: list[tuple[str, Any]] = [
                    (OURS, partial(ours, method="hessian", folder=Path(folder))),
                    (PLAIN, partial(ours, method="layer-error", folder=Path(folder))),
                ]
                made += [
                    (who, partial(peer, name=who))
                    for who, widths in PEER_BITS.items()
                    if bits in widths and missing[who] is None
                ]
                if bits == 8 and missing[quantizers.NNCF] is None:
                    made.append((quantizers.NNCF, partial(nncf, folder=Path(folder))))
                for maker, make in made:
                    rows.append(
                        {"network": name, "made_by": maker, "bits": bits, **make(loaded.model, images, dataset, bits)}
                    )
                    print(rows[-1], flush=True)
    for who, why in missing.items():
        if why is not None:
            print(f"{who} was left out: {why}", flush=True)
    return rows


def section(document: Mapping[str, Any]) -> str:
    """Targets, and a table a network."""
    rows = document["rows"]
    there = {row["made_by"] for row in rows}
    peers = [words for name, words in PEERS.items() if name in there]
    parts = [
        "Without training, 1,024 unlabelled training images, 8-bit activations; average over all layers' weights, "
        "first and last included. Accuracy on the 10,000 test images, ours that of the file in ONNX Runtime. The 95% "
        "interval of one accuracy is about half a point either way. "
        f"Widths to choose from: {', '.join(map(str, WIDTHS))}. {' '.join(peers)} "
        "ONNX packs integers in 2, 4 or 8 bits, so weights of 3 bits take 4 in the file, and those of 1 bit take 2.\n\n"
    ]
    said = []
    for (name, bits), promised in PROMISED_PERCENT.items():
        row = next(r for r in rows if (r["network"], r["bits"], r["made_by"]) == (name, bits, OURS))
        kept = row["accuracy_percent"] >= promised and row["seconds"] <= SECONDS
        said.append(
            f"- {name}, {bits:g} bits: {row['accuracy_percent']:.2f}% in {row['seconds']:.0f} s; target {promised:g}% "
            f"within {SECONDS} s: {'kept' if kept else 'missed'}"
        )
    parts.append("\n".join(said) + "\n\n")
    header = ["network", "made by", "asked, bits", "average bits", "accuracy, %", "file, KiB", "seconds"]
    parts.append(
        common.markdown_table(
            header,
            [
                [
                    row["network"],
                    row["made_by"],
                    common.shown(row["bits"], 2),
                    common.shown(row["average_bits"], 2) if row.get("average_bits") else "—",
                    common.shown(row["accuracy_percent"], 2),
                    common.shown(row["file_bytes"] / 1024, 1) if row.get("file_bytes") else "—",
                    common.shown(row["seconds"], 0) if row.get("seconds") else "—",
                ]
                for row in rows
            ],
            text_columns=2,
        )
    )
    return "".join(parts)


BENCHMARK = common.Benchmark(
    name="mixed_precision",
    title="ResNet-20 and -56 on CIFAR-10 in mixed precision, 8 to 2 average weight bits, without training",
    needs=(
        common.data("cifar10", "CIFAR-10"),
        common.data("weights/cifar10-akamaster", "akamaster's ResNet-20 and ResNet-56"),
    ),
    packages=("torch", "onnx", "onnxruntime", "numpy", *quantizers.PACKAGES),
    measure=measure,
    section=section,
    minutes=35,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
