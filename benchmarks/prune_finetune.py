"""ResNet-56 on CIFAR-10 pruned to 2.1 times fewer MACs and fine-tuned for two epochs: ours beside Torch-Pruning.

Every pruned network gets the same fine-tuning as the product gives: all training images, flipped and cropped at random,
distilled from the network that was pruned.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import common, prune_cifar10, pruned, pruners

NETWORK = "resnet56"
FACTOR = 2.1
EPOCHS = 2
TARGET_PERCENT = 92.6
Recipes = Callable[[Any, pruners.Subject], Any]
"""A pruned network and what it was pruned from -> a :class:`compress.training.Recipe`."""


def using() -> list[pruners.Pruner]:
    """Ours, and the peer's best without training: all channels in one ranking and new batch-norm statistics."""
    ranked = pruners.GLOBAL
    peer = pruners.torch_pruning(ranked, anew=True)
    return [
        pruners.Pruner(pruners.OURS, "", pruners.ours("reconstruct")),
        pruners.Pruner(pruners.PEER, f"{ranked}, {pruners.ANEW}", peer, "inside the blocks"),
    ]


def rows(
    subject: pruners.Subject,
    factor: float,
    recipe: Recipes,
    using: Sequence[pruners.Pruner],
    device: str = "cpu",
) -> list[common.Row]:
    """One row a pruner: accuracy in ONNX Runtime right after pruning and after the recipe.

    Args:
        subject: what to prune and train on.
        factor: how many times fewer multiply-accumulates.
        recipe: what a pruned network of the subject is trained with.
        using: the pruners.
        device: where to train.
    """
    import copy

    import torch

    from compress.training import fit

    found: list[common.Row] = []
    with tempfile.TemporaryDirectory() as folder, pruners.pruning_threads():
        whole = pruners.accuracy(subject.model, subject, Path(folder) / "whole.onnx")
        for number, pruner in enumerate(using):
            start = time.perf_counter()
            model = copy.deepcopy(pruner.prune(subject, 1 / factor))
            prune_s = time.perf_counter() - start
            before = pruners.accuracy(model, subject, Path(folder) / f"{number}-pruned.onnx")
            asked = recipe(model, subject)
            start = time.perf_counter()
            fit(
                model,
                subject.data.train,
                asked,
                generator=torch.Generator().manual_seed(0),
                device=device,
                teacher=subject.model,
                augment=subject.data.augment,
            )
            tuned_s = time.perf_counter() - start
            model = model.cpu().eval()
            after = pruners.accuracy(model, subject, Path(folder) / f"{number}-tuned.onnx")
            count = pruners.macs(model, subject.images[:1])
            print(f"{pruner.label}: {before.value:.2f}%, tuned {after.value:.2f}%", flush=True)
            found.append(
                {
                    "network": subject.name,
                    "pruner": pruner.name,
                    "amounts": pruner.amounts or None,
                    "scope": pruner.scope,
                    "macs_original_over_asked": factor,
                    "macs_original_over_pruned": round(pruners.macs(subject.model, subject.images[:1]) / count, 3),
                    "macs": count,
                    "parameters": sum(parameter.numel() for parameter in model.parameters()),
                    "accuracy_original_percent": round(whole.value, 2),
                    "accuracy_pruned_percent": round(before.value, 2),
                    "accuracy_tuned_percent": round(after.value, 2),
                    "accuracy_tuned_low_percent": round(after.low, 2),
                    "accuracy_tuned_high_percent": round(after.high, 2),
                    "test_images": after.n,
                    "calibration_images": len(subject.images),
                    "training_images": subject.data.train.n,
                    "epochs": asked.epochs,
                    "highest_learning_rate": round(asked.lr, 5),
                    "device": device,
                    "prune_seconds": round(prune_s, 1),
                    "tune_seconds": round(tuned_s, 1),
                }
            )
    return found


def product(model: Any, subject: pruners.Subject) -> Any:
    """What :class:`compress.prune.finetune.FineTune` trains with."""
    from compress import lessons
    from compress.prune import finetune

    return finetune.recipe(EPOCHS, subject.data.train.n, model, subject.model, subject.images[: lessons.COMPARED])


def measure() -> list[common.Row]:
    with common.cifar10() as cifar10:
        subject = prune_cifar10.subject(NETWORK, cifar10)
    return rows(subject, FACTOR, product, using())


def section(document: Mapping[str, Any]) -> str:
    return words(document["rows"], TARGET_PERCENT)


def words(found: Sequence[Mapping[str, Any]], target: float) -> str:
    """Whether the target was kept, and the table."""
    first = found[0]
    ours = pruned.find(found, pruner=pruners.OURS)
    value = ours["accuracy_tuned_percent"]
    on = {"cpu": f"on {pruners.PRUNING_THREADS} threads", "cuda": "on a GPU"}[first["device"]]
    text = (
        f"The published {first['network']} ({first['accuracy_original_percent']:.2f}%), pruned to "
        f"{first['macs_original_over_asked']:g} times fewer MACs on {first['calibration_images']:,} training images "
        f"without labels, then trained for {first['epochs']} epochs on all {first['training_images']:,}, labels "
        "included, with flips and crops, distilling from the unpruned network; the same recipe, seed and teacher for "
        f"all rows, {on}, the highest learning rate by how much of the unpruned network's output each misses. "
        "One run each; two runs of other seeds differ by some tenths of a point. Accuracy on "
        f"the {first['test_images']:,} test images, in ONNX Runtime.\n\n"
        f"Target: at least {target:.1f}%: {'kept' if value >= target else 'missed'}, with {value:.2f}%.\n\n"
    )
    header = [
        "pruned by",
        "amounts",
        "times fewer MACs",
        "thousand parameters",
        "pruned, %",
        "tuned, %",
        "95% interval",
        "pruning, s",
        "training, s",
        "learning rate",
    ]
    return text + common.markdown_table(
        header,
        [
            [
                row["pruner"],
                row["amounts"] or "—",
                common.shown(row["macs_original_over_pruned"], 2),
                common.shown(row["parameters"] / 1e3, 1),
                common.shown(row["accuracy_pruned_percent"], 2),
                common.shown(row["accuracy_tuned_percent"], 2),
                f"{row['accuracy_tuned_low_percent']:.2f} to {row['accuracy_tuned_high_percent']:.2f}",
                common.shown(row["prune_seconds"], 1),
                common.shown(row["tune_seconds"], 0),
                common.shown(row["highest_learning_rate"], 4),
            ]
            for row in found
        ],
        text_columns=2,
    )


BENCHMARK = replace(
    prune_cifar10.BENCHMARK,
    name="prune_finetune",
    title="ResNet-56 on CIFAR-10 pruned and fine-tuned for two epochs, beside Torch-Pruning",
    measure=measure,
    section=section,
    minutes=14,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
