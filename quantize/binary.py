"""Binary weights: two values in the forward pass, gradients by an estimator in the backward pass.

A layer keeps real weights ``w`` (latent) and computes with ``b = sign(w)`` in {-1, +1}, or ``(b + 1) / 2`` in {0, 1},
times a scale. ``sign`` has the derivative 0 almost everywhere, so the backward pass takes that of another function
``g``; which one is the estimator:

    identity   g'(w) = 1                                   Bengio et al. 2013 (brevitas's BinaryQuant)
    clipped    g'(w) = 1 where |w| <= 1, else 0            Courbariaux et al. 2016 (brevitas's ClampedBinaryQuant)
    ede        g(w) = k tanh(t w), k = max(1, 1/t), so     Qin et al., IR-Net, CVPR 2020, equations 10 and 11
               g'(w) = k t (1 - tanh(t w)^2)
    reste      g(w) = sign(w) |w|^(1/o), so                Wu et al., ReSTE, ICCV 2023, equations 7 to 9
               g'(w) = |w|^((1 - o)/o) / o

``ede`` and ``reste`` go from a straight line to the sign as training goes on: with ``p`` the share of it that is done,
``t = 0.1 * 100^p`` and ``o = 1 + 2 p``. ReSTE's derivative is unbounded at 0: below ``|w| = 0.1`` the secant's slope
``0.1^(1/o) / 0.1`` stands for it, and beyond 1.5 it is 0, as in the paper.

Latent weights have a size of about 1 here. What a :class:`compress.quantize.pattern_constraints.Constraint` asks for
is met exactly in every forward pass: the values are the projection's, the gradient is taken at the distance from the
projection's threshold.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import BadInput, UnknownName
from compress.quantize.pattern_constraints import Constraint, signs, threshold

Values = Literal["01", "+-1"]
Estimator = Literal["identity", "clipped", "ede", "reste"]
Scale = Literal["none", "mean", "learned"]
ESTIMATORS: tuple[Estimator, ...] = ("identity", "clipped", "ede", "reste")
VALUES: tuple[Values, ...] = ("01", "+-1")
SCALES: tuple[Scale, ...] = ("none", "mean", "learned")

RESTE_INNER, RESTE_OUTER, RESTE_POWER = 0.1, 1.5, 3.0
LIMITS: dict[Estimator, float] = {"clipped": 1.0, "reste": RESTE_OUTER}
"""Where an estimator's gradient ends. Latent weights are kept within, in training, so that they can come back."""

EDE_FROM, EDE_TO = 0.1, 10.0

ADAM_EPSILON = 1e-14
"""For Adam, where latent weights are trained: the gradient of one pixel of a pattern, of a mean over images' pixels, is
far below the usual 1e-8, which would hold all of them still."""


def slope(w: Tensor, estimator: Estimator, progress: float = 1.0) -> Tensor:
    """``g'(w)`` of the estimator, the shape of ``w``.

    Args:
        w: latent weights.
        estimator: one of :data:`ESTIMATORS`.
        progress: share of the training that is done, in [0, 1].
    """
    if estimator == "identity":
        return torch.ones_like(w)
    if estimator == "clipped":
        return (w.abs() <= 1).to(w.dtype)
    if estimator == "ede":
        t = float(EDE_FROM * (EDE_TO / EDE_FROM) ** progress)
        flat: Tensor = 1 - torch.tanh(t * w).square()
        return max(1.0, 1 / t) * t * flat
    if estimator == "reste":
        o = 1 + (RESTE_POWER - 1) * progress
        size = w.abs()
        inside = size.clamp_min(RESTE_INNER) ** ((1 - o) / o) / o
        found = torch.where(size < RESTE_INNER, torch.full_like(w, RESTE_INNER ** (1 / o) / RESTE_INNER), inside)
        return torch.where(size > RESTE_OUTER, torch.zeros_like(w), found)
    raise UnknownName("estimator", estimator, ESTIMATORS)


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, estimator: Estimator, progress: float) -> Tensor:
        ctx.save_for_backward(w)
        ctx.how = (estimator, progress)
        return signs(w)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (w,) = ctx.saved_tensors
        return gradient * slope(w, *ctx.how), None, None


