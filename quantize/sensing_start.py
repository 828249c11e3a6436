"""The closed form of a sensing layer: patterns, ranges and the linear estimate from the statistics of training images.

With mean m and covariance C of the images' blocks, measurements ``y = A x + noise`` and the noise's covariance N, the
linear estimate of least expected squared error is (Kay, *Fundamentals of Statistical Signal Processing*, theorem 12.1)

    x^ = m + C A^T (A C A^T + N)^-1 (y - A m).

Patterns are those of :mod:`compress.quantize.sensing_search`, or Hadamard's, chosen by the variance that they catch:
the m rows h of ``H (x) H`` with the largest ``h^T C h``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compress.errors import BadInput, UnknownName
from compress.quantize.pattern_constraints import (
    ComplementaryPairs,
    Constraint,
    ExactOnes,
    FractionOfOnes,
    Incoherent,
    signs,
)
from compress.quantize.sensing import SensingLayer
from compress.quantize.sensing_search import search

Patterns = Literal["searched", "eigenvectors", "hadamard", "random", "kept"]
PATTERNS: tuple[Patterns, ...] = ("searched", "eigenvectors", "hadamard", "random", "kept")

MOST_PIXELS = 4096
"""Of a block, for its covariance to be used."""

RIDGE = 1e-7
"""Of the measurements' covariance, as a share of its mean diagonal."""

RANGE = 0.999
"""Share of a pattern's measurements of training blocks that its range holds."""

ROUNDING = 5e-5
"""Variance that the linear estimate counts on in what the network is fed, beside the noise: what rounding that to 8
bits adds, with some to spare. Patterns that aren't orthogonal would have it amplified; in float it costs some
hundredths of a dB."""

EVENNESS = 0.9
"""How far the ranges of the network's measurements are made even: ``s = 1 / (range^EVENNESS median^(1 - EVENNESS))``.

At 1 all have the same range, which is what a tensor's one grid of activations wants; but then the columns of the linear
estimate, whose rows share a grid of weights, differ as the measurements do, and the mean of a block is 16 times as
much as the next. Errors of both kinds at 8 bits are about even at nine tenths.
"""


@dataclass(frozen=True)
class Statistics:
    """Of blocks of n pixels.

    Attributes:
        mean: of a pixel.
        covariance: (n, n) float64, row by row of the block.
        blocks: how many were seen.
    """

    mean: float
    covariance: Tensor
    blocks: int


def statistics(images: Iterable[Tensor], size: tuple[int, int], *, stride: int | None = None) -> Statistics:
    """Mean and covariance of all blocks of some images.

    Square blocks are taken to be as likely mirrored and turned: the covariance is averaged over the eight ways.

    Args:
        images: (H, W) or (N, C, H, W) each; every channel counts; those smaller than a block don't.
        size: height and width of a block.
        stride: from one block to the next; half a block by default.

    Raises:
        BadInput: no image is as large as a block, or a block has more than 4,096 pixels.
    """
    n = size[0] * size[1]
    if n > MOST_PIXELS:
        raise BadInput(
            f"the statistics of {size[0]}x{size[1]} pixels at once take {n}^2 numbers; measure blocks of at most 64x64"
        )
    sums, count = torch.zeros(n + 1, n + 1, dtype=torch.float64), 0
    for blocks in _blocks(images, size, stride):
        with_one = torch.cat([blocks, torch.ones(len(blocks), 1)], 1)
        sums += (with_one.T @ with_one).double()
        count += len(blocks)
    if count == 0:
        raise BadInput(f"no image is as large as a block of {size[0]}x{size[1]}; give larger images or a smaller block")
    mean = sums[:n, n] / count
    covariance = sums[:n, :n] / count - mean[:, None] * mean
    # One mean for all pixels, which moves with the block: what single pixels' means differ by is chance.
    return Statistics(float(mean.mean()), _turned(covariance, size), count)


