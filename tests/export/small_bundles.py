"""Bundles made by hand, without a job: a quantized network, golden data, a manifest."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from compress import __version__, targets
from compress.export import bundle
from compress.export import onnx as interchange
from compress.export.manifest import GOLDEN, Manifest, TensorSpec
from compress.export.onnxruntime import weight_storage
from compress.export.roster import EXPORTERS
from compress.profiling.session import open_session, runner
from compress.quantize import quantize
from compress.results import Unavailable
from tests.graph.networks import Residual, build, images


@functools.cache
def quantized_for(target: str, factory=Residual, bits: float = 8):
    """A quantized state with the activations that a target wants."""
    return quantize(build(factory), images(32), weight_bits=bits, target=target, method="uniform").state


@functools.cache
def file_for(target: str, factory=Residual, bits: float = 8) -> bytes:
    """The ONNX file of :func:`quantized_for`."""
    state, weights = quantized_for(target, factory, bits), weight_storage(targets.load(target))
    return interchange.serialize(state, images(2), weights=weights)


def make_bundle(
    folder: Path, target: str = "jetson", factory=Residual, bits: float = 8, runtimes=("tensorrt",)
) -> Path:
    """A bundle of a small network; ``runtimes`` of the target are exported beside ``model.onnx``."""
    folder.mkdir(parents=True)
    state = quantized_for(target, factory, bits)
    (folder / interchange.FILE).write_bytes(file_for(target, factory, bits))
    run = runner(open_session(folder / interchange.FILE, 1, exact=True))
    inputs = images(8, 5).numpy()
    outputs = np.concatenate([run(x[None]) for x in inputs])
    bundle.write_golden(folder / GOLDEN, inputs, outputs)
    device, held, missing = targets.load(target), {"onnxruntime": "model.onnx"}, {}
    for runtime in runtimes:
        made = EXPORTERS[runtime](state, folder, device)
        if isinstance(made, Unavailable):
            missing[runtime] = made.reason
        else:
            held[runtime] = made.path.relative_to(folder).as_posix()
    bundle.finish(
        folder,
        Manifest(
            model="residual",
            target=device.name,
            plan=state.plan,
            plan_digest=state.plan.digest(),
            input=TensorSpec("input", (1, *inputs.shape[1:])),
            output=TensorSpec("output", (1, *outputs.shape[1:])),
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            classes=tuple("abcde"),
            task="classification",
            dataset="random",
            dataset_sha256="0" * 64,
            accuracy=None,
            tolerance=5e-2,
            compress_version=__version__,
            runtimes=held,
            unavailable=missing,
        ),
    )
    torch.manual_seed(0)
    return folder
