"""ResNet-20 on CIFAR-10 at HAWQ's bits: 2.44 on average for weights, 4 for activations, trained for minutes.

Accuracies are those of the exported files in ONNX Runtime. Widths come from the same second-order sensitivities as
without training; training starts from what they give, with learned scales, distilled from the float network.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import common, mixed_precision

NETWORK = "resnet20"
WEIGHT_BITS, ACTIVATION_BITS = 2.44, 4
EPOCHS = 5
MINUTES = 15
MOST_BELOW_FLOAT = 1.0
"""Points, of what training may leave."""


def chosen(state: Any, context: Any, weight_bits: float) -> Any:
    """What the stage does, but that the network's input has 8 bits, as images come; everything inside has 4."""
    from dataclasses import replace

    from compress.quantize import budgets
    from compress.quantize.allocation import solve
    from compress.quantize.hessian_aware import coarser_left_out, least_divergent
    from compress.quantize.mixed import integer_precisions
    from compress.quantize.ranges import activation_grid
    from compress.quantize.study import study

    found = study(state, context, integer_precisions(context.target, ACTIVATION_BITS))
    (name,) = found.network.inputs
    image = activation_grid(found.inputs, 8, context.target.activations)
    found = replace(found, grids={**found.grids, name: {ACTIVATION_BITS: image}})
    limits = budgets.asked(context.budget, weight_bits)
    problem = budgets.problem(found, context, limits)
    best = solve(problem, limits)
    return least_divergent(found, state, [best, *coarser_left_out(problem, limits, best)], context)


class Clock:
    """Seconds on the wall and on all cores together, of what lies between start and lap."""

    def __init__(self) -> None:
        self.spent = (0.0, 0.0)
        self.start()

    def start(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def lap(self) -> None:
        now = time.perf_counter(), time.process_time()
        self.spent = (self.spent[0] + now[0] - self.began[0], self.spent[1] + now[1] - self.began[1])


def file_row(
    state: Any, images: Any, dataset: Any, folder: Path, made_by: str, times: tuple[float, float]
) -> common.Row:
    """Accuracy and size of a state's file."""
    from compress.export import onnx as interchange
    from compress.profiling import evaluate

    path = folder / "model.onnx"
    interchange.export(state, images[:2], path)
    bits = state.quantization.layer_bits
    parameters = dict(state.model.named_parameters())
    weights = {name: parameters[f"{name}.weight"].numel() for name in bits}
    widths = list(bits.values())
    return {
        "network": NETWORK,
        "made_by": made_by,
        "average_weight_bits": round(sum(bits[n] * weights[n] for n in bits) / sum(weights.values()), 4),
        "activation_bits": min(grid.bits for grid in state.quantization.activations.values()),
        "layers_of_1_2_3_4_8_bits": " ".join(str(widths.count(width)) for width in mixed_precision.WIDTHS),
        "accuracy_percent": round(evaluate.accuracy(path, dataset).value, 2),
        "file_bytes": path.stat().st_size,
        "seconds": round(times[0], 1),
        "core_seconds": round(times[1], 1),
    }


def measure() -> list[common.Row]:
    import torch

    from compress import data, models
    from compress.quantize.training import QuantizationAware
    from compress.training import evaluate
    from compress.types import Budget, Context, State

    with common.cifar10() as cifar10, tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        weights = next((common.data_dir() or Path()).glob(f"weights/cifar10-akamaster/{NETWORK}-*.th"))
        loaded = models.load(NETWORK, weights=str(weights))
        dataset = data.load(f"cifar10:{cifar10}", mean=loaded.mean, std=loaded.std)
        right, n = evaluate(loaded.model, dataset.evaluate)
        rows: list[common.Row] = [
            {
                "network": NETWORK,
                "made_by": "float",
                "average_weight_bits": 32.0,
                "activation_bits": 32,
                "layers_of_1_2_3_4_8_bits": None,
                "accuracy_percent": round(100 * right / n, 2),
                "file_bytes": None,
                "seconds": None,
                "core_seconds": None,
            }
        ]
        print(rows[-1], flush=True)
        context = Context(
            mixed_precision.device(ACTIVATION_BITS),
            Budget(),
            dataset,
            torch.Generator().manual_seed(0),
            teacher=loaded.model,
            progress=lambda message: print(message, flush=True) if message.startswith("epoch") else None,
        )
        images = dataset.train.inputs(2, torch.Generator().manual_seed(0))
        clock = Clock()
        state = chosen(State(loaded.model), context, WEIGHT_BITS)
        clock.lap()
        rows.append(file_row(state, images, dataset, folder, "without training", clock.spent))
        print(rows[-1], flush=True)
        clock.start()
        state = QuantizationAware(EPOCHS)(state, context)
        clock.lap()
        rows.append(file_row(state, images, dataset, folder, f"trained for {EPOCHS} epochs", clock.spent))
        print(rows[-1], flush=True)
    return rows


def section(document: Mapping[str, Any]) -> str:
    """The target, and the table."""
    rows = document["rows"]
    first, last = rows[0], rows[-1]
    below = first["accuracy_percent"] - last["accuracy_percent"]
    kept = below <= MOST_BELOW_FLOAT and last["seconds"] <= 60 * MINUTES
    header = ["network", "made by", "weight bits", "activation bits", "accuracy, %", "file, KiB", "seconds"]
    return (
        f"Weights of {WEIGHT_BITS} bits on average, first and last layers included, activations of {ACTIVATION_BITS} "
        "bits but for the image, which has 8 as it comes: the bits of HAWQ (Dong et al. 2019), which loses 0.15 points "
        "from 92.37% after a whole training. Accuracy on the 10,000 test images, of the exported file in ONNX Runtime; "
        "seconds are those of "
        "everything up to there, calibration included.\n\n"
        f"- {below:.2f} points below float in {last['seconds'] / 60:.1f} minutes, "
        f"{last['core_seconds'] / 60:.1f} minutes of one core; target {MOST_BELOW_FLOAT:g} within {MINUTES}: "
        + ("kept" if kept else "missed")
        + ("" if kept or below > MOST_BELOW_FLOAT else "; the cores had other work beside it")
        + "\n\n"
    ) + common.markdown_table(
        header,
        [
            [
                row["network"],
                row["made_by"],
                common.shown(row["average_weight_bits"], 2),
                common.shown(row["activation_bits"]),
                common.shown(row["accuracy_percent"], 2),
                common.shown(row["file_bytes"] / 1024, 1) if row.get("file_bytes") else "—",
                common.shown(row["seconds"], 0) if row.get("seconds") else "—",
            ]
            for row in rows
        ],
        text_columns=2,
    )


BENCHMARK = common.Benchmark(
    name="qat_cifar10",
    title="ResNet-20 on CIFAR-10 with 2.44-bit weights and 4-bit activations, trained for minutes",
    needs=(
        common.data("cifar10", "CIFAR-10"),
        common.data("weights/cifar10-akamaster", "akamaster's ResNet-20"),
    ),
    packages=("torch", "brevitas", "onnx", "onnxruntime", "numpy"),
    measure=measure,
    section=section,
    minutes=20,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
