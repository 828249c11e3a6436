"""How near one image is to another, as the literature on reconstruction counts it: PSNR and SSIM.

Images are float64 tensors (N, C, H, W) on the scale of pixels, 0 to 255. PSNR is ``10 log10(255^2 / MSE)`` in dB, the
mean squared error over all pixels and channels. SSIM is Wang, Bovik, Sheikh and Simoncelli, *Image Quality Assessment:
From Error Visibility to Structural Similarity*, IEEE TIP 2004, equation 13,

    (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_x^2 + s_y^2 + C2)),

with local means, variances and covariances under a Gaussian window of 11x11 pixels and a standard deviation of 1.5,
``C1 = (0.01 * 255)^2`` and ``C2 = (0.03 * 255)^2``, averaged over the places where the window lies wholly inside the
image, as in the authors' own program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

PEAK = 255.0
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def psnr(made: Tensor, wanted: Tensor) -> Tensor:
    """PSNR of each image in dB, (N,).

    Equal images count as an error of half a grey level in one pixel would, so that the figure stays finite.
    """
    import torch

    error = (made - wanted).square().flatten(1)
    floor = 0.25 / error.shape[1]
    return 10 * torch.log10(PEAK**2 / error.mean(1).clamp_min(floor))


def ssim(made: Tensor, wanted: Tensor) -> Tensor | None:
    """SSIM of each image in [-1, 1], (N,), the mean over its channels; None where the window doesn't fit into them."""
    if made.ndim != 4 or min(made.shape[-2:]) < WINDOW:
        return None
    blurred = _blur(made)
    m_x, m_y = blurred(made), blurred(wanted)
    s_x, s_y = blurred(made * made) - m_x * m_x, blurred(wanted * wanted) - m_y * m_y
    s_xy = blurred(made * wanted) - m_x * m_y
    found = (2 * m_x * m_y + C1) * (2 * s_xy + C2) / ((m_x * m_x + m_y * m_y + C1) * (s_x + s_y + C2))
    return found.flatten(1).mean(1)


def _blur(like: Tensor) -> Callable[[Tensor], Tensor]:
    """The mean of images under the window, where it lies wholly inside them: (H, W) become (H - 10, W - 10)."""
    import torch
    from torch.nn import functional as F

    at = torch.arange(WINDOW, dtype=like.dtype, device=like.device) - WINDOW // 2
    line = torch.exp(-at.square() / (2 * SIGMA**2))
    line = line / line.sum()

    def blurred(x: Tensor) -> Tensor:
        planes = x.reshape(-1, 1, *x.shape[-2:])
        planes = F.conv2d(F.conv2d(planes, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))
        return planes.view(*x.shape[:-2], *planes.shape[-2:])

    return blurred


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The luma of an image (H, W, 3), uint8 (H, W), as MATLAB's ``rgb2ycbcr`` gives it: ITU-R BT.601, 16 to 235.

    ``Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255``, rounded. An image that is grey already, with three equal
    channels, is that channel as it stands: its values are luma, not colours.
    """
    import numpy as np

    red, green, blue = (pixels[..., i].astype(np.float64) for i in range(3))
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return np.ascontiguousarray(pixels[..., 0])
    return np.floor(16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255 + 0.5).astype(np.uint8)


__all__ = ["luma", "psnr", "ssim"]
