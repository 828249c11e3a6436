"""SqueezeNet 1.1 and MobileNetV2 pruned without training on a thousand ImageNet images: ours beside Torch-Pruning."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import common, prune_cifar10, pruned, pruners

FACTORS = (1.2, 1.5, 2.0)
IMAGES = 500
NETWORKS = {
    "squeezenet1_1": "imagenet-squeezenet1_1/squeezenet1_1_caffe_fp16.pth",
    "mobilenetv2-coral": "imagenet-mobilenet_v2/mobilenet_v2_1.0_224_quant_dequant.pth",
}


def split(folder: Path) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Images and classes to calibrate on and to evaluate on: the even and the odd classes, an image each."""
    with (folder / "labels.csv").open(newline="") as file:
        found = [(folder / "val256" / row["file"], int(row["index"])) for row in csv.DictReader(file)]
    return [each for each in found if each[1] % 2 == 0], [each for each in found if each[1] % 2 == 1]


def subject(name: str, images: int = IMAGES) -> pruners.Subject:
    """A published network with ``images`` of the sample's calibration half, and the other half to evaluate on."""
    from torch import nn

    from compress import models
    from compress.data import Data, FolderSplit, from_python

    home = common.data_dir() or Path()
    loaded = models.load(name, weights=str(home / "weights" / NETWORKS[name]))
    assert loaded.input_shape is not None
    assert loaded.mean is not None
    assert loaded.std is not None
    shape, mean, std = loaded.input_shape, loaded.mean, loaded.std
    calibrate, evaluate = (
        FolderSplit(name, tuple(file for file, _ in part), tuple(index for _, index in part), shape, mean, std)
        for part in split(home / "imagenet-sample")
    )
    chosen, _ = next(calibrate.batches(images))
    classes = tuple(str(index) for index in range(loaded.num_classes or 0))
    data = Data(name, "classification", calibrate, evaluate, classes, "", mean, std)
    model = loaded.model
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        model = pruners.with_statistics(model, chosen)
    return pruners.Subject(name, model, from_python(chosen, divisible=False), data)


def measure() -> list[common.Row]:
    rows: list[common.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            this = subject(name)
            rows += pruners.measured(this, FACTORS, Path(folder), pruners.pruners(this, {}))
    return rows


def section(document: Mapping[str, Any]) -> str:
    rows = document["rows"]
    first = rows[0]
    parts = [
        "Channels removed, nothing trained. The sample has 1,000 images, one a class, most likely of the training "
        "set, so accuracies run high: they compare a network with its smaller self and aren't validation accuracies. "
        f"Calibrated on images of the even classes ({first['calibration_images']} images, without labels; ours takes "
        "as many of them as its memory limit allows), evaluated on all "
        f"{first['test_images']} images of the odd classes, in ONNX Runtime: an image a class leaves a 95% interval of "
        "several points, and no class that is evaluated on was calibrated on. Pruners, counts and times "
        f"are as in the section of `{prune_cifar10.BENCHMARK.name}`, but that ours learns of a network once, as in a "
        "job of several candidates: its first row holds that time, the others only the choice and the rebuilding. "
        "Other work on the cores was watched while latencies were taken, not while networks were pruned.\n\n"
        "SqueezeNet has no batch norm, so there are no statistics to estimate. MobileNetV2's published weights have "
        "theirs folded into the convolutions (mean 0, variance 1), which would make new statistics wrong; "
        "so for all pruners alike the network first gets batch norms that hold its statistics on the calibration "
        "images and compute the same. New statistics are then estimated on the same images, unchanged.\n\n"
        "Latency is that of one image in ONNX Runtime, all files of a network in turns "
        f"({pruners.ROUNDS} rounds), the median. These layers are wide enough to fill SIMD registers, but a count that "
        "isn't a multiple of the register's width takes the general kernel, also in a depthwise convolution, and "
        "depthwise convolutions, concatenations and pooling are bound by memory more than by their MACs.\n"
    ]
    for name in dict.fromkeys(row["network"] for row in rows):
        these = [row for row in rows if row["network"] == name]
        said = [pruned.peers(these), pruned.bought(these), pruned.noise(these)]
        parts += [f"\n### {name}\n\n{' '.join(filter(None, said))}\n\n", pruned.table(these)]
    return "".join(parts)


BENCHMARK = common.Benchmark(
    name="prune_imagenet",
    title="SqueezeNet 1.1 and MobileNetV2 pruned without training, beside Torch-Pruning",
    needs=(
        common.data("imagenet-sample", "1,000 ImageNet images"),
        common.data("weights/imagenet-squeezenet1_1", "SqueezeNet 1.1"),
        common.data("weights/imagenet-mobilenet_v2", "MobileNetV2"),
        common.package("torch-pruning", "torch_pruning"),
    ),
    packages=("torch", "torch-pruning", "onnx", "onnxruntime", "numpy"),
    measure=measure,
    section=section,
    minutes=40,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
