"""The peers that quantize without training, each as it is documented, and why one can't run.

Model Compression Toolkit and TensorRT Model Optimizer give networks that simulate rounding in torch, NNCF and ONNX
Runtime files. None of their weights below 8 bits reach a file that ONNX Runtime runs, so those accuracies are the
simulation's.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

BATCH = 64
MCT, MODELOPT, NNCF = "Model Compression Toolkit", "TensorRT Model Optimizer", "NNCF"
PACKAGES = ("model-compression-toolkit", "nvidia-modelopt", "nncf")


def missing(name: str) -> str | None:
    """Why a peer can't run; None if it can."""
    try:
        if name == MCT:
            _torchvision()
            import model_compression_toolkit  # noqa: F401  # the import is the question
        elif name == MODELOPT:
            import modelopt.torch.quantization  # noqa: F401
        elif name == NNCF:
            import nncf  # noqa: F401
    except Exception as error:  # a package that is there but broken says so in many ways
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return None


def _torchvision() -> None:
    import torch

    metadata.version("model-compression-toolkit")
    # torchvision, which it imports, has no build for torch's CPU wheels: two operators are all that is missing.
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_KEPT: list[Any] = []


def mct(model: Any, images: Any, bits: float) -> Any:
    """Its mixed precision (2, 4 and 8 bits) under an average; a module."""
    _torchvision()
    import model_compression_toolkit as package

    def batches() -> Iterator[list[Any]]:
        for x in images.split(BATCH):
            yield [x]

    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    mixed = package.core.MixedPrecisionQuantizationConfig(num_of_images=32)
    limited = {}
    if bits < 8:
        limited["target_resource_utilization"] = package.core.ResourceUtilization(weights_memory=weights * bits / 8)
    made, _ = package.ptq.pytorch_post_training_quantization(
        copy.deepcopy(model),
        batches,
        **limited,
        core_config=package.core.CoreConfig(mixed_precision_config=mixed),
        target_platform_capabilities=package.get_target_platform_capabilities(tpc_version="1.0", device_type="imx500"),
    )
    return made.eval()


def modelopt(model: Any, images: Any, bits: int) -> Any:
    """Weights of one width, a scale an output channel, 8-bit activations by their maximum; a module.

    Its own mixed precision has no integer weights below 8 bits with 8-bit activations to choose from.
    """
    import modelopt.torch.quantization as package
    import torch

    configuration: Any = copy.deepcopy(package.INT8_DEFAULT_CFG)
    for rule in configuration["quant_cfg"]:
        if rule["quantizer_name"] == "*weight_quantizer":
            rule["cfg"]["num_bits"] = bits

    def calibrate(module: Any) -> None:
        with torch.no_grad():
            for x in images.split(BATCH):
                module(x)

    return package.quantize(copy.deepcopy(model), configuration, calibrate).eval()


def nncf(source: Path, path: Path, images: Any) -> None:
    """8-bit weights and activations, its fast bias correction; a file from a float file."""
    import nncf as package
    import onnx

    inputs = [{"input": images[i : i + 1].numpy()} for i in range(len(images))]
    with _quiet():
        made = package.quantize(onnx.load(source), package.Dataset(inputs), subset_size=len(inputs))
    onnx.save(made, path)


def onnxruntime(source: Path, path: Path, images: Any, activations: str, method: str) -> None:
    """ONNX Runtime's own quantizer as its documentation recommends it: preprocessed, Q/DQ, one scale a channel."""
    import numpy as np
    from onnxruntime import quantization as package
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(package.CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self.batches: Iterator[Any] = iter(images.numpy()[i : i + BATCH] for i in range(0, len(images), BATCH))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"input": np.ascontiguousarray(batch)}

    prepared = path.with_suffix(".prepared.onnx")
    try:
        with _quiet():
            quant_pre_process(str(source), str(prepared))
            package.quantize_static(
                str(prepared),
                str(path),
                Reader(),
                quant_format=package.QuantFormat.QDQ,
                per_channel=True,
                activation_type=getattr(package.QuantType, activations),
                weight_type=package.QuantType.QInt8,
                calibrate_method=getattr(package.CalibrationMethod, method),
            )
    finally:
        prepared.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """They log advice on the root logger."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)


def tried(make: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a peer made, or why it failed, in a line."""
    try:
        return make(), None
    except Exception as error:  # whatever a peer raises is a result of the comparison
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return None, f"{type(error).__name__}: {lines[0][:160] if lines else ''}"
