"""ResNet-56 on CIFAR-10 pruned to 2.13 times fewer MACs and trained for a full schedule, on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks import common, prune_cifar10, prune_finetune, pruners

FACTOR = 2.13
TARGET_PERCENT = 93.8


def schedule(model: Any, subject: pruners.Subject) -> Any:
    from compress.training import Recipe

    return Recipe(epochs=100, lr=0.1, batch_size=256)


def measure() -> list[common.Row]:
    with common.cifar10() as cifar10:
        subject = prune_cifar10.subject(prune_finetune.NETWORK, cifar10)
    return prune_finetune.rows(subject, FACTOR, schedule, prune_finetune.using()[:1], "cuda")


def section(document: Mapping[str, Any]) -> str:
    published = (
        "Published, of another starting point (93.53%) and longer schedules: DepGraph 93.46% at 2.11 times, 93.77% at "
        "2.13 with sparse training.\n\n"
    )
    return published + prune_finetune.words(document["rows"], TARGET_PERCENT)


def cuda() -> str | None:
    """Why torch can't train on a GPU; None if it can."""
    import torch

    return None if torch.cuda.is_available() else "torch has no GPU"


BENCHMARK = replace(
    prune_finetune.BENCHMARK,
    name="prune_schedule",
    title="ResNet-56 on CIFAR-10 pruned and trained for a full schedule",
    # Whoever lists the benchmarks shouldn't wait for torch, so a machine without a GPU is told from outside first.
    needs=(
        *(need for need in prune_cifar10.BENCHMARK.needs if "torch-pruning" not in need.name),
        common.Need("GPU", lambda: common.a_gpu().missing() or cuda()),
    ),
    packages=("torch", "onnx", "onnxruntime", "numpy"),
    measure=measure,
    section=section,
    minutes=15,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
