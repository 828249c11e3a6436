"""CIFAR-10's ResNet-20 with its published weights, quantized by ONNX Runtime, over test images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compress import data, models
from compress.export.lowering import lower
from compress.integer import program as p
from tests.export.lowering import comparing
from tests.export.lowering.make_fixtures import onnxruntime
from tests.export.lowering.small import islands

WEIGHTS = "weights/cifar10-akamaster/resnet20-12fca82f.th"
COUNT = 60


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["U8S8C", "S8S8", "U8U8"])
def test_resnet20_by_onnx_runtimes_quantizer(shared_data: Path, cifar10_dir: Path, tmp_path: Path, kind: str) -> None:
    found = models.load("resnet20", weights=str(shared_data / WEIGHTS))
    named = {"mean": found.mean, "std": found.std, "input_shape": found.input_shape, "num_classes": 10}
    cifar = data.load(f"cifar10:{cifar10_dir}", **named)
    images, labels = next(iter(cifar.evaluate.batches(COUNT)))
    onnxruntime(kind)(found.model.eval(), images[:32].numpy(), tmp_path / "m.onnx")
    model = (tmp_path / "m.onnx").read_bytes()
    program = lower(model)
    assert not islands(program)
    assert sum(isinstance(op, p.Convolution) for op in program.ops) == 20
    steps = comparing.step_differences(model, [images[:1].numpy()])
    assert max(steps.values()) <= 1
    runtime = comparing.session(model)
    (name,) = (each.name for each in runtime.get_inputs())
    wanted = np.concatenate([runtime.run(None, {name: image[None].numpy()})[0] for image in images])
    got = np.concatenate([comparing.computed(program, [image[None].numpy()])[0].reshape(1, 10) for image in images])
    assert np.abs(got - wanted).max() <= 0.1 * np.abs(wanted).max()
    assert np.mean(got.argmax(1) == wanted.argmax(1)) >= 0.98
    assert np.mean(got.argmax(1) == torch.as_tensor(labels).numpy()) >= 0.8
