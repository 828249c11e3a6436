"""Accuracy of an artifact: of the very file that ships, in the runtime that it ships for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from compress.metric import of_task
from compress.profiling.session import as_input, batch_limit, open_session, runner
from compress.results import Accuracy, ClassRecall

if TYPE_CHECKING:
    from compress.data import Data

Predict = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
RUNTIME = "onnxruntime"
BATCH = 64


def accuracy(path: Path, data: Data, *, exact: bool = False) -> Accuracy:
    """Run an ONNX file over the evaluation split in ONNX Runtime; see :func:`of`.

    ``exact`` is :func:`~compress.profiling.session.open_session`'s: for a file that is for another processor.
    """
    session = open_session(path, exact=exact)
    return of(runner(session), data, RUNTIME, batch_limit(session))[0]


def of(
    predict: Predict, data: Data, runtime: str, limit: int | None = None, protected: Sequence[int] = ()
) -> tuple[Accuracy, ClassRecall | None]:
    """An artifact's accuracy over the evaluation split, and recall by class.

    Top-1 in percent with Wilson's interval for classification; for reconstruction the mean PSNR over images in dB
    with its normal 95% interval, the mean SSIM beside it, and no recall.

    Args:
        predict: from float32 inputs (N, ...) to float32 outputs (N, ...).
        data: its evaluation split is run.
        runtime: what runs it, for the record.
        limit: the largest batch that ``predict`` takes, or None.
        protected: indices of the classes that the recall names as protected.
    """
    import torch

    from compress.training import evaluate_by_class, evaluate_quality

    def batch(images: torch.Tensor) -> torch.Tensor:
        parts = images.split(limit) if limit else (images,)
        return torch.from_numpy(np.concatenate([predict(as_input(part)) for part in parts]))

    if data.task == "classification":
        hits, totals = evaluate_by_class(batch, data.evaluate, batch_size=BATCH)
        missing = (0,) * (len(data.classes) - len(totals))
        pairs = zip(hits + missing, totals + missing, strict=True)
        recall = ClassRecall(
            data.classes,
            tuple(100 * hit / n if n else None for hit, n in pairs),
            totals + missing,
            tuple(data.classes[c] for c in protected),
        )
        return Accuracy.from_counts(sum(hits), sum(totals), runtime), recall
    quality = evaluate_quality(batch, data.evaluate, batch_size=BATCH)
    values = np.asarray(quality.psnr)
    ssim = float(np.mean(quality.ssim)) if quality.ssim else None
    mean, n = float(values.mean()), len(values)
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return Accuracy(mean, mean - half, mean + half, n, runtime, of_task(data.task).key, ssim), None
