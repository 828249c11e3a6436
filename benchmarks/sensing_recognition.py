"""Recognition straight from binary measurements, without reconstruction: MNIST and CIFAR-10 at 1, 4, 10 and 25%.

The whole field is measured at once, each colour with the same patterns. The patterns start in closed form and are
trained with the network behind them; the expansion of the measurements to the network's input starts as the linear
estimate of the image. Beside each ratio the same network on the images themselves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks import common, reconstruction

WANTED_MNIST_PERCENT, WANTED_RATIO = 97.0, 0.04
RATIOS: tuple[float | None, ...] = (*reconstruction.RATIOS, None)
"""None is the images."""

PATTERN_RATE = 0.3
"""Of the patterns' latent weights, as a factor of the learning rate."""


@dataclass(frozen=True)
class Task:
    """A data set and how its network is trained."""

    data: str
    title: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, int, int]
    recipe: dict[str, Any]


TASKS = {
    "mnist": Task(
        "mnist",
        "MNIST",
        (0.1307,),
        (0.3081,),
        (1, 28, 28),
        {"epochs": 6, "lr": 2e-3, "batch_size": 128, "optimizer": "adamw", "averaged": 0.1},
    ),
    "cifar10": Task(
        "cifar10",
        "CIFAR-10",
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        (3, 32, 32),
        {"epochs": 15, "lr": 2e-3, "batch_size": 128, "optimizer": "adamw", "averaged": 0.1},
    ),
}
CLOSED_FORM_IMAGES = 5000
"""Training images that the closed form sees."""


def network_of(task: Task) -> Any:
    """A small network for images of the task, with the weights that the seed gives."""
    import torch
    from torch import nn

    from compress.networks.mlperf_tiny import resnet8

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(reconstruction.SEED)
        if task.shape[0] == 3:
            return resnet8()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def case_names() -> list[str]:
    return [f"{name} {'images' if ratio is None else f'{ratio:g}'}" for name in TASKS for ratio in RATIOS]


def made(case: str) -> list[common.Row]:
    """The row of one data set and ratio."""
    name, _, ratio_text = case.partition(" ")
    task = TASKS[name]
    if name == "cifar10":
        with common.cifar10() as folder:
            return [measured(task, f"cifar10:{folder}", ratio_text)]
    return [measured(task, f"mnist:{common.data_dir()}/mnist", ratio_text)]


def measured(task: Task, spec: str, ratio_text: str) -> common.Row:
    """Train and count what is right."""
    import torch

    from compress import data as datasets
    from compress.quantize.binary import ADAM_EPSILON
    from compress.quantize.sensed import sensed
    from compress.quantize.sensing_start import start
    from compress.training import Recipe, evaluate, fit

    data = datasets.load(spec, input_shape=task.shape, mean=task.mean, std=task.std)
    network, sensing = network_of(task), None
    generator = torch.Generator().manual_seed(reconstruction.SEED)
    begun = time.perf_counter()
    if ratio_text != "images":
        network = sensed(network, torch.zeros(2, *task.shape), float(ratio_text), mean=task.mean, std=task.std)
        sensing = network.sensing
        some = data.train.inputs(CLOSED_FORM_IMAGES, torch.Generator().manual_seed(reconstruction.SEED))
        start(sensing, [some])
        sensing.learn()
    fit(
        network,
        data.train,
        Recipe(**task.recipe, epsilon=ADAM_EPSILON),
        generator=generator,
        augment=data.augment,
        rates=lambda name: PATTERN_RATE if name.startswith("sensing.learning") else 1.0,
        progress=lambda message: print(message, flush=True),
    )
    seconds = time.perf_counter() - begun
    if sensing is not None:
        sensing.fix()
    right, n = evaluate(network, data.evaluate)
    patterns = 0 if sensing is None else sensing.weight.numel()
    return {
        "data": task.title,
        "ratio": None if sensing is None else sensing.ratio,
        "measurements_of_values": None if sensing is None else f"{sensing.measurements} of {sensing.pixels}",
        "binary": sensing is not None,
        "accuracy_percent": round(100 * right / n, 2),
        "parameters": sum(p.numel() for p in network.parameters()) - patterns,
        "pattern_bits": patterns,
        "train_seconds": round(seconds, 1),
        "device": reconstruction.device(),
    }


def measure() -> list[common.Row]:
    """One row a data set and ratio."""
    return reconstruction.each_case("sensing_recognition", case_names(), made)


def section(document: Mapping[str, Any]) -> str:
    """The target, and the table."""
    rows = document["rows"]
    found = next((r for r in rows if r["data"] == TASKS["mnist"].title and r["ratio"] == WANTED_RATIO), None)
    text = (
        "Top-1 on the 10,000 test images of each, one seed. Measurements are of the whole field, each colour's with "
        "the same patterns; the last row of each is the same network on the images.\n\n"
    )
    if found is not None:
        kept = found["accuracy_percent"] >= WANTED_MNIST_PERCENT
        text += (
            f"- MNIST from {100 * WANTED_RATIO:g}%: {found['accuracy_percent']:.2f}%; target {WANTED_MNIST_PERCENT:g}: "
            f"{'kept' if kept else 'missed'}\n\n"
        )
    header = ["data", "ratio", "measurements", "accuracy, %", "parameters", "training, s"]
    return text + common.markdown_table(
        header,
        [
            [
                row["data"],
                "images" if row["ratio"] is None else f"{100 * row['ratio']:g}%",
                row["measurements_of_values"] or "all",
                common.shown(row["accuracy_percent"], 2),
                common.shown(row["parameters"]),
                common.shown(row["train_seconds"], 0),
            ]
            for row in rows
        ],
        text_columns=3,
    )


BENCHMARK = common.Benchmark(
    name="sensing_recognition",
    title="Recognition from binary measurements without reconstruction, MNIST and CIFAR-10",
    needs=(common.data("mnist", "MNIST"), common.data("cifar10", "CIFAR-10")),
    packages=("torch", "numpy", "scipy"),
    measure=measure,
    section=section,
    minutes=60,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
