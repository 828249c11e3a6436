"""Reconstruction from binary measurements: a small recursive network, and an unfolded one.

Both measure with a :class:`compress.quantize.sensing.SensingLayer`, whose weights are binary and live in the optics,
and have real weights behind it. They start from the layer's linear estimate E z + e and add to it; the last convolution
before each addition starts at zero, so an untrained network gives the linear estimate exactly, and training learns what
is missing.

**Recursive** (after Bai et al., *LSHR-Net*, Neurocomputing 406, 2020, whose parts are a binary sensing layer trained
with real-valued ones behind it, low-resolution maps, recursions with shared weights and sub-pixel upsampling). One
cell works on maps of 1/r of the image's height and width and is applied T times with the same weights:

    h_t = h_{t-1} + g(h_{t-1} + down(x_{t-1})),     g: convolutions of 3x3 with ReLUs in front
    u_t = x_{t-1} + shuffle_r(tail(relu(h_t)))      Shi et al., sub-pixel convolution, CVPR 2016
    x_t = u_t + E S A (x_0 - u_t)                   what was measured is put back

Images are carried about e, which is nearly what the layer takes off the light: x_0 = E z, and the result is x_T + e. So
they lie about zero, symmetric grids of 8 bits use both halves of their integers, and the zeros outside the border,
which convolutions see, are grey and not black.

The line that puts back isn't in the paper. ``E`` is the linear estimate's, the patterns are the layer's own, so it adds
no weights. As E starts, ``A x_t`` is nearly ``A x_0``, whatever the cell did: what was measured, as far as noise lets
the linear estimate believe it. The difference has a small range, which 8 bits divide finely.

**Unfolded** (Zhang et al., *OPINE-Net*, IEEE JSTSP 2020, on ISTA-Net, CVPR 2018: the phases of the iterative
shrinkage-thresholding algorithm, each with weights of its own, and binary patterns trained with them):

    r_k = x_{k-1} + rho_k E S A (x_0 - x_{k-1})               the gradient step
    x_k = r_k + shuffle(backward_k(soft_k(forward_k(r_k))))   the proximal step
    soft(v) = relu(v - theta) - relu(-v - theta)              one theta a channel

with x_0 = E z + e, what was measured put back at the end, and E in place of ``A^T``, as preconditioner (for
orthogonal patterns and white images they are the same). It departs from the paper in that the transforms work on maps
of 1/r and carry a state from phase to phase, and in that no loss asks them to be each other's inverse.

Images that aren't whole blocks are padded with zeros on the right and at the bottom, and the result is cropped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.quantize.sensing import SensingLayer, padded

INSIDE = 0.998
"""Share of the differences of measurements that lie in the inner range."""


class Reconstruction(nn.Module, ABC):
    """A sensing layer and what makes images of its measurements; called with light (N, C, H, W), gives the same shape.

    Attributes:
        sensing: the layer.
    """

    def __init__(self, sensing: SensingLayer) -> None:
        super().__init__()
        self.sensing = sensing
        self._watched: list[Tensor] | None = None

    @abstractmethod
    def recovered(self, *z: Tensor) -> Tensor:
        """Images (N, C, H, W), whole blocks, from the summands of the measurements that the sensing layer gives."""

    def from_measurements(self, y: Tensor) -> Tensor:
        """Images (N, C, H, W), whole blocks, from measurements as the hardware gives them (N, C m, H/b, W/b)."""
        return self.recovered(self.sensing.standardize(y))

    def forward(self, images: Tensor) -> Tensor:
        """Measure and recover; (N, C, H, W) to the same shape."""
        height, width = images.shape[-2:]
        block = self.sensing.block
        if block is None or not (height % block or width % block):
            return self.recovered(*self.sensing.parts(images))
        if height >= block and width >= block:
            images = padded(images, block)
        return self.recovered(*self.sensing.parts(images))[:, :, :height, :width]

    def missing(self, images: Tensor, first: Tensor, *, whole: bool = False) -> Tensor:
        """The linear estimate of what the measurements of ``images`` lack of those of ``first``; (N, C, H, W) all.

        ``whole`` adds e, so that images about it become whole ones.
        """
        lacking = first - images
        if self._watched is not None:
            self._watched.append(self.sensing.difference(lacking))
        parts = self.sensing.difference_parts(lacking)
        return self.sensing.reexpand(*parts) if whole else self.sensing.correction(*parts)

    def settle(self, images: Tensor) -> None:
        """Split differences of measurements where few lie outside, in place: at the :data:`INSIDE` quantile of those of
        ``images`` (N, C, H, W). What is computed stays the same; 8 bits lose less of it."""
        training = self.training
        self.eval()
        found = self._watched = []
        try:
            with torch.no_grad():
                self(images)
        finally:
            self._watched = None
            self.train(training)
        if found:
            sizes = torch.cat([each.abs().flatten() for each in found])
            r = float(sizes.kthvalue(max(1, round(INSIDE * len(sizes)))).values)
            if r > 0:
                self.sensing.set_inner(r)


class LinearReconstruction(Reconstruction):
    """The linear estimate alone."""

    def recovered(self, *z: Tensor) -> Tensor:
        """``E z + e``."""
        return self.sensing.reexpand(*z)


class Recursive(Reconstruction):
    """The recursive network with mixed weights; see the module."""

    def __init__(
        self, sensing: SensingLayer, *, width: int = 32, recursions: int = 2, depth: int = 4, reduction: int = 2
    ) -> None:
        """Make it, giving the sensing layer's linear estimate; other weights by torch's generator.

        Args:
            sensing: measures, and estimates.
            width: channels of the maps.
            recursions: how often the cell is applied, T.
            depth: convolutions of the cell between its two ends.
            reduction: r, of the maps' height and width against the image's; divides the block.
        """
        super().__init__(sensing)
        self.recursions, self.reduction = recursions, reduction
        self.down = nn.Conv2d(sensing.channels, width, 2 * reduction, stride=reduction, padding=reduction // 2)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.tail = _silent(nn.Conv2d(width, sensing.channels * reduction**2, 3, padding=1))

    def recovered(self, *z: Tensor) -> Tensor:
        """See :class:`Reconstruction`."""
        first = images = self.sensing.correction(*z)
        state: Tensor | None = None
        for number in range(self.recursions):
            state = self.down(images) if state is None else state + self.down(images)
            for layer in self.layers:
                state = state + layer(F.relu(state))
            images = images + F.pixel_shuffle(self.tail(F.relu(state)), self.reduction)
            images = images + self.missing(images, first, whole=number == self.recursions - 1)
        return images


class Unfolded(Reconstruction):
    """The unfolded network; see the module."""

    def __init__(
        self, sensing: SensingLayer, *, width: int = 48, phases: int = 4, depth: int = 1, reduction: int = 2
    ) -> None:
        """Make it, giving the sensing layer's linear estimate; other weights by torch's generator.

        Args:
            sensing: measures, and estimates.
            width: channels of the maps.
            phases: K.
            depth: convolutions of each of a phase's two transforms.
            reduction: of the maps' height and width against the image's.
        """
        super().__init__(sensing)
        self.phases = nn.ModuleList(Phase(sensing.channels, width, depth, reduction) for _ in range(phases))

    def recovered(self, *z: Tensor) -> Tensor:
        """See :class:`Reconstruction`."""
        first = images = self.sensing.reexpand(*z)
        state: Tensor | None = None
        for number, phase in enumerate(self.phases):
            assert isinstance(phase, Phase)
            if number:
                images = images + phase.rate * self.missing(images, first)
            images, state = phase(images, state)
        return images + self.missing(images, first)


class Phase(nn.Module):
    """One proximal step.

    Attributes:
        rate: of the gradient step in front of it.
        threshold: of the soft threshold, one a channel.
    """

    def __init__(self, channels: int, width: int, depth: int, reduction: int) -> None:
        super().__init__()
        self.reduction = reduction
        self.rate = nn.Parameter(torch.ones(1, 1, 1, 1))
        self.threshold = nn.Parameter(torch.full((1, width, 1, 1), 0.01))
        self.down = nn.Conv2d(channels, width, 2 * reduction, stride=reduction, padding=reduction // 2)
        self.analysis = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.synthesis = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.tail = _silent(nn.Conv2d(width, channels * reduction**2, 3, padding=1))

    def forward(self, images: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) and the state (N, width, H/r, W/r) of the phase before, None at first, to both."""
        state = self.down(images) if state is None else state + self.down(images)
        for layer in self.analysis:
            state = state + layer(F.relu(state))
        state = F.relu(state - self.threshold) - F.relu(-state - self.threshold)
        for layer in self.synthesis:
            state = state + layer(F.relu(state))
        return images + F.pixel_shuffle(self.tail(F.relu(state)), self.reduction), state


def _silent(layer: nn.Conv2d) -> nn.Conv2d:
    """``layer`` with zeros for weights."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def sensing(
    *,
    ratio: float = 0.1,
    unfolded: bool = False,
    in_channels: int = 1,
    num_classes: int | None = None,
    block: int = 32,
) -> Reconstruction:
    """The built-in network: the recursive one, or the unfolded one, with patterns of -1 and +1.

    Args:
        ratio: measurements a pixel; 10% is 0.1.
        unfolded: the larger network.
        in_channels: of the images.
        num_classes: for what makes any built-in network; this one makes images.
        block: side of a block.

    Raises:
        BadInput: a ratio that gives no measurement.
    """
    layer = SensingLayer(ratio, block=block, channels=in_channels)
    return Unfolded(layer) if unfolded else Recursive(layer)
