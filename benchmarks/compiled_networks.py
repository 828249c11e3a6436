"""Networks that are timed as compiled libraries: published weights, quantized here, and MLPerf Tiny's own file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import common

CALIBRATION_IMAGES = 512
MOBILENET_IMAGES, MOBILENET_TESTED = 64, 200
MLPERF, MOBILENET = "ResNet-8 (MLPerf Tiny)", "MobileNetV2"
CIFAR: Mapping[str, tuple[str, str]] = {
    "ResNet-20": ("resnet20", "resnet20-*.th"),
    "ResNet-56": ("resnet56", "resnet56-*.th"),
}


@dataclass
class Network:
    """A network to time.

    Attributes:
        name: in the tables.
        images, labels: float32 (N, C, H, W) as the file takes them, int64 (N,).
        source: the ONNX file, or MLPerf Tiny's TFLite file.
    """

    name: str
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    source: Path


def exported(model: Any, images: Any, path: Path) -> None:
    """The network in 8 bits as a Q/DQ file of ours for this processor."""
    from compress.export import onnx as interchange
    from compress.quantize import quantize

    made = quantize(model, images, weight_bits=8, target="cpu", method="uniform")
    interchange.export(made.state, images[:2], path)


def cifar_networks(folder: Path) -> list[Network]:
    """ResNet-20 and -56 with their published weights, quantized here, and MLPerf Tiny's ResNet-8."""
    import torch

    from compress import data, models

    home = common.data_dir()
    assert home is not None
    made = []
    with common.cifar10() as cifar10:
        raw = np.fromfile(cifar10 / "cifar-10-batches-bin" / "test_batch.bin", np.uint8).reshape(-1, 3073)
        labels, pixels = raw[:, 0].astype(np.int64), raw[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32)
        made.append(Network(MLPERF, pixels, labels, home / "mlperf-tiny/ic/pretrainedResnet_quant.tflite"))
        for name, (built_in, pattern) in CIFAR.items():
            weights = next((home / "weights/cifar10-akamaster").glob(pattern))
            loaded = models.load(built_in, weights=str(weights))
            dataset = data.load(f"cifar10:{cifar10}", mean=loaded.mean, std=loaded.std)
            images = dataset.train.inputs(CALIBRATION_IMAGES, torch.Generator().manual_seed(0))
            exported(loaded.model, images, folder / f"{built_in}.onnx")
            mean, std = (np.array(v, np.float32)[:, None, None] for v in (loaded.mean, loaded.std))
            made.append(Network(name, (pixels / 255 - mean) / std, labels, folder / f"{built_in}.onnx"))
    return made


def mobilenet(folder: Path) -> Network:
    """MobileNetV2 at 224 x 224 with its published weights, quantized here on images of the sample's even classes."""
    from benchmarks.prune_imagenet import subject

    found = subject("mobilenetv2-coral", MOBILENET_IMAGES)
    path = folder / "mobilenetv2.onnx"
    exported(found.model, found.images, path)
    images, labels = next(found.data.evaluate.batches(MOBILENET_TESTED))
    return Network(MOBILENET, np.asarray(images, np.float32), np.asarray(labels, np.int64), path)
