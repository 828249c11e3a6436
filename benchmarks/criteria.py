"""Pruning methods at the same multiply-accumulates, right after pruning and after the same short fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks import common

MACS = 0.5
EPOCHS = 1
TUNING_IMAGES = 10_000
"""Of CIFAR-10's 50,000 training images: fine-tuning every method on all of them would take an hour."""


def measure() -> list[common.Row]:
    return [*digits(), *cifar()]


def digits() -> list[common.Row]:
    """The built-in network on its own data."""
    from compress import data, models

    loaded = models.load("resnet")
    assert loaded.default_data is not None
    return rows("resnet", "digits", loaded.model, data.load(loaded.default_data, mean=loaded.mean, std=loaded.std))


def cifar() -> list[common.Row]:
    """ResNet-20: some of the training images, all test images."""
    import torch

    from compress import data, models

    weights = next((common.data_dir() or common.RESULTS).glob("weights/cifar10-akamaster/resnet20-*.th"))
    loaded = models.load("resnet20", weights=str(weights))
    with common.cifar10() as folder:
        whole = data.load(f"cifar10:{folder}", mean=loaded.mean, std=loaded.std)
    assert isinstance(whole.train, data.ArraySplit)
    assert whole.train.labels is not None
    some = torch.randperm(whole.train.n, generator=torch.Generator().manual_seed(0))[:TUNING_IMAGES]
    train = replace(whole.train, images=whole.train.images[some], labels=whole.train.labels[some])
    return rows("resnet20", "CIFAR-10", loaded.model, replace(whole, train=train))


def rows(network: str, dataset: str, model: Any, data: Any) -> list[common.Row]:
    """One network by every method."""
    from compress.prune import compare

    found = compare(model, data, macs=MACS, epochs=EPOCHS)
    return [
        {
            "network": network,
            "data": dataset,
            "method": row.method,
            "failed": row.reason or None,
            "macs_percent": _rounded(row.macs, 100),
            "params_percent": _rounded(row.params, 100),
            "accuracy_pruned_percent": _rounded(row.pruned),
            "accuracy_tuned_percent": _rounded(row.tuned),
            "accuracy_unpruned_percent": round(found.accuracy, 2),
            "epochs": EPOCHS,
            "tuning_images": data.train.n,
            "test_images": found.n,
            "prune_seconds": _rounded(row.prune_s),
            "tune_seconds": _rounded(row.tune_s),
        }
        for row in found.rows
    ]


def _rounded(value: float | None, factor: float = 1.0) -> float | None:
    return None if value is None else round(factor * value, 2)


def section(document: Mapping[str, Any]) -> str:
    from compress.prune.comparison import spearman

    found = document["rows"]
    parts = [
        f"Every method keeps {MACS:.0%} of the multiply-accumulates of the same network and is fine-tuned alike, by "
        "distillation from it. Accuracy on the test images, by torch, before and after the fine-tuning; correlation "
        "is Spearman's, of the methods' ranks in the two columns.\n"
    ]
    for name in dict.fromkeys(row["network"] for row in found):
        these = [row for row in found if row["network"] == name]
        first = these[0]
        correlation = spearman([(row["accuracy_pruned_percent"], row["accuracy_tuned_percent"]) for row in these])
        parts.append(
            f"\n### {name} on {first['data']}\n\n"
            f"Unpruned {first['accuracy_unpruned_percent']:.2f}%; {first['epochs']} epoch"
            f"{'s' if first['epochs'] != 1 else ''} on {first['tuning_images']:,} images; "
            f"{first['test_images']:,} test images. Rank correlation: "
            f"{'not defined' if correlation is None else f'{correlation:+.2f}'}.\n\n"
        )
        header = ["Method", "MACs kept (%)", "Params kept (%)", "Pruned (%)", "Tuned (%)", "Pruning (s)", "Tuning (s)"]
        keys = ("macs", "params", "accuracy_pruned", "accuracy_tuned")
        parts.append(
            common.markdown_table(
                header,
                (
                    [
                        f"`{row['method']}`" + (f" ({row['failed']})" if row["failed"] else ""),
                        *(common.shown(row[f"{key}_percent"], 2) for key in keys),
                        common.shown(row["prune_seconds"], 1),
                        common.shown(row["tune_seconds"], 1),
                    ]
                    for row in these
                ),
            )
        )
    return "".join(parts)


BENCHMARK = common.Benchmark(
    name="criteria",
    title="pruning methods at the same MACs, before and after fine-tuning",
    needs=(
        common.data("cifar10", "CIFAR-10"),
        common.data("weights/cifar10-akamaster", "ResNet weights for CIFAR-10"),
    ),
    packages=("torch", "numpy", "scipy", "scikit-learn"),
    measure=measure,
    section=section,
    minutes=15,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
