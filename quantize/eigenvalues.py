"""Top eigenvalues of the Hessian's blocks, as HAWQ ranks blocks of layers by.

Power iteration, as in the paper, forgets all products but the last. The Lanczos iteration finds the best
approximation in the span of all of them, at the same cost a step: after m products with H it has an orthonormal basis
V and the tridiagonal ``T = V^T H V``, whose eigenvalue theta of largest magnitude, with eigenvector s, satisfies

    |H (V s) - theta (V s)| = beta_m |s_m|,

so that an eigenvalue of H lies within that residual of theta (Parlett, *The Symmetric Eigenvalue Problem*, 1980,
chapter 13).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import BadInput, UnknownName
from compress.quantize.hessian_products import HessianProducts
from compress.quantize.loss_curvature import Head, Loss, problem
from compress.quantize.piecewise import layers
from compress.types import Progress


@dataclass(frozen=True, slots=True)
class Eigenvalue:
    """An eigenvalue of a block.

    Attributes:
        value: the one of largest magnitude, as power iteration finds; negative where the loss curves downwards most.
        residual: ``|H v - value v|`` for the unit vector v that was found: an eigenvalue lies within it of ``value``.
        products: Hessian-vector products that it took.
    """

    value: float
    residual: float
    products: int


def top_eigenvalues(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    generator: torch.Generator,
    blocks: Mapping[str, Sequence[str]] | None = None,
    tolerance: float = 0.01,
    most: int = 100,
    progress: Progress | None = None,
) -> Mapping[str, Eigenvalue]:
    """The eigenvalue of largest magnitude of each layer's, or block's, part of the Hessian of the mean loss.

    Args:
        model, batches, loss: as for :func:`compress.quantize.hessian.traces`.
        generator: of the vectors that the iterations start from, on the CPU.
        blocks: block -> the layers (module paths) whose weights make it up; each layer by itself by default.
        tolerance: of the residual, relative to the eigenvalue.
        most: products for one block, at most.
        progress: told after every block.

    Returns:
        By block, or by layer.

    Raises:
        BadInput: as for traces; a layer that doesn't exist; a network or loss with no second derivative.
        BadData: no samples, NaN, batches that can't be used.
        Untraceable: the network can't be traced.
    """
    task = problem(model, batches, loss)
    Head(task)  # refuses a loss that can't be differentiated
    found = {layer.name: layer for layer in layers(task.steps)}
    wanted = {name: (name,) for name in found} if blocks is None else {k: tuple(v) for k, v in blocks.items()}
    result = {}
    for name, members in wanted.items():
        for member in members:
            if member not in found:
                raise UnknownName("layer", member, found)
        if not members:
            raise BadInput(f"block {name!r} has no layers")
        products = HessianProducts(task, [found[member] for member in dict.fromkeys(members)], {})
        result[name] = lanczos(products, generator, tolerance, most)
        if progress is not None:
            progress(f"top eigenvalue of {name}: {result[name].value:.4g}")
    return result


def lanczos(products: HessianProducts, generator: torch.Generator, tolerance: float, most: int) -> Eigenvalue:
    """The eigenvalue of largest magnitude of the matrix that ``products`` multiplies by."""
    start = torch.randn(products.size, generator=generator).to(products.device, products.dtype)
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    value, residual = 0.0, 0.0
    for _ in range(min(most, products.size)):
        (image,) = products([basis[-1]])
        diagonal.append(float(torch.dot(basis[-1].double(), image.double())))
        # Twice against all before: once leaves rounding that grows into copies of eigenvalues.
        for _ in range(2):
            for vector in basis:
                image = image - torch.dot(vector, image) * vector
        length = float(image.norm())
        value, last = _largest(diagonal, beside)
        residual = length * abs(last)
        if not (abs(value) < float("inf")):
            raise BadInput("the Hessian is NaN or infinite on these data; check the network's weights and inputs")
        size = max(map(abs, (*diagonal, *beside)))
        if residual <= tolerance * abs(value) or length <= 1e-7 * size or size == 0.0:
            break
        beside.append(length)
        basis.append(image / length)
    return Eigenvalue(value, residual, len(diagonal))


def _largest(diagonal: Sequence[float], beside: Sequence[float]) -> tuple[float, float]:
    """The eigenvalue of largest magnitude of a tridiagonal matrix, and the last entry of its eigenvector."""
    matrix: Tensor = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if not torch.isfinite(matrix).all():
        return float("nan"), 0.0
    if beside:
        sides = torch.tensor(beside, dtype=torch.float64)
        matrix = matrix + torch.diag(sides, 1) + torch.diag(sides, -1)
    values, vectors = torch.linalg.eigh(matrix)
    top = int(values.abs().argmax())
    return float(values[top]), float(vectors[-1, top])