def sign(w: Tensor, estimator: Estimator = "clipped", progress: float = 1.0) -> Tensor:
    """-1 and +1 (0 becomes +1), with the estimator's gradient; the shape and dtype of ``w``.

    ``identity`` and ``clipped`` are brevitas's ``BinaryQuant`` and ``ClampedBinaryQuant`` at the scale 1.
    """
    if estimator not in ESTIMATORS:
        raise UnknownName("estimator", estimator, ESTIMATORS)
    if estimator in ("identity", "clipped"):
        found: Tensor = _of_brevitas(estimator == "clipped")(w)[0]
        return found
    return _Sign.apply(w, estimator, progress)  # type: ignore[no-any-return,no-untyped-call]  # torch's


def _of_brevitas(clamped: bool) -> nn.Module:
    from brevitas.core.quant import BinaryQuant, ClampedBinaryQuant
    from brevitas.core.scaling import ConstScaling

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: nn.Module = (ClampedBinaryQuant if clamped else BinaryQuant)(ConstScaling(1.0))
    return found


class BinaryWeight(nn.Module):
    """The binary weight of a layer: real latent weights, and what they are rounded to.

    Called without arguments it gives the weight to compute with, (outputs, ...), with gradients. A row is one
    output's weights, flattened.

    Attributes:
        latent: the real weights, trained.
        progress: share of the training that is done, in [0, 1]; the training loop sets it, for ``ede`` and ``reste``.
    """

    def __init__(
        self,
        start: Tensor,
        *,
        values: Values = "+-1",
        scale: Scale = "none",
        estimator: Estimator = "clipped",
        constraint: Constraint | None = None,
    ) -> None:
        """Make it.

        Args:
            start: latent weights (outputs, ...), of any size: they are divided by their largest magnitude, row by row.
            values: what a zero of the hardware is: 0 or -1.
            scale: ``"none"``; ``"mean"``, one an output, the mean magnitude of its latent weights, which is the one
                of least squared error (Rastegari et al., XNOR-Net, ECCV 2016, equation 6); or ``"learned"``, which
                starts there.
            estimator: of the gradient.
            constraint: what the rows have to be like.

        Raises:
            BadInput: the constraint can't be met by rows of that length.
            UnknownName: no such values, scale or estimator.
        """
        super().__init__()
        for kind, name, known in (("values", values, VALUES), ("scale", scale, SCALES)):
            if name not in known:
                raise UnknownName(f"{kind} of binary weights", name, known)
        if estimator not in ESTIMATORS:
            raise UnknownName("estimator", estimator, ESTIMATORS)
        rows = start.detach().float().flatten(1)
        largest = rows.abs().amax(1, keepdim=True)
        self.values, self.scaling, self.estimator, self.constraint = values, scale, estimator, constraint
        self.progress = 0.0
        self.latent = nn.Parameter((rows / torch.where(largest > 0, largest, 1.0)).view(start.shape))
        self.log_scale: nn.Parameter | None = None
        if scale == "learned":
            self.log_scale = nn.Parameter(rows.abs().mean(1).clamp_min(1e-8).log())
        self.factor: Tensor
        self.register_buffer("factor", largest.flatten(), persistent=True)
        self.signs()

    def signs(self) -> Tensor:
        """The rows' -1 and +1, as the constraint has them, (outputs, ...), without gradients."""
        with torch.no_grad():
            return self._project(self.latent.flatten(1)).view(self.latent.shape)

    def _project(self, rows: Tensor) -> Tensor:
        return signs(rows) if self.constraint is None else self.constraint.project(rows)

    def binary(self) -> Tensor:
        """The values of the hardware, {0, 1} or {-1, +1}, no scale, without gradients."""
        found = self.signs()
        return (found + 1) / 2 if self.values == "01" else found

    def scale(self) -> Tensor:
        """One factor an output, (outputs,); ones without scale."""
        if self.log_scale is not None:
            return self.log_scale.exp()
        rows = self.latent.flatten(1)
        if self.scaling == "mean":
            return rows.abs().mean(1) * self.factor
        return rows.new_ones(len(rows))

    def penalty(self) -> Tensor:
        """The constraint's, of the rows with gradients; a scalar."""
        rows = self._differentiable().flatten(1)
        return rows.new_zeros(()) if self.constraint is None else self.constraint.penalty(rows)

    def _differentiable(self) -> Tensor:
        limit = LIMITS.get(self.estimator)
        if limit is not None and self.training:
            with torch.no_grad():
                self.latent.clamp_(-limit, limit)
        rows = self.latent.flatten(1)
        if self.constraint is None:
            return sign(rows, self.estimator, self.progress).view(self.latent.shape)
        with torch.no_grad():
            wanted = self.constraint.project(rows)
        estimated = sign(rows - threshold(rows, wanted), self.estimator, self.progress)
        # Ties at the threshold, and rows that another row decides, have the projection's values, with the gradient.
        return (estimated + (wanted - estimated).detach()).view(self.latent.shape)

    def forward(self) -> Tensor:
        """The weight, (outputs, ...) float32."""
        found = self._differentiable()
        if self.values == "01":
            found = (found + 1) / 2
        return found * self.scale().view(-1, *[1] * (self.latent.dim() - 1))


