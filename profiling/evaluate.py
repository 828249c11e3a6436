"""Accuracy of an artifact: of the very file that ships, in the runtime that it ships for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.profiling.session import as_input, batch_limit, open_session, runner
from compress.results import Accuracy, ClassRecall

if TYPE_CHECKING:
    from compress.data import Data

RUNTIME = "onnxruntime"
BATCH = 64


def accuracy(path: Path, data: Data) -> Accuracy:
    """Run the ONNX file over the evaluation split in ONNX Runtime; see :func:`figures`."""
    return figures(path, data)[0]


def figures(path: Path, data: Data, protected: Sequence[int] = ()) -> tuple[Accuracy, ClassRecall | None]:
    """Run the ONNX file over the evaluation split in ONNX Runtime: its accuracy, and recall by class.

    Top-1 in percent with Wilson's interval for classification; the mean PSNR over images in dB with
    its normal 95% interval, and no recall, for reconstruction. ``protected`` are indices of the classes that the
    recall names as protected.
    """
    import torch

    from compress.training import evaluate_by_class, evaluate_psnr

    session = open_session(path)
    run, limit = runner(session), batch_limit(session)

    def predict(images: torch.Tensor) -> torch.Tensor:
        parts = images.split(limit) if limit else (images,)
        return torch.from_numpy(np.concatenate([run(as_input(part)) for part in parts]))

    if data.task == "classification":
        hits, totals = evaluate_by_class(predict, data.evaluate, batch_size=BATCH)
        missing = (0,) * (len(data.classes) - len(totals))
        pairs = zip(hits + missing, totals + missing, strict=True)
        recall = ClassRecall(
            data.classes,
            tuple(100 * hit / n if n else None for hit, n in pairs),
            totals + missing,
            tuple(data.classes[c] for c in protected),
        )
        return Accuracy.from_counts(sum(hits), sum(totals), RUNTIME), recall
    values = np.asarray(evaluate_psnr(predict, data.evaluate, batch_size=BATCH))
    mean, n = float(values.mean()), len(values)
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return Accuracy(mean, mean - half, mean + half, n, RUNTIME, "psnr_db"), None
