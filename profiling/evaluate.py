"""Accuracy of an artifact: of the very file that ships, in the runtime that it ships for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.profiling.session import as_input, batch_limit, open_session, runner
from compress.results import Accuracy

if TYPE_CHECKING:
    from compress.data import Data

RUNTIME = "onnxruntime"
BATCH = 64


def accuracy(path: Path, data: Data) -> Accuracy:
    """Run the ONNX file over the evaluation split in ONNX Runtime.

    Top-1 in percent with Wilson's interval for classification; the mean PSNR over images in dB with
    its normal 95% interval for reconstruction.
    """
    import torch

    from compress.training import evaluate, evaluate_psnr

    session = open_session(path)
    run, limit = runner(session), batch_limit(session)

    def predict(images: torch.Tensor) -> torch.Tensor:
        parts = images.split(limit) if limit else (images,)
        return torch.from_numpy(np.concatenate([run(as_input(part)) for part in parts]))

    if data.task == "classification":
        correct, n = evaluate(predict, data.evaluate, batch_size=BATCH)
        return Accuracy.from_counts(correct, n, RUNTIME)
    values = np.asarray(evaluate_psnr(predict, data.evaluate, batch_size=BATCH))
    mean, n = float(values.mean()), len(values)
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return Accuracy(mean, mean - half, mean + half, n, RUNTIME, "psnr_db")
