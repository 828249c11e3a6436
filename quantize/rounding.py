"""Second-order rounding: each weight is rounded so that the ones not yet rounded can make up for it.

For a layer with weight matrix ``W`` (out, K) and inputs ``x`` (K,) the squared error of integers ``Q`` with the
scales ``s`` is

    E ||W x - s Q x||^2 = tr(D G D^T),    D = W - s Q,    G = E x x^T,

whose Hessian is the same ``G`` for every row. Columns are rounded one after the other; what rounding column ``j``
changed is compensated in those that are left (Hassibi and Stork, *Optimal Brain Surgeon*, 1993; Frantar et al.,
*GPTQ*, ICLR 2023),

    e = (w_j - q_j) / U_jj,    w_k <- w_k - e U_jk  for k > j,    G^-1 = U^T U,

those with the largest ``G_jj`` first. Sweeps of coordinate descent follow, which change single integers as long as
the error falls. The scale of each row is the one, of those that plain rounding likes best, that leaves the least
error after this rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.graph.qdq import nearest
from compress.types import Grid

BLOCK = 64
"""Columns whose effect on the others is applied in one product."""

DAMPING = 1e-4
"""Ridge on ``G``, as a share of its mean diagonal (that of the free columns of theirs): calibration inputs are few."""

SWEEPS = 4
"""Sweeps of coordinate descent at most."""

TRIALS = 7
"""Scales that are tried with second-order rounding."""


@dataclass(frozen=True)
class Rounded:
    """A layer's rounded weights.

    Attributes:
        values: (groups, out, K) float64: on the grid, but for the free columns.
        scale: (groups, out) float64, above 0; exact in float32.
        error: (groups, out) float64, ``E ||D x||^2`` of each row.
    """

    values: Tensor
    scale: Tensor
    error: Tensor


def weight_levels(bits: int, scale: tuple[float, ...] = (1.0,), axis: int | None = None) -> Grid:
    """The grid of weights with ``bits``: symmetric with 8, all its integers with fewer, where each one counts."""
    return Grid(scale, 0, bits, True, axis, narrow=bits == 8)


def round_rows(weight: Tensor, gram: Tensor, bits: int, *, free: int = 0) -> Rounded:
    """Round the rows of ``weight``.

    Args:
        weight: (groups, out, K) float64.
        gram: ``G`` of each group's inputs, (groups, K, K) float64, positive semidefinite.
        bits: in [1, 8].
        free: how many of the last columns stay real numbers (the bias).
    """
    groups, rows, width = weight.shape
    columns = width - free
    grid = weight_levels(bits)
    # One order for all groups, so that they stay one tensor.
    diagonal = gram.diagonal(dim1=1, dim2=2).mean(0)
    order = torch.cat([diagonal[:columns].argsort(descending=True, stable=True), torch.arange(columns, width)])
    gram, weight = gram[:, order][:, :, order], weight[:, :, order]
    scale = _scales(weight, gram, grid, columns)
    wanted = weight.repeat(1, scale.shape[1] // rows, 1)
    # With few inputs or few integers what is compensated may be clipped later, and plain rounding be better.
    values = torch.cat([_compensated(wanted, scale, gram, grid, columns), _plain(wanted, scale, grid, columns)], 1)
    scale, wanted = scale.repeat(1, 2, 1), wanted.repeat(1, 2, 1)
    tried = error(wanted - values, gram).view(groups, -1, rows)
    best = tried.argmin(1) * rows + torch.arange(rows)
    values = values.gather(1, best[:, :, None].expand(-1, -1, width))
    scale = scale.gather(1, best[:, :, None])
    _descend(weight, values, scale, gram, grid, columns)
    _freed(weight, values, gram, columns)
    back = torch.empty_like(order)
    back[order] = torch.arange(width)
    return Rounded(values[:, :, back], scale[:, :, 0], error(weight - values, gram))


def error(difference: Tensor, gram: Tensor) -> Tensor:
    """``d G d^T`` of each row ``d``; (groups, rows)."""
    return ((difference @ gram) * difference).sum(2)


def _scales(weight: Tensor, gram: Tensor, grid: Grid, columns: int) -> Tensor:
    """The :data:`TRIALS` scales of each row that plain rounding errs least with; (groups, TRIALS * out, 1)."""
    groups = len(weight)
    weight, free = weight[:, :, :columns], weight[:, :, columns:]
    least = {1: 0.1, 2: 0.25, 3: 0.4, 4: 0.5}.get(grid.bits, 0.7)
    shares = torch.linspace(1.2 if grid.bits < 4 else 1.0, least, 24, dtype=weight.dtype)
    top = weight.abs().amax(2, keepdim=True) / (0.5 * (grid.high - grid.low))
    curvature = gram.diagonal(dim1=1, dim2=2)[:, None, :columns]
    if free.shape[2]:
        top = top.maximum(_least(free, curvature))
    found = []
    for share in shares:
        scale = exact(top * share)
        off = weight - nearest(weight / scale, grid) * scale
        found.append((off.square() * curvature).sum(2))
    best = torch.stack(found).topk(min(TRIALS, len(shares)), dim=0, largest=False).indices
    return exact(shares[best].permute(1, 0, 2).reshape(groups, -1, 1) * top.repeat(1, len(best), 1))


def _least(bias: Tensor, curvature: Tensor) -> Tensor:
    """The scale below which a row's bias could overflow; (groups, out, 1).

    It is stored as int32 with the scale weight times input, and 8-bit inputs have a scale of at least a 2,048th of
    their root mean square. A filter whose weights are all smaller adds a few hundred thousandths of its bias.
    """
    rms = curvature.amax().sqrt()
    return bias.abs().amax(2, keepdim=True) * 2.0**-16 / torch.where(rms > 0, rms, 1.0)


def exact(scale: Tensor) -> Tensor:
    """``scale`` as float32 holds it, and not too small for it: what is simulated must be what ships."""
    return scale.float().clamp_min(torch.finfo(torch.float32).tiny * 2**24).to(scale.dtype)


def _plain(weight: Tensor, scale: Tensor, grid: Grid, columns: int) -> Tensor:
    return torch.cat([nearest(weight[:, :, :columns] / scale, grid) * scale, weight[:, :, columns:]], 2)


def _compensated(weight: Tensor, scale: Tensor, gram: Tensor, grid: Grid, columns: int) -> Tensor:
    """GPTQ of many rows at once."""
    # What the integers read and what the free columns read may be of any size to each other.
    diagonal = gram.diagonal(dim1=1, dim2=2)
    parts = [diagonal[:, :columns], diagonal[:, columns:]]
    ridge = torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in parts], 1)
    damped = gram + torch.diag_embed(DAMPING * ridge.clamp_min(1e-30))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    values = weight.clone()
    for first in range(0, columns, BLOCK):
        end = min(first + BLOCK, columns)
        errors = values.new_zeros(*values.shape[:2], end - first)
        for j in range(first, end):
            rounded = nearest(values[:, :, j : j + 1] / scale, grid) * scale
            off = (values[:, :, j : j + 1] - rounded) / upper[:, j, j, None, None]
            values[:, :, j + 1 : end] -= off * upper[:, None, j, j + 1 : end]
            values[:, :, j], errors[:, :, j - first] = rounded[:, :, 0], off[:, :, 0]
        values[:, :, end:] -= errors @ upper[:, first:end, end:]
    return values


def _descend(wanted: Tensor, values: Tensor, scale: Tensor, gram: Tensor, grid: Grid, columns: int) -> None:
    """Coordinate descent on ``values``, in place, until no integer changes."""
    slope = (wanted - values) @ gram
    step = scale[:, :, 0]
    curvature = gram.diagonal(dim1=1, dim2=2)
    # An input that is always 0 doesn't care.
    inverse = torch.where(curvature > 0, 1 / curvature, 0.0)
    for _ in range(SWEEPS):
        changed = False
        for first in range(0, values.shape[2], BLOCK):
            end = min(first + BLOCK, values.shape[2])
            inside, near = gram[:, first:end, first:end], slope[:, :, first:end]
            before = values[:, :, first:end].clone()
            for j in range(first, end):
                best = values[:, :, j] + near[:, :, j - first] * inverse[:, None, j]
                if j < columns:
                    best = nearest(best / step, grid) * step
                near = near - (best - values[:, :, j])[:, :, None] * inside[:, None, j - first]
                values[:, :, j] = best
            change = values[:, :, first:end] - before
            changed = changed or bool((change[:, :, : columns - first].abs() > 0.5 * scale).any())
            slope -= change @ gram[:, first:end]
        if not changed:
            break


def _freed(wanted: Tensor, values: Tensor, gram: Tensor, columns: int) -> None:
    """The free columns that are best beside the integers, in place."""
    if columns < values.shape[2]:
        slope = (wanted - values) @ gram[:, :, columns:]
        values[:, :, columns:] += slope @ torch.linalg.pinv(gram[:, columns:, columns:], hermitian=True)