def _blocks(images: Iterable[Tensor], size: tuple[int, int], stride: int | None) -> Iterable[Tensor]:
    for image in images:
        planes = image.reshape(-1, *image.shape[-2:])
        if planes.shape[1] >= size[0] and planes.shape[2] >= size[1]:
            steps = (stride or max(1, size[0] // 2), stride or max(1, size[1] // 2))
            yield planes.unfold(1, size[0], steps[0]).unfold(2, size[1], steps[1]).reshape(-1, size[0] * size[1])


def _turned(covariance: Tensor, size: tuple[int, int]) -> Tensor:
    if size[0] != size[1]:
        return covariance
    four = covariance.view(*size, *size)
    total = torch.zeros_like(four)
    for turned in (four, four.permute(1, 0, 3, 2)):
        for flips in ((), (0, 2), (1, 3), (0, 1, 2, 3)):
            total += turned.flip(flips)
    return (total / 8).reshape(covariance.shape)


def hadamard(size: tuple[int, int]) -> Tensor:
    """All Hadamard patterns of a block whose sides are powers of two, (n, n) float64 of -1 and +1.

    Raises:
        BadInput: a side isn't a power of two.
    """
    from scipy.linalg import hadamard as matrix

    if any(side & (side - 1) for side in size):
        raise BadInput(
            f"Hadamard patterns need sides that are powers of two, not {size[0]}x{size[1]}; use a block of 32"
        )
    vertical, horizontal = (torch.from_numpy(matrix(side)).double() for side in size)
    found: Tensor = torch.kron(vertical, horizontal)
    return found


def catching_most(rows: Tensor, covariance: Tensor, count: int) -> Tensor:
    """Those ``count`` of ``rows`` (k, n) along which blocks vary most, largest first."""
    variance = ((rows @ covariance) * rows).sum(1)
    return rows[torch.argsort(variance, descending=True, stable=True)[:count]]


def linear_estimate(operator: Tensor, covariance: Tensor, noise: Tensor | None = None) -> Tensor:
    """``C A^T (A C A^T + N)^-1``, (n, m) float64, with a ridge that only keeps the inverse finite.

    Args:
        operator: A, (m, n).
        covariance: C, (n, n).
        noise: N, (m, m); None for none.
    """
    a, c = operator.double(), covariance.double()
    reads = a @ c
    gram = reads @ a.T
    gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(a), dtype=a.dtype)
    if noise is not None:
        gram = gram + noise.double()
    found: Tensor = torch.linalg.solve(gram, reads).T
    return found


def noise_covariance(layer: SensingLayer, mean: float, rows: Tensor | None = None) -> Tensor:
    """Of the layer's own noise in its measurements ``y``, (m, m) float64, at blocks of the light ``mean`` throughout.

    ``rows`` are patterns of -1 and +1, the layer's own by default.

    An exposure of light l has ``l / g + (read / g)^2`` and, from the ADC, its step squared over 12. A pair has the sum
    of two. With a first pattern of ones, ``2 p - 1``, the others have 4 times their own and share the first's.
    """
    noise, m, n = layer.noise, layer.measurements, layer.pixels
    if noise is None:
        return torch.zeros(m, m, dtype=torch.float64)
    gain = noise.photons or 1.0
    ones = ((layer.signs() if rows is None else rows) > 0).sum(1).double().cpu()
    full = float(n) if layer.signed else float(ones.max())
    span = 2 * full if layer.signed and layer.differential is False else full
    fixed = (noise.read / gain) ** 2
    if noise.adc_bits is not None:
        fixed += (span / (2**noise.adc_bits - 1)) ** 2 / 12
    shot = 0.0 if noise.photons is None else mean / gain
    if not layer.signed:
        return torch.diag(ones * shot + fixed)
    if layer.differential == "mean":
        own = ones * shot + fixed
        found = torch.diag(4 * own) + own[0]
        # The first is the exposure itself: 2 p_0 - 1 with p_0 = 1.
        found[0] = found[:, 0] = -own[0]
        found[0, 0] = own[0]
        return found
    exposures = 1 if layer.differential is False else 2
    return torch.diag(torch.full((m,), n * shot + exposures * fixed, dtype=torch.float64))


def start(
    layer: SensingLayer,
    images: Iterable[Tensor],
    *,
    patterns: Patterns = "searched",
    sweeps: int = 2,
    generator: torch.Generator | None = None,
) -> Statistics:
    """Give ``layer`` patterns, ranges and the linear estimate that images like these call for.

    Args:
        layer: changed in place; its constraint is met.
        images: light, or as the layer takes them; (H, W) or (N, C, H, W) each, iterated twice.
        patterns: ``searched``; the signs of the ``eigenvectors`` of the covariance; ``hadamard``; ``random`` signs;
            ``kept`` leaves what the layer has.
        sweeps: of the search.
        generator: for ``random``.

    Returns:
        What was found of the blocks.

    Raises:
        BadInput: see :func:`statistics`; the patterns that the constraint leaves violate it.
        UnknownName: no such patterns.
    """
    images = list(images)
    found = statistics(images, layer.size)
    if patterns != "kept":
        rows = _rows(layer, found.covariance, patterns, sweeps, generator)
        layer.set_patterns((rows > 0).view(layer.measurements, *layer.size))
    fit(layer, found, images)
    return found


def fit(layer: SensingLayer, found: Statistics, images: Iterable[Tensor]) -> None:
    """The ranges of the layer's measurements, and its linear estimate, for the patterns that it has."""
    operator = layer.operator().detach()
    middle = found.mean * operator.double().sum(1)
    reached = torch.cat(
        [blocks[:: max(1, len(blocks) // 256)] @ operator.T for blocks in _blocks(images, layer.size, None)]
    )
    reached = (reached - middle.to(reached)).abs().double()
    rank = min(len(reached), max(1, round(RANGE * len(reached))))
    reach = reached.kthvalue(rank, 0).values.clamp_min(1e-6)
    unit = reach**EVENNESS * reach.median() ** (1 - EVENNESS)
    layer.set_range(1 / unit, found.mean)
    bias = layer.expand.bias
    assert bias is not None
    with torch.no_grad():
        layer.expand.weight.copy_(closed_form(layer, found)[:, :, None, None])
        bias.fill_(found.mean)


def closed_form(layer: SensingLayer, found: Statistics, rows: Tensor | None = None) -> Tensor:
    """``E`` of ``x^ = mean + E z`` for the layer's factors and noise, (n, m) float32 on the layer's device.

    Args:
        layer: see above.
        found: of the images' blocks.
        rows: patterns of -1 and +1, (m, n); the layer's own by default.
    """
    rows = layer.signs() if rows is None else rows
    # Images may be normalized light: the noise, which is of light, is that of the images divided by std.
    mean, std = float(layer.light_mean.mean()), float(layer.light_std.mean())
    noise = noise_covariance(layer, max(0.0, found.mean * std + mean), rows) / std**2
    operator, factors = layer.operator_of(rows).cpu(), layer.factors().cpu().double()
    matrix = linear_estimate(operator, found.covariance, noise + torch.diag(ROUNDING / factors**2)) / factors
    return matrix.to(layer.weight)


def _rows(
    layer: SensingLayer, covariance: Tensor, patterns: Patterns, sweeps: int, generator: torch.Generator | None
) -> Tensor:
    if isinstance(layer.constraint, ComplementaryPairs) and layer.measurements % 2 == 0:
        inner = layer.constraint.first
        project = signs if inner is None else inner.project
        half = _chosen(layer, layer.measurements // 2, covariance, patterns, sweeps, generator, project)
        return torch.stack([half, -half], 1).flatten(0, 1)
    return _chosen(layer, layer.measurements, covariance, patterns, sweeps, generator, layer.projected)


def _chosen(
    layer: SensingLayer,
    count: int,
    covariance: Tensor,
    patterns: Patterns,
    sweeps: int,
    generator: torch.Generator | None,
    projected: Callable[[Tensor], Tensor],
) -> Tensor:
    if patterns == "hadamard":
        return projected(catching_most(hadamard(layer.size), covariance, count))
    if patterns == "random":
        return projected(torch.randn(count, layer.pixels, generator=generator, dtype=torch.float64))
    if patterns not in PATTERNS:
        raise UnknownName("patterns", patterns, PATTERNS)
    vectors = torch.linalg.eigh(covariance).eigenvectors.T.flip(0)[:count]
    # An eigenvector's sign is chance; the mean's pattern has light.
    vectors = vectors * signs(vectors.sum(1, keepdim=True))
    rows = projected(vectors)
    if patterns == "eigenvectors":
        return rows
    made = search(
        rows.numpy(),
        covariance.numpy(),
        sweeps=sweeps,
        fixed=1 if layer.differential == "mean" else 0,
        keep_counts=_counted(layer.constraint),
    )
    return projected(torch.from_numpy(made))


def _counted(constraint: Constraint | None) -> bool:
    """Whether it fixes how many ones a row has."""
    inner = constraint.among if isinstance(constraint, Incoherent) else constraint
    inner = inner.first if isinstance(inner, ComplementaryPairs) else inner
    return isinstance(inner, (ExactOnes, FractionOfOnes))
