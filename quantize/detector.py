"""What a detector adds to the light that it measures: shot noise, read noise, the steps of an ADC."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.errors import BadInput

MOST_ADC_BITS = 24
ROUNDED = 1e-4
"""Light below 0 by no more is a rounding error."""


@dataclass(frozen=True)
class Noise:
    """What a detector adds to one exposure. The light of a white pixel is 1.

    With the exposure's light ``l`` and ``g = photons`` the detector counts ``N ~ Poisson(g l) + Normal(0, read^2)``
    electrons; an ADC of ``B`` bits rounds them to ``2^B - 1`` steps of the largest that any pattern can give, and
    clips. The measurement is ``N / g``, its variance ``l / g + (read / g)^2`` before the ADC.

    Attributes:
        photons: electrons that a white pixel gives in an exposure; None for no shot noise (then g is 1).
        read: standard deviation of the read noise, in electrons, or in the light of white pixels without ``photons``.
        adc_bits: from 1 to 24; None for no rounding.
    """

    photons: float | None = None
    read: float = 0.0
    adc_bits: int | None = None

    def __post_init__(self) -> None:
        if self.photons is not None and not (self.photons > 0 and math.isfinite(self.photons)):
            raise BadInput(
                f"photons {self.photons:g}: give the electrons of a white pixel, above 0, or None for no noise"
            )
        if not (self.read >= 0 and math.isfinite(self.read)):
            raise BadInput(f"read noise {self.read:g}: give a standard deviation of 0 or more")
        bits = self.adc_bits
        if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MOST_ADC_BITS):
            raise BadInput(
                f"ADC of {bits} bits: give a whole number from 1 to {MOST_ADC_BITS}, or None for no rounding"
            )

    def of(self, light: Tensor, full: float, generator: torch.Generator | None = None) -> Tensor:
        """A noisy reading of ``light``, same shape; the gradient passes as if there were no noise.

        Args:
            light: of one exposure each, 0 or more.
            full: the largest that an exposure can be: the ADC's full scale.
            generator: on the tensor's device; torch's own by default.

        Raises:
            BadInput: light below 0.
        """
        if float(light.detach().min()) < -ROUNDED:
            raise BadInput(f"the light of an exposure is {float(light.detach().min()):.3g}; light can't be negative")
        gain = self.photons or 1.0
        with torch.no_grad():
            read = light.clamp_min(0) * gain
            if self.photons is not None:
                read = torch.poisson(read, generator=generator)
            read = self._read(read, 0.0, full * gain, generator) / gain
        return light + (read - light).detach()

    def of_difference(self, light: Tensor, total: Tensor, full: float, generator: torch.Generator | None) -> Tensor:
        """A noisy reading of what a mask of +1 and -1 gives: both halves collected at once, read once.

        Args:
            light: the difference of the halves.
            total: their sum, of a shape that spreads over that of ``light``.
            full, generator: as in :meth:`of`; the ADC's range is from ``-full`` to ``full``.
        """
        gain = self.photons or 1.0
        with torch.no_grad():
            bright, dark = (((total + side * light) / 2).clamp_min(0) * gain for side in (1, -1))
            if self.photons is not None:
                bright, dark = (torch.poisson(each, generator=generator) for each in (bright, dark))
            read = self._read(bright - dark, -full * gain, full * gain, generator) / gain
        return light + (read - light).detach()

    def _read(self, electrons: Tensor, low: float, high: float, generator: torch.Generator | None) -> Tensor:
        if self.read:
            electrons = electrons + self.read * torch.randn(
                electrons.shape, generator=generator, device=electrons.device, dtype=electrons.dtype
            )
        if self.adc_bits is not None:
            step = (high - low) / (2**self.adc_bits - 1)
            electrons = ((electrons.clamp(low, high) - low) / step).round() * step + low
        return electrons
