"""How much from where, from the weights alone: heavy tails measured without aspect-ratio bias (FARMS).

Hu et al., *Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias*, ICML 2025
(arXiv 2506.06280), on top of Lu et al., *AlphaPruning*, NeurIPS 2024 (arXiv 2410.10912). The better a layer
is trained, the heavier the tail of the eigenvalues of ``W^T W``. The tail's exponent is Hill's estimate over
the ``k = n // 2`` largest of n eigenvalues, ``lambda_1 <= ... <= lambda_n`` (PL_Alpha_Hill):

    alpha = 1 + k / sum_{i=1..k} ln(lambda_{n-i+1} / lambda_{n-k})

The spectrum's width also depends on the matrix's aspect ratio (Marchenko and Pastur), whatever was learned:
a long matrix of noise seems lighter-tailed than a square one. So eigenvalues are taken of submatrices that all
have the same aspect ratio, and those of one layer are pooled. Here they are squares as large as the
matrix's shorter side, placed evenly along the longer one, overlapping where it is no multiple, as few as cover
it. A convolution's kernel (O, I, h, w) gives one O x I matrix a position of its window; one with a single input
channel a group (depthwise) the O x (h w) matrix.

Small alpha means well trained, and loses least. As in AlphaPruning the amount is linear in alpha between
``1 - spread`` and ``1 + spread``; departing from it, that is the share that is *kept* relative to the others,
not the share removed, so that one rule covers every goal (:func:`compress.prune.amounts.proportional`). A
group's alpha is the mean over the layers that make its channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from compress.graph.groups import Dependencies

SPREAD = 0.3
"""AlphaPruning's tau: how far the shares of the groups may differ from their middle."""
LEAST = 1e-12
"""Eigenvalues below this fraction of the largest are rounding errors of zeros, and left out."""


def weights(model: nn.Module, dependencies: Dependencies, spread: float = SPREAD) -> list[float]:
    """The weight of each group, in [1 - spread, 1 + spread]; 1 where alpha can't be told.

    Args:
        model: it is not changed.
        dependencies: of its trace.
        spread: in [0, 1).
    """
    alphas = [_mean([alpha(model.get_parameter(name)) for name, _ in group.producers]) for group in dependencies.groups]
    known = [each for each in alphas if each is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    if high <= low:
        return [1.0] * len(alphas)
    return [1.0 if each is None else 1 + spread * (1 - 2 * (each - low) / (high - low)) for each in alphas]


def alpha(weight: torch.Tensor) -> float | None:
    """The tail exponent of one layer without aspect-ratio bias; None with fewer than two eigenvalues above 0.

    Args:
        weight: of a convolution (O, I, ...) or linear layer (O, I).
    """
    found = [square_eigenvalues(matrix) for matrix in matrices(weight.detach().double().cpu())]
    return hill(torch.cat(found))


def matrices(weight: torch.Tensor) -> list[torch.Tensor]:
    """The matrices that a weight of two axes or more stands for."""
    kernel = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
    if kernel.shape[1] == 1:
        return [kernel[:, 0]]
    return list(kernel.unbind(2))


def square_eigenvalues(matrix: torch.Tensor) -> torch.Tensor:
    """The eigenvalues of ``S^T S`` for all square submatrices S of ``matrix`` that are looked at, 1-D."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    length, side = tall.shape
    count = math.ceil(length / side)
    starts = [round(i * (length - side) / max(1, count - 1)) for i in range(count)]
    squares = torch.stack([tall[start : start + side] for start in starts])
    values: torch.Tensor = torch.linalg.svdvals(squares)
    return values.square().flatten()


def hill(eigenvalues: torch.Tensor) -> float | None:
    """Hill's estimate of the exponent of the tail, above 1; None with fewer than two eigenvalues above 0."""
    largest = float(eigenvalues.max()) if eigenvalues.numel() else 0.0
    ascending = eigenvalues[eigenvalues > LEAST * largest].sort().values
    n = len(ascending)
    if n < 2:
        return None
    k = n // 2
    total = float((ascending[n - k :] / ascending[n - k - 1]).log().sum())
    return 1 + k / total if total > 0 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
