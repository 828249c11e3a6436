"""PSNR, SSIM and luma against the formulas, written out slowly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compress import quality


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 13 of Wang et al. 2004, window by window, with sums over deviations from the local means."""
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (image[top : top + 11, left : left + 11] for image in (x, y))
            m_a, m_b = (window * a).sum(), (window * b).sum()
            v_a, v_b = (window * (a - m_a) ** 2).sum(), (window * (b - m_b) ** 2).sum()
            v_ab = (window * (a - m_a) * (b - m_b)).sum()
            found.append((2 * m_a * m_b + c1) * (2 * v_ab + c2) / ((m_a**2 + m_b**2 + c1) * (v_a + v_b + c2)))
    return float(np.mean(found))


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (3, 2, 14, 17), generator=generator).double()
    return x, (x + 20 * torch.randn(x.shape, generator=generator).double()).clamp(0, 255)


def test_ssim_is_its_definition(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    made, wanted = images
    found = quality.ssim(made, wanted)
    assert found is not None
    for n in range(3):
        slow = np.mean([slow_ssim(made[n, c].numpy(), wanted[n, c].numpy()) for c in range(2)])
        assert float(found[n]) == pytest.approx(slow, abs=1e-12)
    same = quality.ssim(made, made)
    assert same is not None
    assert same.tolist() == pytest.approx([1.0] * 3)


def test_a_window_that_doesnt_fit_gives_no_ssim() -> None:
    assert quality.ssim(torch.zeros(1, 1, 10, 30), torch.zeros(1, 1, 10, 30)) is None
    assert quality.ssim(torch.zeros(1, 1, 11, 11), torch.zeros(1, 1, 11, 11)) is not None


def test_psnr_is_its_formula(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    made, wanted = images
    for n, value in enumerate(quality.psnr(made, wanted).tolist()):
        error = ((made[n] - wanted[n]).numpy() ** 2).mean()
        assert value == pytest.approx(10 * math.log10(255**2 / error))
    equal = quality.psnr(made, made)
    assert equal.tolist() == pytest.approx([10 * math.log10(255**2 * 4 * 2 * 14 * 17)] * 3)


@pytest.mark.parametrize(
    ("color", "expected"),
    # MATLAB's rgb2ycbcr of the corners of the cube: 16 + 65.481, 16 + 128.553, 16 + 24.966, rounded; white is grey.
    [((255, 0, 0), 81), ((0, 255, 0), 145), ((0, 0, 255), 41), ((255, 255, 0), 210), ((255, 255, 255), 255)],
)
def test_luma_is_matlabs(color: tuple[int, int, int], expected: int) -> None:
    image = np.broadcast_to(np.array(color, np.uint8), (4, 5, 3))
    found = quality.luma(image)
    assert found.dtype == np.uint8
    assert found.shape == (4, 5)
    assert (found == expected).all()


def test_a_grey_image_stored_in_colour_keeps_its_values() -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(quality.luma(np.repeat(gray[..., None], 3, 2)), gray)
