"""ResNet-20 and -56 on CIFAR-10 pruned without training: ours beside our baseline and Torch-Pruning."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import common, pruned, pruners

NETWORKS = ("resnet20", "resnet56")
IMAGES = 1024
FACTORS = (1.5, 2.0, 3.0)
TARGETS_PERCENT = {("resnet56", 1.5): 92.8, ("resnet56", 2.0): 91.4, ("resnet56", 3.0): 86.0, ("resnet20", 2.0): 87.0}
TARGET_SECONDS = {"resnet56": 60.0}


def subject(name: str, cifar10: Path, images: int = IMAGES) -> pruners.Subject:
    """A published network with ``images`` of the training images."""
    import torch

    from compress import data, models

    weights = next((common.data_dir() or Path()).glob(f"weights/cifar10-akamaster/{name}-*.th"))
    loaded = models.load(name, weights=str(weights))
    dataset = data.load(f"cifar10:{cifar10}", mean=loaded.mean, std=loaded.std)
    # What writes to a shortcut: the stem and each block's second convolution.
    fixed = [path for path, _ in loaded.model.named_modules() if path == "conv1" or path.endswith(".conv2")]
    assert isinstance(dataset.train, data.ArraySplit)
    some = torch.randperm(dataset.train.n, generator=torch.Generator().manual_seed(0))[:images]
    chosen = replace(dataset.train, images=dataset.train.images[some], labels=None)
    calibration = replace(dataset, task="reconstruction", train=chosen, evaluate=chosen, classes=())
    return pruners.Subject(name, loaded.model, calibration, dataset, tuple(fixed))


def measure() -> list[common.Row]:
    with common.cifar10() as cifar10, tempfile.TemporaryDirectory() as folder:
        return [row for name in NETWORKS for row in pruners.measured(subject(name, cifar10), FACTORS, Path(folder))]


def section(document: Mapping[str, Any]) -> str:
    rows = document["rows"]
    first = rows[0]
    parts = [
        f"Channels removed, nothing trained. Every pruner gets the published network and the same "
        f"{first['calibration_images']:,} training images, normalized, without their labels, and "
        "unchanged but where batch-norm statistics are estimated; ours fits the weights that are left to the original "
        "network's tensors on those images, so this is calibration, but of all weights. Accuracy on the "
        f"{first['test_images']:,} test images, in ONNX Runtime, of the very float file whose latency stands beside "
        "it; all rows see the same images, and no test was made of whether differences between them are more than "
        "chance. Multiply-accumulates (MACs) are those of convolutions and linear layers. Pruning is wall time on "
        f"{pruners.PRUNING_THREADS} threads of torch, the peer's with the search for its ratio.\n\n"
        "Torch-Pruning: its `BasePruner` with `GroupMagnitudeImportance`, one step, the channel ratio found by "
        "bisection so that the MACs left come closest to those asked for, either the same ratio in all layers or all "
        "channels in one ranking. It doesn't touch batch-norm statistics, which any pruning makes wrong; rows with "
        f'"{pruners.ANEW}" have them estimated on the calibration images, cropped and flipped at random as in the '
        "networks' training, as `norm` has: those of unchanged images cost ResNet-20 3 points with nothing "
        "removed.\n\n",
        LATENCY,
    ]
    for name in dict.fromkeys(row["network"] for row in rows):
        these = [row for row in rows if row["network"] == name]
        said = [targets(name, these), pruned.peers(these), pruned.bought(these), pruned.noise(these)]
        parts += [f"\n### {name}\n\n{' '.join(filter(None, said))}\n\n", pruned.table(these)]
    return "".join(parts)


LATENCY = (
    "Latency is that of one image in ONNX Runtime, all files of a network in turns "
    f"({pruners.ROUNDS} rounds), the median. Removed MACs don't buy as much time, and may buy none. ONNX Runtime's "
    "fast float convolution computes channels in blocks of a SIMD register's width (16 on AVX-512, 8 on AVX2): it "
    "fills a last block with zeros, and leaves a layer with more input channels than a block that aren't a multiple of "
    "it to a general kernel, which takes about twice as long (3x3 on 16x16 pixels on an AVX-512 processor: 31 channels "
    "85 microseconds, 32 channels 43, 17 channels 39). So any count may be slower than the next multiple. "
    f'The rows with "{pruners.LIKED}" are from `prune(..., target="cpu")`, which keeps to multiples '
    "while a group has at least four steps of them, and so steps by fewer in the narrowest layers. "
    "What a layer costs beside its MACs stays in any case: the call of each operator, and the reading and writing of "
    "tensors for additions and activation functions.\n"
)


def targets(name: str, rows: list[dict[str, Any]]) -> str:
    """Which targets were kept."""
    said = []
    for (network, factor), wanted in TARGETS_PERCENT.items():
        found = [
            row
            for row in rows
            if (row["pruner"], row["amounts"], row["macs_original_over_asked"]) == (pruners.OURS, None, factor)
        ]
        if network == name and found:
            value = found[0]["accuracy_percent"]
            kept = "kept" if value >= wanted else "missed"
            said.append(f"at least {wanted:.1f}% at {factor:g} times fewer MACs: {kept}, {value:.2f}%")
    limit = TARGET_SECONDS.get(name)
    if limit is not None:
        longest = max(row["prune_seconds"] for row in rows if row["pruner"] == pruners.OURS)
        said.append(f"under {limit:.0f} s: {'kept' if longest < limit else 'missed'}, at most {longest:.1f} s")
    return f"Targets: {'; '.join(said)}." if said else ""


BENCHMARK = common.Benchmark(
    name="prune_cifar10",
    title="ResNet-20 and -56 on CIFAR-10 pruned without training, beside Torch-Pruning",
    needs=(
        common.data("cifar10", "CIFAR-10"),
        common.data("weights/cifar10-akamaster", "akamaster's ResNet-20 and ResNet-56"),
        common.package("torch-pruning", "torch_pruning"),
    ),
    packages=("torch", "torch-pruning", "onnx", "onnxruntime", "numpy"),
    measure=measure,
    section=section,
    minutes=25,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