class _Binary(nn.Module):
    """A layer whose weight is binary.

    In training it computes with its latent weights' estimate. :meth:`eval` writes the binary weight into ``weight``,
    an ordinary parameter without gradient, which is what evaluation, tracing and export see; :meth:`fix` drops the
    latent weights for good.
    """

    def __init__(self, binary: BinaryWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.binary: BinaryWeight | None = binary
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.weight = nn.Parameter(binary().detach().clone(), requires_grad=False)

    def train(self, mode: bool = True) -> _Binary:
        """As in any module; leaving training brings ``weight`` up to date."""
        super().train(mode)
        if not mode and self.binary is not None:
            with torch.no_grad():
                self.weight.copy_(self.binary())
        return self

    def fix(self) -> None:
        """Stop training the weight: keep the binary one, drop the latent ones."""
        if self.binary is not None:
            with torch.no_grad():
                self.weight.copy_(self.binary())
            self.binary = None

    def _weight(self) -> Tensor:
        if self.training and self.binary is not None:
            found: Tensor = self.binary()
            return found
        return self.weight


class BinaryLinear(_Binary):
    """``nn.Linear`` with a binary weight."""

    def __init__(self, like: nn.Linear, **how: Any) -> None:
        """Make it.

        Args:
            like: an ordinary layer, whose weights are where the latent ones start.
            how: the arguments of :class:`BinaryWeight`.
        """
        super().__init__(BinaryWeight(like.weight, **how), like.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ..., inputs) to (N, ..., outputs)."""
        return F.linear(x, self._weight(), self.bias)


class BinaryConv2d(_Binary):
    """``nn.Conv2d`` with a binary weight; padding by zeros."""

    def __init__(self, like: nn.Conv2d, **how: Any) -> None:
        """Make it.

        Args:
            like: an ordinary layer, whose weights are where the latent ones start.
            how: the arguments of :class:`BinaryWeight`.

        Raises:
            BadInput: the layer pads by something other than zeros.
        """
        if like.padding_mode != "zeros":
            raise BadInput(f"a binary convolution pads by zeros, not by {like.padding_mode}; pad in front of it")
        super().__init__(BinaryWeight(like.weight, **how), like.bias)
        self.geometry: dict[str, Any] = {
            "stride": like.stride,
            "padding": like.padding,
            "dilation": like.dilation,
            "groups": like.groups,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, outputs, H', W')."""
        return F.conv2d(x, self._weight(), self.bias, **self.geometry)
