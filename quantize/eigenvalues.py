"""Top eigenvalues of the Hessian's blocks, as HAWQ ranks blocks of layers by.

Power iteration, as in the paper, forgets all products but the last. The Lanczos iteration finds the best
approximation in the span of all of them, at the same cost a step: after m products with H it has an orthonormal basis
V and the tridiagonal ``T = V^T H V``, whose eigenvalue theta of largest magnitude, with eigenvector s, satisfies

    |H (V s) - theta (V s)| = beta_m |s_m|,

so that an eigenvalue of H lies within that residual of theta (Parlett, *The Symmetric Eigenvalue Problem*, 1980,
chapter 13).

Where the block is that of the Gauss-Newton matrix (:mod:`compress.quantize.hessian`), which is a sum ``B^T B`` of outer
products of single samples' gradients, its eigenvalues are those of ``B B^T``, a matrix as large as there are
directions in the outputs, and no second derivative is needed. Directions with little weight are left out, and what
they could add is in the residual.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.errors import BadInput, UnknownName
from compress.quantize.hessian_products import HessianProducts
from compress.quantize.loss_curvature import Coupled, Directions, Head, Loss, Problem, directions, problem
from compress.quantize.piecewise import Layer, layers, linear_layers
from compress.quantize.sample_gradients import SampleGradients
from compress.types import Progress


@dataclass(frozen=True, slots=True)
class Eigenvalue:
    """An eigenvalue of a block.

    Attributes:
        value: the one of largest magnitude, as power iteration finds; negative where the loss curves downwards most.
        residual: of ``"lanczos"`` ``|H v - value v|`` for the unit vector v that was found: an eigenvalue lies within
            it of ``value``. Of ``"gauss-newton"`` what the directions that were left out could add, if none has a
            larger gradient than the largest that was seen.
        probes: Hessian-vector products, or gradients of single samples.
        method: ``"gauss-newton"`` or ``"lanczos"``.
    """

    value: float
    residual: float
    probes: int
    method: str


def top_eigenvalues(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    generator: torch.Generator,
    blocks: Mapping[str, Sequence[str]] | None = None,
    method: Literal["auto", "lanczos"] = "auto",
    tolerance: float = 0.01,
    most: int = 100,
    progress: Progress | None = None,
    shared: MutableMapping[Any, Any] | None = None,
) -> Mapping[str, Eigenvalue]:
    """The eigenvalue of largest magnitude of each layer's, or block's, part of the Hessian of the mean loss.

    Args:
        model, batches, loss: as for :func:`compress.quantize.hessian.traces`.
        generator: of the vectors that the iterations start from, on the CPU.
        blocks: block -> the layers (module paths) whose weights make it up; each layer by itself by default.
        method: ``"lanczos"`` for Hessian-vector products throughout; ``"auto"`` for single samples' gradients where
            they give the same: for single layers in which the network is piecewise linear, and for all blocks if the
            loss is None.
        tolerance: of the residual, relative to the eigenvalue.
        most: products for one block, at most.
        progress: told after every block.
        shared: as for :func:`compress.quantize.hessian.traces`.

    Returns:
        By block, or by layer.

    Raises:
        BadInput: as for traces; a layer that doesn't exist; a network or loss with no second derivative.
        BadData: no samples, NaN, batches that can't be used.
        Untraceable: the network can't be traced.
    """
    if method not in ("auto", "lanczos"):
        raise UnknownName("method", method, ("auto", "lanczos"))
    task = problem(model, batches, loss, shared)
    head = Head(task)
    found = {layer.name: layer for layer in layers(task.steps)}
    wanted = {name: (name,) for name in found} if blocks is None else {k: tuple(v) for k, v in blocks.items()}
    for name, members in wanted.items():
        for member in members:
            if member not in found:
                raise UnknownName("layer", member, found)
        if not members:
            raise BadInput(f"block {name!r} has no layers")
    members_of = {name: [found[member] for member in dict.fromkeys(members)] for name, members in wanted.items()}
    told = progress or (lambda message: None)
    result = {}
    if method == "auto":
        linear = linear_layers(task.steps, found.values())
        flat = task.own or not bool((head.slopes != 0).any())
        alike = {n: m for n, m in members_of.items() if flat or (len(m) == 1 and m[0].name in linear)}
        result = from_gradients(task, head, alike, generator, tolerance, told)
    for name, block in members_of.items():
        if name not in result:
            result[name] = lanczos(HessianProducts(task, block, {}), generator, tolerance, most)
            told(f"top eigenvalue of {name}: {result[name].value:.4g}")
    return {name: result[name] for name in members_of}


MOST_ELEMENTS, MOST_DIRECTIONS = 1 << 27, 2048
"""Of the gradients that are kept at a time, and how many there may be."""


LEFT_OUT = 50
"""How many times less than the tolerance the directions that are left out weigh: a layer's top eigenvalue is some
part of its trace, and the largest gradient is a few times the mean."""


def from_gradients(
    task: Problem,
    head: Head,
    blocks: Mapping[str, Sequence[Layer]],
    generator: torch.Generator,
    tolerance: float,
    progress: Progress,
) -> dict[str, Eigenvalue]:
    """Top eigenvalues of the Gauss-Newton matrix's blocks; those that would take too much memory, or whose residual
    would be too large, are left out."""
    try:
        listed = directions(head, generator) if blocks else None
    except Coupled:
        listed = None
    if listed is None or not len(listed.weights) or bool((listed.signs < 0).any()):
        return {}
    order = torch.argsort(listed.weights, descending=True, stable=True)
    left = 1 - listed.weights[order].cumsum(0) / listed.weights.sum()
    count = min(len(order), int((left > tolerance / LEFT_OUT).sum()) + 1)
    if count > MOST_DIRECTIONS:
        return {}
    rest, root = float(listed.weights[order[count:]].sum()), listed.weights[order[:count]].sqrt().cpu()
    products: dict[str, Tensor] = {}
    for group in _groups(task, blocks, count):
        products |= _inner_products(task, head, listed, order[:count], group)
        progress(f"gradients of {count} samples' directions by {len(group)} layers")
    result = {}
    for name, block in blocks.items():
        if not all(layer.name in products for layer in block):
            continue
        gram = torch.stack([products[layer.name] for layer in block]).sum(0)
        largest = float(gram.diagonal().max())
        gram = root[:, None] * gram * root
        if not torch.isfinite(gram).all():
            raise BadInput("the Hessian is NaN or infinite on these data; check the network's weights and inputs")
        value = float(torch.linalg.eigvalsh(gram)[-1])
        if rest * largest <= tolerance * value:
            result[name] = Eigenvalue(value, rest * largest, count, "gauss-newton")
    return result


def _groups(task: Problem, blocks: Mapping[str, Sequence[Layer]], count: int) -> list[list[Layer]]:
    """The layers in groups whose gradients fit into memory together; those that don't by themselves are left out."""
    groups: list[list[Layer]] = [[]]
    filled = 0
    for layer in {layer.name: layer for block in blocks.values() for layer in block}.values():
        size = count * task.steps.parameters[layer.parameters[0]].numel()
        if size > MOST_ELEMENTS:
            continue
        if filled + size > MOST_ELEMENTS:
            groups.append([])
            filled = 0
        groups[-1].append(layer)
        filled += size
    return [group for group in groups if group]


def _inner_products(
    task: Problem, head: Head, listed: Directions, index: Tensor, group: Sequence[Layer]
) -> dict[str, Tensor]:
    """By layer the inner products of the gradients of each two directions, float64 on the CPU."""
    inputs = task.inputs()
    gradient = SampleGradients(task.steps, group, {}, [x[:2] for x in inputs], task.batched)
    parts = []
    for some in index.split(gradient.rows):
        rows = listed.rows[some]
        vectors = listed.vectors(some).reshape(len(rows), *head.outputs.shape[1:])
        parts.append(gradient.gradients([x[rows] for x in inputs], vectors))
    found = (torch.cat(each) for each in zip(*parts, strict=True))
    return {layer.name: (each @ each.T).double().cpu() for layer, each in zip(group, found, strict=True)}


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
    return Eigenvalue(value, residual, len(diagonal), "lanczos")


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
