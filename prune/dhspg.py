r"""The dual half-space projected gradient step (DHSPG).

Chen et al., *OTOv2: Automatic, Generic, User-Friendly*, ICLR 2023, section 3.2 and algorithm 2. For a redundant
group with parameters :math:`x_g` the step is

.. math:: \tilde x_g = x_g - \alpha (\nabla f_g + \lambda_g x_g / \|x_g\|), \qquad
          x_g \leftarrow 0 \text{ if } \langle \tilde x_g, x_g \rangle < \epsilon \|x_g\|^2, \text{ else } \tilde x_g,

where :math:`\nabla f` is the gradient or what an optimizer makes of it (momentum, Adam). With :math:`\theta_g` the
angle between :math:`-\nabla f_g` and :math:`-x_g`, the direction lowers both the objective and the group's norm, that
is, it lies in the intersection of two half-spaces, if

.. math:: \lambda_g \in (-\cos\theta_g \|\nabla f_g\|, \; -\|\nabla f_g\| / \cos\theta_g)
          \quad \text{where} \quad \cos\theta_g < 0,

and for any positive :math:`\lambda_g` otherwise.

Three departures. The optimizer is whichever the user has: its step is taken, and :math:`d = x - x_{after}` stands for
:math:`\alpha \nabla f`, so that all of the above holds with :math:`p = \alpha \lambda_g` in place of
:math:`\lambda_g` (the bounds are homogeneous), also where parameter groups have learning rates of their own. And
:math:`\lambda_g` isn't a constant to tune: of the interval that number is taken which brings the group's norm to zero
evenly by a given step, so that the sparsity that was asked for is reached then. A group that the objective holds on
to is not brought there inside the half-spaces, and setting it to zero from afar is a jump that training has to make
up for; so the upper bound is lifted for the last steps (``bounded=False``), in which its norm falls evenly instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

INTERIOR = 0.99
"""How far into the open interval of penalties a step goes at most, as a share of its length."""


@dataclass(frozen=True)
class Part:
    """Where units have elements in one parameter.

    Attributes:
        parameter: the tensor.
        axis: the axis that ``indices`` count along.
        indices: int64 (n,), on the parameter's device.
        owners: int64 (n,), the unit that each index belongs to.
    """

    parameter: Tensor
    axis: int
    indices: Tensor
    owners: Tensor


@dataclass(frozen=True)
class Blocks:
    """The parameters of several units, as one vector a unit that is spread over several tensors."""

    parts: tuple[Part, ...]
    units: int

    def gather(self, what: Callable[[Tensor], Tensor | None] = lambda parameter: parameter) -> list[Tensor]:
        """A copy of the units' elements: for each part (n, elements an index).

        ``what`` maps a parameter to a tensor of its shape, such as its gradient; None counts as zeros.
        """
        found = []
        for part in self.parts:
            source = what(part.parameter)
            rows = part.parameter if source is None else source
            rows = rows.detach().movedim(part.axis, 0).index_select(0, part.indices).reshape(len(part.indices), -1)
            found.append(torch.zeros_like(rows) if source is None else rows)
        return found

    def put(self, values: Sequence[Tensor]) -> None:
        """Write what :meth:`gather` gave the form of."""
        for part, value in zip(self.parts, values, strict=True):
            rows = part.parameter.detach().movedim(part.axis, 0)
            rows.index_copy_(0, part.indices, value.reshape(len(part.indices), *rows.shape[1:]).to(rows.dtype))

    def dot(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """The inner product of each unit's two vectors, float64 (units,)."""
        total = torch.zeros(self.units, dtype=torch.float64, device=self.device)
        for part, left, right in zip(self.parts, a, b, strict=True):
            total.index_add_(0, part.owners, (left.double() * right.double()).sum(1))
        return total

    def scaled(self, values: Sequence[Tensor], factors: Tensor) -> list[Tensor]:
        """Each unit's vector times its factor (units,)."""
        return [
            value * factors.to(value.dtype)[part.owners][:, None]
            for part, value in zip(self.parts, values, strict=True)
        ]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parts[0].parameter.device


def penalty(dd: Tensor, dx: Tensor, xx: Tensor, wanted: Tensor, bounded: bool = True) -> Tensor:
    """The penalty coefficients p, at least 0: each unit moves by ``-(d + p x / |x|)``.

    Args:
        dd, dx, xx: inner products of the optimizer's step d (parameters before less after) and the parameters x, (n,).
        wanted: by how much each unit's norm is to fall, (n,), at least 0.
        bounded: False lifts the upper bound.

    The norm falls by ``dx / |x| + p`` to first order, so p is what ``wanted`` lacks; where the optimizer makes the
    unit grow (dx < 0) p stays inside ``(-dx / |x|, -dd |x| / dx)``, the dual half-space.
    """
    norm = xx.sqrt().clamp_min(torch.finfo(xx.dtype).tiny)
    towards_zero = dx / norm
    grows = towards_zero < 0
    low = (-towards_zero).clamp_min(0)
    high = torch.where(grows, dd / low.clamp_min(torch.finfo(xx.dtype).tiny), torch.inf)
    lacks = (wanted - towards_zero).clamp_min(0)
    if not bounded:
        return lacks
    limited = torch.minimum(lacks, low + INTERIOR * (high - low).clamp_min(0))
    return torch.where(grows, limited, lacks)


def half_space_step(
    blocks: Blocks,
    before: Sequence[Tensor],
    alive: Tensor,
    remaining: int,
    epsilon: float = 0.0,
    bounded: bool = True,
) -> tuple[Tensor, Tensor]:
    """Finish the step of redundant units, in place, after the optimizer has made its own.

    Args:
        blocks: of the redundant units.
        before: their elements before the optimizer's step.
        alive: bool (units,), False for those that are zero and stay so.
        remaining: steps left to bring the norms to zero, this one included, at least 1; with 1 all become zero.
        epsilon: of the half-space, in [0, 1).
        bounded: False lifts the penalty's upper bound.

    Returns:
        Which units are alive afterwards, and the norm of each before this step, float64 (units,).
    """
    after = blocks.gather()
    step = [old - new for old, new in zip(before, after, strict=True)]
    xx, dx, dd = blocks.dot(before, before), blocks.dot(step, before), blocks.dot(step, step)
    norm = xx.sqrt()
    p = penalty(dd, dx, xx, norm / remaining, bounded)
    shrink = torch.where(norm > 0, p / norm.clamp_min(torch.finfo(xx.dtype).tiny), torch.zeros_like(p))
    moved = [new - pull for new, pull in zip(after, blocks.scaled(before, shrink), strict=True)]
    crosses = blocks.dot(moved, before) < epsilon * xx
    stays = alive & ~crosses & (xx > 0) & torch.full_like(alive, remaining > 1)
    # Not a product with 0: a parameter that is not finite would stay so.
    blocks.put(
        [
            torch.where(stays[part.owners][:, None], value, torch.zeros_like(value))
            for part, value in zip(blocks.parts, moved, strict=True)
        ]
    )
    return stays, norm
