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

Measurements have long tails, as edges may run along a whole pattern, and one grid of 8 bits either cuts them off or is
coarse for all others. So evaluation, and with it every file, has them as three summands, each with a grid of its own,

    z = clip(z, -r, r) + max(z - r, 0) + min(z + r, 0),

of which the last two are nearly always zero and may be coarse. In float that changes nothing but the time: the patterns
and E are applied to each. Differences of measurements, which a network may put back, are split likewise, at an r of
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import BadInput
from compress.quantize.binary import Values
from compress.quantize.detector import ROUNDED, Noise
from compress.quantize.pattern_constraints import Constraint
from compress.quantize.sensing_geometry import field_size, measurements, padded, smooth_rows
from compress.quantize.sensing_patterns import INNER, BinaryPatterns, Differential


class SensingLayer(BinaryPatterns):
    """Binary measurement of every block of an image.

    Called with images (N, C, H, W), H and W multiples of the block, it gives the network's measurements ``z``
    (N, C m, H/b, W/b), channel by channel; in training with ``noise`` they are noisy. Images are light, or
    ``(light - light_mean) / light_std`` where those buffers say so, as classifiers take them.

    Attributes:
        ratio: measurements a pixel, as asked for.
        block: side of a block in pixels; None for the whole field.
        channels: of the images; each is measured with the same patterns.
        noise: of training.
        light_mean, light_std: (channels,) what images of light were normalized by.
        expand: the learned initial estimate, a convolution of 1x1 from m to n.
    """

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
        if channels < 1:
            raise BadInput(f"images of {channels} channels: give 1 for grey, 3 for colour")
        measured = field_size(block, size)
        count = measurements(ratio, measured[0] * measured[1])
        super().__init__(count, measured, values=values, constraint=constraint, differential=differential)
        self.ratio, self.block, self.channels, self.noise = float(ratio), block, channels, noise
        self.light_mean: Tensor
        self.light_std: Tensor
        self.register_buffer("light_mean", torch.zeros(channels), persistent=False)
        self.register_buffer("light_std", torch.ones(channels), persistent=False)
        self.expand = nn.utils.skip_init(nn.Conv2d, count, self.pixels, 1)
        _least_norm(self)

    # --- measuring ---------------------------------------------------------------------------------------------------

    def set_light(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Say that images are ``(light - mean) / std``, one number a channel."""
        if len(mean) != self.channels or len(std) != self.channels or min(std) <= 0:
            raise BadInput(f"mean and std of light: give {self.channels} numbers each, std above 0")
        self.light_mean.copy_(torch.tensor(mean))
        self.light_std.copy_(torch.tensor(std))

    def standardize(self, y: Tensor) -> Tensor:
        """What the network is fed of measurements as the hardware gives them, (N, C m, ...) both."""
        factor, shift = self.factors(), self.effective()[1]
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
        if noise is not None and float(images.detach().min()) < -ROUNDED:
            raise BadInput(f"images with light of {float(images.detach().min()):.3g}: light can't be negative")
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
        if not self.signed:
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

    def reexpand(self, *parts: Tensor) -> Tensor:
        """The linear estimate from the network's measurements, as :meth:`forward` or :meth:`parts` gives them."""
        found = self._expanded(parts[0], self.expand.bias)
        return found + self.correction(*parts[1:]) if len(parts) > 1 else found

    def correction(self, *parts: Tensor) -> Tensor:
        """What a difference of measurements changes in the linear estimate: :meth:`reexpand` without its bias."""
        found = self._expanded(parts[0], None)
        for part in parts[1:]:
            found = found + self._expanded(part, None)
        return found

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

    def parts(self, images: Tensor) -> tuple[Tensor, ...]:
        """What :meth:`forward` gives as summands, one in training; those of evaluation bear 8 bits, see the module."""
        if self.training:
            return (self(images),)
        self.check_images(images)
        return self._inner_and_outer(images, INNER, self.shift, self.shift_above, self.shift_below)

    def difference_parts(self, images: Tensor) -> tuple[Tensor, ...]:
        """What :meth:`difference` gives as summands, likewise."""
        if self.training:
            return (self.difference(images),)
        return self._inner_and_outer(images, self.inner_range, None, self.above, self.below)

    def _inner_and_outer(
        self, images: Tensor, r: float, shift: Tensor | None, above: Tensor, below: Tensor
    ) -> tuple[Tensor, ...]:
        # Each clip stands right behind its convolution, where integer kernels have it for nothing.
        inner = self._channelwise(images, self.weight, shift, lambda z: F.hardtanh(z, -r, r))
        over = self._channelwise(images, self.weight, above, F.relu)
        under = self._channelwise(images, self.weight, below, lambda z: z.clamp(max=0))
        return inner, over, under

    def exact(self, images: Tensor) -> Tensor:
        """``z`` without noise, (N, C m, H/b, W/b)."""
        return self._channelwise(images, *self.effective())

    def difference(self, images: Tensor) -> Tensor:
        """``S A d``: by how much images that differ by ``d`` (N, C, H, W) differ in ``z``."""
        return self._channelwise(images, self.effective()[0], None)

    def _channelwise(
        self, images: Tensor, weight: Tensor, shift: Tensor | None, clip: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        planes = images.split(1, 1) if self.channels > 1 else (images,)
        found = [self._blockwise(plane, weight, shift) for plane in planes]
        if clip is not None:
            found = [clip(z) for z in found]
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
