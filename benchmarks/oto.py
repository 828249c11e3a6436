"""Pruning while training beside magnitude pruning and fine-tuning, at the same MACs and the same number of epochs.

ResNet-20 on the shipped digits, from scratch. While training: one run that prunes. Magnitude: half of the epochs dense,
then pruning and the other half with a learning-rate cycle of its own. Dense: the same epochs without pruning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import compress
from benchmarks import common
from compress import data
from compress.networks.cifar_resnet import resnet20
from compress.prune import prune
from compress.training import Recipe, evaluate, learning_rate

EPOCHS, BATCH, RATE = 4, 64, 0.05
SHARES = (0.5, 0.25)
SEEDS = (0, 1)


def train(
    model: nn.Module, digits: data.Data, epochs: int, seed: int, step: Callable[[torch.optim.Optimizer], None]
) -> None:
    """Train ``model`` in place; ``step`` is called on the optimizer where its own step would be."""
    optimizer = optimizer_of(model)
    generator = torch.Generator().manual_seed(seed)
    steps, number = steps_of(digits, epochs), 0
    model.train()
    for _ in range(epochs):
        for images, labels in digits.train.batches(BATCH, generator):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(Recipe(lr=RATE), number, steps)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            step(optimizer)
            number += 1


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)


def steps_of(digits: data.Data, epochs: int) -> int:
    return epochs * -(-digits.train.n // BATCH)


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return resnet20(in_channels=1)


def dense(digits: data.Data, seed: int, share: float) -> tuple[nn.Module, float]:
    model = network(seed)
    train(model, digits, EPOCHS, seed, lambda optimizer: optimizer.step())
    return model, 1.0


def magnitude(digits: data.Data, seed: int, share: float) -> tuple[nn.Module, float]:
    model = network(seed)
    train(model, digits, EPOCHS // 2, seed, lambda optimizer: optimizer.step())
    result = prune(model, torch.zeros(1, 1, 32, 32), macs=share, method="norm", data=digits)
    train(result.model, digits, EPOCHS - EPOCHS // 2, seed, lambda optimizer: optimizer.step())
    return result.model, result.report.after.macs / result.report.before.macs


def while_training(digits: data.Data, seed: int, share: float) -> tuple[nn.Module, float]:
    model = network(seed)
    optimizer, generator = optimizer_of(model), torch.Generator().manual_seed(seed)
    steps = steps_of(digits, EPOCHS)
    model.train()
    with compress.attach(model, optimizer, macs=share, steps=steps, seed=seed) as session:
        for _ in range(EPOCHS):
            for images, labels in digits.train.batches(BATCH, generator):
                optimizer.param_groups[0]["lr"] = learning_rate(Recipe(lr=RATE), session.steps, steps)
                session.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                session.step()
    result = session.result()
    return result.model, result.report.after.macs / result.report.before.macs


METHODS = {"dense": dense, "magnitude, then fine-tuning": magnitude, "while training (OTOv2)": while_training}


def measure() -> list[common.Row]:
    digits = data.load("digits", mean=(0.5,), std=(0.5,))
    rows: list[common.Row] = []
    for name, method in METHODS.items():
        for share in SHARES if method is not dense else (1.0,):
            start = time.perf_counter()
            found, kept = [], 1.0
            for seed in SEEDS:
                model, kept = method(digits, seed, share)
                right, n = evaluate(model, digits.evaluate)
                found.append(100 * right / n)
            rows.append(
                {
                    "method": name,
                    "macs_percent": round(100 * kept, 1),
                    "accuracy_percent": round(sum(found) / len(found), 2),
                    "lowest_accuracy_percent": round(min(found), 2),
                    "highest_accuracy_percent": round(max(found), 2),
                    "runs": len(found),
                    "run_seconds": round((time.perf_counter() - start) / len(found), 1),
                }
            )
    return rows


def section(document: Mapping[str, Any]) -> str:
    rows = document["rows"]
    keys = ("macs_percent", "accuracy_percent", "lowest_accuracy_percent", "highest_accuracy_percent", "run_seconds")
    table = common.markdown_table(
        ["", "MACs kept, %", "accuracy, % (mean)", "lowest", "highest", "seconds a run"],
        [[row["method"], *(common.shown(row[key], 1) for key in keys)] for row in rows],
    )
    return (
        f"ResNet-20 on the shipped digits, from scratch, {EPOCHS} epochs in each case: pruned while it trains "
        "(`compress.attach`); or trained for half of them, pruned by magnitude and fine-tuned for the other half; or "
        f"not pruned. Mean of {rows[0]['runs']} seeds; 500 images decide, so that differences below a point "
        f"mean little.\n\n{table}"
    )


BENCHMARK = common.Benchmark(
    name="oto",
    title="pruning while training beside magnitude pruning and fine-tuning",
    needs=(),
    packages=("torch", "numpy"),
    measure=measure,
    section=section,
    minutes=10,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
