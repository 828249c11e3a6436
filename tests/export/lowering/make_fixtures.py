"""Makes files/*.onnx: a small network as ONNX Runtime, NNCF, modelopt and brevitas quantize it.

    PYTHONPATH=. python tests/export/lowering/make_fixtures.py [--weights resnet20.th --out FOLDER] [TOOL...]

Needs the tools that it is asked for (nncf, nvidia-modelopt with its ONNX part, onnxoptimizer for brevitas); the tests
read the files alone. With ``--weights`` it writes CIFAR-10's ResNet-20 instead, for a comparison over the test set.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

FILES = Path(__file__).parent / "files"


class Small(nn.Module):
    """A stem, a residual block with a strided shortcut, a depthwise convolution, a mean and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.one, self.two = nn.Conv2d(16, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.shortcut = nn.Conv2d(16, 16, 1, 2)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.two(F.relu(self.one(x))) + self.shortcut(x))
        x = F.relu6(self.depth(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def network(weights: str | None) -> tuple[nn.Module, np.ndarray[Any, Any]]:
    """The network and images for calibration, float32 (n, 3, H, W)."""
    g = torch.Generator().manual_seed(0)
    if weights is None:
        torch.manual_seed(0)
        return Small().eval(), torch.randn(16, 3, 12, 12, generator=g).numpy()
    from compress import models

    return models.load("resnet20", weights=weights).model.eval(), torch.randn(64, 3, 32, 32, generator=g).numpy()


def exported(model: nn.Module, images: np.ndarray[Any, Any], path: Path) -> Path:
    """The float network as PyTorch's older exporter writes it, batch 1."""
    torch.onnx.export(
        model, (torch.tensor(images[:1]),), str(path), dynamo=False, opset_version=17, input_names=["input"]
    )
    return path


class Images:
    """What ONNX Runtime's quantizer reads."""

    def __init__(self, images: np.ndarray[Any, Any]) -> None:
        self.images = [{"input": image[None]} for image in images]
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return self.left.pop() if self.left else None

    def rewind(self) -> None:
        self.left = list(self.images)


def onnxruntime(kind: str) -> Callable[[nn.Module, np.ndarray[Any, Any], Path], None]:
    """``U8S8`` and so on: types of activations and weights; ``C`` behind it: a scale a channel."""

    def make(model: nn.Module, images: np.ndarray[Any, Any], path: Path) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        types = {"U8": QuantType.QUInt8, "S8": QuantType.QInt8}
        source = exported(model, images, path.with_suffix(".float.onnx"))
        quant_pre_process(str(source), str(source), skip_symbolic_shape=True)
        quantize_static(
            str(source),
            str(path),
            Images(images),
            quant_format=QuantFormat.QDQ,
            per_channel=kind.endswith("C"),
            activation_type=types[kind[:2]],
            weight_type=types[kind[2:4]],
            extra_options={"ActivationSymmetric": kind.startswith("S8"), "WeightSymmetric": kind[2:4] == "S8"},
        )
        source.unlink()

    return make


def nncf(model: nn.Module, images: np.ndarray[Any, Any], path: Path) -> None:
    import nncf as tool
    from nncf.quantization.advanced_parameters import QuantizationParameters

    source = onnx.load(exported(model, images, path.with_suffix(".float.onnx")))
    data = tool.Dataset(list(images), lambda image: {"input": image[None]})
    # By default it gives what a depthwise convolution reads a scale a channel.
    one_scale = tool.AdvancedQuantizationParameters(
        activations_quantization_params=QuantizationParameters(per_channel=False)
    )
    made = tool.quantize(source, data, subset_size=len(images), advanced_parameters=one_scale)
    onnx.save(made, str(path))
    path.with_suffix(".float.onnx").unlink()


def modelopt(model: nn.Module, images: np.ndarray[Any, Any], path: Path) -> None:
    from modelopt.onnx.quantization import quantize

    source = exported(model, images, path.with_suffix(".float.onnx"))
    quantize(
        str(source),
        quantize_mode="int8",
        calibration_data={"input": images},
        calibration_eps=["cpu"],
        output_path=str(path),
        high_precision_dtype="fp32",
    )
    source.unlink()


class Subsampled(nn.Module):
    """A ZeroPadShortcut in words that brevitas's tracer knows: a pool of one pixel for the slice."""

    def __init__(self, shortcut: Any) -> None:
        super().__init__()
        self.stride, self.before, self.after = shortcut.stride, shortcut.before, shortcut.after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(F.max_pool2d(x, 1, self.stride), (0, 0, 0, 0, self.before, self.after))


def brevitas(model: nn.Module, images: np.ndarray[Any, Any], path: Path) -> None:
    """Brevitas's own flow for any network: layer-wise int8, calibrated, written as Q/DQ with clips."""
    from brevitas.export import export_onnx_qcdq
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.graph.quantize import preprocess_for_quantize, quantize

    data = torch.tensor(images)
    for block in model.modules():
        if type(getattr(block, "shortcut", None)).__name__ == "ZeroPadShortcut":
            block.shortcut = Subsampled(block.shortcut)
    ready = preprocess_for_quantize(model, equalize_iters=0)
    quantized = quantize(ready)
    with torch.no_grad(), calibration_mode(quantized):
        quantized(data)
    quantized.eval()
    with torch.no_grad():
        quantized(data)
        export_onnx_qcdq(
            quantized, data[:1], export_path=str(path), opset_version=17, input_names=["input"], dynamo=False
        )


TOOLS: dict[str, Callable[[nn.Module, np.ndarray[Any, Any], Path], None]] = {
    **{f"onnxruntime-{kind}": onnxruntime(kind) for kind in ("U8S8C", "S8S8", "U8U8")},
    "nncf": nncf,
    "modelopt": modelopt,
    "brevitas": brevitas,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tools", nargs="*", default=[])
    parser.add_argument("--weights")
    parser.add_argument("--out", type=Path, default=FILES)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.tools or TOOLS:
        model, images = network(given.weights)
        path = given.out / f"{name}.onnx"
        TOOLS[name](model, images, path)
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
