"""Compressive measurement with binary patterns: the first layer of a network, whose weights live in hardware.

A digital micromirror device shows patterns of zeros and ones, a sensor's mask has +1 and -1. Each block of ``b x b``
pixels (or the whole field) is measured once a pattern: with the block's light ``x`` in R^n, n = b^2, and the patterns
as the rows of ``A``, values in {0, 1} or {-1, +1},

    y = A x,    A of (m, n),    m = round(ratio n).

Written as a convolution with a stride of one block this is an ordinary layer: it is traced, exported, compiled and
counted like any other (Shi et al., *Deep Networks for Compressed Sensing*, ICME 2017). What the network is fed is
``z = S (y - l A 1) = S A (x - l)``, with the level l of light taken off and one factor a pattern, so that all
measurements have much the same range and one grid of 8 bits serves them. The factors are the scales of the weight's
rows, which stay binary, and ``-l S A 1`` is its bias.

A device has light and no negative light. Three ways to what a mask of +1 and -1 would measure from patterns p of 0
and 1, with ``A = 2 P - 1``: a pattern and its complement, ``y = p x - (1 - p) x`` (``differential=True``, two exposures
a measurement); the first pattern all ones and ``y = 2 p x - 1 x`` for the others (``differential="mean"``, one
exposure a measurement and the same noise twice); or none, where the network takes ``P x`` as it is.

The initial estimate is linear, ``E z + e``; :mod:`compress.quantize.sensing_start` has its closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import BadInput, UnknownName
from compress.quantize.binary import VALUES, BinaryWeight, Estimator, Values
from compress.quantize.detector import Noise
from compress.quantize.pattern_constraints import Constraint, signs
from compress.quantize.sensing_geometry import field_size, measurements, padded, roughest_row, smooth_rows

Differential = bool | Literal["mean"]


class SensingLayer(nn.Module):
    """Binary measurement of every block of an image.

    Called with images (N, C, H, W), H and W multiples of the block, it gives the network's measurements ``z``
    (N, C m, H/b, W/b), channel by channel; in training with ``noise`` they are noisy. Images are light, or
    ``(light - light_mean) / light_std`` where those buffers say so, as classifiers take them.

    The patterns are fixed unless :meth:`learn` was called: ``weight`` is a parameter without gradient, so fine-tuning
    and pruning leave alone what the hardware has.

    Attributes:
        ratio: measurements a pixel, as asked for.
        block: side of a block in pixels; None for the whole field.
        size: height and width of what is measured at once.
        channels: of the images; each is measured with the same patterns.
        measurements: patterns, m.
        weight: (m, 1, height, width) float32, the operator's values times one factor a row.
        shift: (m,) the bias.
        level: a number, what is taken off the light.
        expand: the learned initial estimate, a convolution of 1x1 from m to n.
        learning: the latent weights while the patterns are learned.
        in_hardware: the parameters that pruning and quantization have to leave as they are.
    """

    in_hardware = ("weight",)

    def __init__(
        self,
        ratio: float,
        *,
        block: int | None = 32,
        size: tuple[int, int] | None = None,
        channels: int = 1,
        values: Values = "+-1",
        constraint: Constraint | None = None,
        noise: Noise | None = None,
        differential: Differential = False,
    ) -> None:
        """Make it, with the smoothest patterns first and the estimate of least norm; no randomness.

        Args:
            ratio: measurements a pixel, above 0 and at most 1: 10% is 0.1.
            block: side of a block; None measures the whole field at once, and needs ``size``.
            size: height and width of the images, where the whole field is measured.
            channels: of the images.
            values: what the hardware shows: 0 and 1, or -1 and +1.
            constraint: what each pattern has to be like.
            noise: of training; evaluation has none unless :meth:`measure` is asked.
            differential: see the module; ``values="+-1"`` with True is shown as pairs of 0 and 1.

        Raises:
            BadInput: less than one measurement, more than pixels, a block or size that is none, patterns of that
                size that can't meet the constraint.
            UnknownName: no such values.
        """
        super().__init__()
        if values not in VALUES:
            raise UnknownName("values of patterns", values, VALUES)
        if channels < 1:
            raise BadInput(f"images of {channels} channels: give 1 for grey, 3 for colour")
        if differential not in (True, False, "mean"):
            raise UnknownName("way of differential measurement", str(differential), ("True", "False", "mean"))
        self.size = field_size(block, size)
        pixels = self.size[0] * self.size[1]
        self.measurements = measurements(ratio, pixels)
        self.ratio, self.block, self.channels, self.values = float(ratio), block, channels, values
        self.constraint, self.noise, self.differential = constraint, noise, differential
        self.learning: BinaryWeight | None = None
        self.weight = nn.Parameter(torch.zeros(self.measurements, 1, *self.size), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(self.measurements), requires_grad=False)
        self.level: Tensor
        self.light_mean: Tensor
        self.light_std: Tensor
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("light_mean", torch.zeros(channels), persistent=False)
        self.register_buffer("light_std", torch.ones(channels), persistent=False)
        self.expand = nn.utils.skip_init(nn.Conv2d, self.measurements, pixels, 1)
        rows = smooth_rows(self.measurements, *self.size)
        if constraint is not None:
            # The roughest function decides between equal entries, so that no pattern becomes another one.
            rows = self.projected(rows + 1e-3 * roughest_row(*self.size))
        self.set_patterns((signs(rows) > 0).view(self.measurements, *self.size))
        _least_norm(self)

    # --- patterns ----------------------------------------------------------------------------------------------------

    @property
    def pixels(self) -> int:
        """Of one block, n."""
        return self.size[0] * self.size[1]

    def signs(self) -> Tensor:
        """The patterns as rows of -1 and +1, whatever the hardware calls them, (m, n) float32, no gradient."""
        if self.learning is not None and self.training:
            return self._learned_signs()
        rows = self.weight.detach().flatten(1)
        return torch.where(rows > 0, 1.0, -1.0)

    def patterns(self) -> Tensor:
        """What the hardware shows, (measurements, height, width) float32: {0, 1} or {-1, +1} as ``values`` says."""
        found = self.signs().view(-1, *self.size)
        return (found + 1) / 2 if self.values == "01" else found

    def frames(self) -> Tensor:
        """What a device of 0 and 1 shows, one frame an exposure, (exposures, height, width) uint8.

        A differential layer's exposures are each pattern and then its complement.
        """
        ones = (self.signs() > 0).view(-1, *self.size)
        if self.differential is True:
            ones = torch.stack([ones, ~ones], 1).flatten(0, 1)
        return ones.to(torch.uint8)

    def set_patterns(self, patterns: Tensor) -> None:
        """Take these patterns and stop learning any; the factors and the level stay.

        Args:
            patterns: (measurements, height, width) of two values: boolean, {0, 1} or {-1, +1}.

        Raises:
            BadInput: another shape, other values, or patterns that the constraint doesn't allow.
        """
        shape = (self.measurements, *self.size)
        if tuple(patterns.shape) != shape:
            raise BadInput(f"patterns of shape {tuple(patterns.shape)}: give {shape}, measurements, height and width")
        found = set(patterns.detach().unique().tolist())
        if not (found <= {0, 1} or found <= {-1, 1}):
            shown = ", ".join(f"{value:g}" for value in sorted(found)[:4])
            raise BadInput(f"patterns have the values {shown}, ...: give 0 and 1, or -1 and +1")
        rows = torch.where(patterns > 0, 1.0, -1.0).flatten(1)
        self.check(rows)
        # The factors of the weights that were there; one pixel's light at the start.
        factor = self.factors()
        self.learning = None
        self._put(rows, factor)

    def check(self, rows: Tensor) -> None:
        """Refuse patterns that violate what the layer's hardware asks of them.

        Args:
            rows: (measurements, pixels) of -1 and +1.

        Raises:
            BadInput: the constraint's sentence.
        """
        if self.differential == "mean" and not bool((rows[0] > 0).all()):
            raise BadInput('differential="mean" needs a first pattern of ones alone; put it there')
        asked = self._constrained(rows)
        wrong = self.constraint.violation(asked) if self.constraint is not None and len(asked) else None
        if wrong is not None:
            raise BadInput(f"the patterns violate the hardware's constraint: {wrong}; project them first")

    def _constrained(self, rows: Tensor) -> Tensor:
        return rows[1:] if self.differential == "mean" else rows

    def projected(self, rows: Tensor) -> Tensor:
        """The nearest allowed patterns, -1 and +1; the first pattern of ``"mean"`` stays ones."""
        found = signs(rows) if self.constraint is None else rows
        if self.differential == "mean":
            rest = found[1:] if self.constraint is None or len(rows) < 2 else self.constraint.project(found[1:])
            return torch.cat([torch.ones_like(rows[:1]), rest])
        return found if self.constraint is None else self.constraint.project(found)

    # --- learning the patterns ---------------------------------------------------------------------------------------

    def learn(self, start: Tensor | None = None, *, estimator: Estimator = "clipped", margin: float = 0.3) -> None:
        """Train the patterns from here on: their latent weights become parameters.

        Args:
            start: latent weights (measurements, height, width), signed; the patterns themselves by default.
            estimator: of the gradient, see :mod:`compress.quantize.binary`.
            margin: the largest latent weight of a row: what has to change before a pixel turns.

        Raises:
            BadInput: latent weights that give no allowed patterns.
        """
        latent = self.signs() if start is None else start.detach().float().flatten(1)
        factor = self.factors()
        projecting = _Projection(self)
        self.learning = BinaryWeight(
            latent.view(self.weight.shape), estimator=estimator, constraint=projecting if self._restricted() else None
        )
        with torch.no_grad():
            self.learning.latent.mul_(margin)
        self.learning.to(self.weight.device)
        self._put(self._learned_signs(), factor)

    def fix(self) -> None:
        """Keep the patterns that were learned, and drop their latent weights."""
        self._write()
        self.learning = None

    def train(self, mode: bool = True) -> SensingLayer:
        """As in any module; leaving training brings ``weight`` up to date with what was learned."""
        if not mode:
            self._write()
        super().train(mode)
        return self

    def penalty(self) -> Tensor:
        """The constraint's, with gradients while patterns are learned; a scalar."""
        if self.constraint is None:
            return self.weight.new_zeros(())
        rows = self.signs() if self.learning is None else self.learning().flatten(1)
        return self.constraint.penalty(self._constrained(rows))

    def _restricted(self) -> bool:
        return self.constraint is not None or self.differential == "mean"

    def _learned_signs(self) -> Tensor:
        assert self.learning is not None
        return self.learning.signs().flatten(1)

    def _write(self) -> None:
        if self.learning is not None:
            self._put(self._learned_signs(), self.factors())

    def _put(self, rows: Tensor, factor: Tensor) -> None:
        """Weight and bias of these patterns, -1 and +1."""
        with torch.no_grad():
            weight = self.operator_of(rows.to(self.weight)) * factor.to(self.weight)[:, None]
            self.weight.copy_(weight.view(self.weight.shape))
            self.shift.copy_(-self.level * weight.sum(1))

    # --- measuring ---------------------------------------------------------------------------------------------------

    def _signed(self) -> bool:
        """True where a measurement is what -1 and +1 would give."""
        return self.values == "+-1" or self.differential is not False

    def operator_of(self, rows: Tensor) -> Tensor:
        """The matrix A of patterns (m, n) given as -1 and +1."""
        return rows if self._signed() else (rows + 1) / 2

    def operator(self) -> Tensor:
        """The matrix A that :meth:`measure` applies, (m, n) float32; differentiable while patterns are learned."""
        if self.learning is not None and self.training:
            return self.operator_of(self.learning().flatten(1))
        return self.operator_of(self.signs())

    def factors(self) -> Tensor:
        """``s``, one a pattern, (m,); 1 / n before any was set."""
        largest = self.weight.detach().abs().flatten(1).amax(1)
        return torch.where(largest > 0, largest, 1 / self.pixels)

    def set_range(self, factor: Tensor, level: float) -> None:
        """Set S and l of ``z = S A (x - l)``: factors (m,) above 0, and the level of light."""
        if not bool((factor > 0).all() and factor.isfinite().all()):
            raise BadInput("factors of measurements have to be finite and above 0")
        self.level.fill_(level)
        self._put(self.signs(), factor)

    def set_light(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Say that images are ``(light - mean) / std``, one number a channel."""
        if len(mean) != self.channels or len(std) != self.channels or min(std) <= 0:
            raise BadInput(f"mean and std of light: give {self.channels} numbers each, std above 0")
        self.light_mean.copy_(torch.tensor(mean))
        self.light_std.copy_(torch.tensor(std))

    def standardize(self, y: Tensor) -> Tensor:
        """What the network is fed of measurements as the hardware gives them, (N, C m, ...) both."""
        factor, shift = self.factors(), self._effective()[1]
        factor, shift = (each.repeat(self.channels).view(1, -1, 1, 1) for each in (factor, shift))
        return y * factor + shift

    def measure(
        self, images: Tensor, *, noise: Noise | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """What the hardware measures, ``y`` (N, C m, H/b, W/b): sums of light, the light of a white pixel being 1.

        Args:
            images: light (N, C, H, W).
            noise: of each exposure; none by default.
            generator: of the noise; torch's own by default.

        Raises:
            BadInput: an image smaller than a block, no multiple of it, or of other channels; light below 0 with noise.
        """
        self.check_images(images)
        operator = self.operator().view(self.weight.shape)
        return torch.cat([self._one(part, operator, noise, generator) for part in images.split(1, 1)], 1)

    def _blockwise(self, images: Tensor, operator: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self.training:
            return F.conv2d(images, operator, bias, stride=self.size)
        # Mixed precision is not for measurements. And as sums over unshuffled pixels they are the same, without the
        # slow gradient of a convolution with a stride of its whole kernel.
        with torch.autocast(images.device.type, enabled=False):
            if self.block is None:
                return F.conv2d(images.float(), operator, bias, stride=self.size)
            blocks = F.pixel_unshuffle(images.float(), self.block)
            return F.conv2d(blocks, operator.view(-1, self.pixels, 1, 1), bias)

    def _one(self, light: Tensor, operator: Tensor, noise: Noise | None, generator: torch.Generator | None) -> Tensor:
        y = self._blockwise(light, operator)
        if noise is None:
            return y
        total = self._blockwise(light, torch.ones_like(operator[:1]))
        full = float(self.pixels)
        if not self._signed():
            return noise.of(y, float((self.signs() > 0).sum(1).max()), generator)
        if self.differential is False:
            return noise.of_difference(y, total, full, generator)
        ones = noise.of((total + y) / 2, full, generator)
        if self.differential == "mean":
            # The first pattern is all ones: y_0 = 1 x, the others y_m = 2 p_m x - 1 x with that very exposure.
            return torch.cat([ones[:, :1], 2 * ones[:, 1:] - ones[:, :1]], 1)
        return ones - noise.of((total - y) / 2, full, generator)

    def adjoint(self, y: Tensor) -> Tensor:
        """``A^T y`` block by block: (N, C m, h, w) to (N, C, H, W)."""
        operator = self.operator().view(self.weight.shape)
        return torch.cat([F.conv_transpose2d(p, operator, stride=self.size) for p in y.split(self.measurements, 1)], 1)

    def initial(self, y: Tensor) -> Tensor:
        """The linear estimate of the light from measurements as the hardware gives them: (N, C m, h, w) to
        (N, C, H, W)."""
        return self.reexpand(self.standardize(y))

    def reexpand(self, z: Tensor) -> Tensor:
        """The linear estimate from the network's measurements ``z``, as :meth:`forward` gives them."""
        return self._expanded(z, self.expand.bias)

    def correction(self, z: Tensor) -> Tensor:
        """What a difference of measurements changes in the linear estimate: :meth:`reexpand` without its bias."""
        return self._expanded(z, None)

    def _expanded(self, z: Tensor, bias: Tensor | None) -> Tensor:
        parts = z.split(self.measurements, 1) if self.channels > 1 else (z,)
        found = [self._pixels(self._linear(part, bias)) for part in parts]
        return torch.cat(found, 1) if self.channels > 1 else found[0]

    def _linear(self, z: Tensor, bias: Tensor | None) -> Tensor:
        if not self.training:
            return F.conv2d(z, self.expand.weight, bias)
        with torch.autocast(z.device.type, enabled=False):
            return F.conv2d(z.float(), self.expand.weight, bias)

    def _pixels(self, blocks: Tensor) -> Tensor:
        if self.block is not None:
            return F.pixel_shuffle(blocks, self.block)
        return blocks.reshape(-1, 1, *self.size)

    def forward(self, images: Tensor) -> Tensor:
        """``z`` (N, C m, H/b, W/b) of images (N, C, H, W); in training with the layer's noise."""
        self.check_images(images)
        return self._noisy(images) if self.training and self.noise is not None else self.exact(images)

    def exact(self, images: Tensor) -> Tensor:
        """``z`` without noise, (N, C m, H/b, W/b)."""
        weight, shift = self._effective()
        return self._channelwise(images, weight, shift)

    def difference(self, images: Tensor) -> Tensor:
        """``S A d``: by how much images that differ by ``d`` (N, C, H, W) differ in ``z``."""
        return self._channelwise(images, self._effective()[0], None)

    def _effective(self) -> tuple[Tensor, Tensor]:
        """Weight and bias; with gradients while patterns are learned."""
        if self.learning is None or not self.training:
            return self.weight, self.shift
        weight = self.operator().view(self.weight.shape) * self.factors().view(-1, 1, 1, 1)
        return weight, -self.level * weight.flatten(1).sum(1)

    def _channelwise(self, images: Tensor, weight: Tensor, shift: Tensor | None) -> Tensor:
        parts = images.split(1, 1) if self.channels > 1 else (images,)
        found = [self._blockwise(part, weight, shift) for part in parts]
        return torch.cat(found, 1) if self.channels > 1 else found[0]

    def _noisy(self, images: Tensor) -> Tensor:
        mean, std = (each.view(1, -1, 1, 1) for each in (self.light_mean, self.light_std))
        light = images * std + mean
        read = self.measure(light.clamp_min(0), noise=self.noise)
        # Back to the images' own scale: y(image) = (y(light) - mean A 1) / std.
        sums = self.operator().sum(1)
        mean, std = (
            each.repeat_interleave(self.measurements).view(1, -1, 1, 1) for each in (self.light_mean, self.light_std)
        )
        return self.standardize((read - mean * sums.repeat(self.channels).view(1, -1, 1, 1)) / std)

    def check_images(self, images: Tensor) -> None:
        """Refuse images that can't be measured.

        Raises:
            BadInput: see :meth:`measure`.
        """
        height, width = self.size
        if images.dim() != 4 or images.shape[1] != self.channels:
            raise BadInput(
                f"images of shape {tuple(images.shape)}: the sensing layer takes (N, {self.channels}, height, width)"
            )
        if images.shape[2] < height or images.shape[3] < width:
            raise BadInput(
                f"images of {images.shape[2]}x{images.shape[3]} are smaller than a block of {height}x{width}; "
                "give larger images or a smaller block"
            )
        if images.shape[2] % height or images.shape[3] % width:
            raise BadInput(
                f"images of {images.shape[2]}x{images.shape[3]} aren't whole blocks of {height}x{width}; pad them first"
            )

    def extra_repr(self) -> str:
        """The geometry, in torch's printing of modules."""
        what = "whole field" if self.block is None else "block"
        return (
            f"{self.measurements} patterns of {self.values}, {what} {self.size[0]}x{self.size[1]}, ratio {self.ratio:g}"
        )


class _Projection:
    """The layer's own projection as a constraint, the first pattern of ``"mean"`` included."""

    def __init__(self, layer: SensingLayer) -> None:
        # In a tuple the layer isn't a submodule of its own weights.
        self.layer = (layer,)

    def project(self, rows: Tensor) -> Tensor:
        """See :class:`Constraint`."""
        return self.layer[0].projected(rows)

    def violation(self, patterns: Tensor) -> str | None:
        """See :class:`Constraint`."""
        constraint = self.layer[0].constraint
        return None if constraint is None else constraint.violation(self.layer[0]._constrained(patterns))

    def penalty(self, patterns: Tensor) -> Tensor:
        """See :class:`Constraint`."""
        constraint = self.layer[0].constraint
        return (
            patterns.new_zeros(()) if constraint is None else constraint.penalty(self.layer[0]._constrained(patterns))
        )


def _least_norm(layer: SensingLayer) -> None:
    """The estimate of least norm, ``A^T (A A^T)^-1 y``: what is known without any image."""
    a = layer.operator().double()
    gram = a @ a.T
    ridge = 1e-9 * gram.diagonal().mean() * torch.eye(len(a), dtype=a.dtype)
    matrix = torch.linalg.solve(gram + ridge, a).T / layer.factors().double()
    with torch.no_grad():
        layer.expand.weight.copy_(matrix[:, :, None, None])
        assert layer.expand.bias is not None
        layer.expand.bias.copy_(-(matrix @ layer.shift.double()))


__all__ = ["Differential", "Noise", "SensingLayer", "Values", "measurements", "padded", "smooth_rows"]
