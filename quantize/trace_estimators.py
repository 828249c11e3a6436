"""Estimators of the traces of a matrix's blocks, each with its standard error, that can be asked for more.

* :class:`Sampled`: a weighted sum of squared norms, most weight first, the rest by draws in proportion to weight;
* :class:`Paired`: the Gauss-Newton trace from random signs at the outputs, ``E[<J^T A u, J^T u>]``, where there are
  too many directions to list;
* :class:`Hutchinson`: ``E[z^T H z]`` over random signs z (Hutchinson 1990; HAWQ-V2, equation 9);
* :class:`Apart`: the same for each block by itself;
* :class:`HutchPlusPlus`: the same on what the leading eigenvectors leave over (Meyer et al., *Hutch++: optimal
  stochastic trace estimation*, SOSA 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from compress.quantize.hessian_products import HessianProducts
from compress.quantize.loss_curvature import Directions

Squares = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From samples (k,), cotangents (k, outputs) and perhaps others: inner products of their gradients (k, blocks)."""

FEWEST = 24
"""Draws below which the spread of draws says little about their error."""


class Estimator(Protocol):
    """A running estimate of several blocks' traces.

    Attributes:
        name: of the method.
        done: True once more work would change nothing, or the cap is reached.
        probes: the work so far, in the method's own unit.
    """

    name: str
    done: bool
    probes: int

    def advance(self, wanted: Tensor | None = None) -> None:
        """Do some more work.

        Args:
            wanted: (blocks,) bool, those that aren't known well enough, all by default. What serves all blocks at once
                doesn't look at it.
        """

    def estimate(self) -> tuple[Tensor, Tensor]:
        """Values and standard errors, float64 (blocks,)."""


class Sampled:
    """``sum_i weight_i sign_i |J^T v_i|^2`` by block.

    Each round doubles the number of directions that are looked at. Those with more weight than a draw stands for are
    all taken; of the rest some are drawn, with replacement, in proportion to weight, so that a draw's squared
    norm times their whole weight is an unbiased estimate. A direction's value is computed once. Draws of earlier
    rounds that have since been taken for certain are dropped; those that stay are draws from what remains.

    Args:
        directions: what to sum over.
        squares: computes squared norms.
        generator: of the draws.
        most: directions to look at, at most.
        chunk: directions at a time.
    """

    def __init__(
        self, directions: Directions, squares: Squares, generator: torch.Generator, most: int, chunk: int
    ) -> None:
        self.name, self.done, self.probes = "gauss-newton", False, 0
        self._directions, self._squares, self._generator = directions, squares, generator
        self._most, self._chunk = most, chunk
        self._order = torch.argsort(directions.weights, descending=True, stable=True).cpu()
        self._weights = directions.weights.cpu()[self._order]
        # What remains from each position on, that position included.
        self._rest = self._weights.flip(0).cumsum(0).flip(0)
        self._found: dict[int, Tensor] = {}
        self._draws: list[int] = []
        self._certain, self._round = 0, FEWEST

    def advance(self, wanted: Tensor | None = None) -> None:
        """One more round, of twice as many directions."""
        total = len(self._weights)
        certain, draws = self._split(self._round)
        if total - certain <= 2 * draws or self._round >= total:
            certain, draws = total, 0
        self._draws = [each for each in self._draws if each >= certain]
        missing = draws - len(self._draws)
        if missing > 0:
            # A uniform point of the weight that remains, counted from the end.
            points = torch.rand(missing, generator=self._generator, dtype=torch.float64) * self._rest[certain]
            chosen = total - 1 - torch.searchsorted(self._rest.flip(0), points)
            self._draws += chosen.clamp(certain, total - 1).tolist()
        self._compute(sorted({*range(certain), *self._draws} - self._found.keys()))
        self._certain, self._round = certain, 2 * self._round
        self.probes = len(self._found)
        self.done = certain == total or self.probes >= self._most

    def _split(self, count: int) -> tuple[int, int]:
        certain = 0
        while certain < min(count, len(self._weights)) and (
            float(self._weights[certain]) * (count - certain) >= float(self._rest[certain])
        ):
            certain += 1
        return certain, max(FEWEST, count - certain)

    def _compute(self, positions: list[int]) -> None:
        for start in range(0, len(positions), self._chunk):
            part = positions[start : start + self._chunk]
            index = self._order[part].to(self._directions.rows.device)
            values = self._squares(self._directions.rows[index], self._directions.vectors(index), None)
            values = values * self._directions.signs[index].cpu()[:, None]
            self._found.update(zip(part, values, strict=True))

    def estimate(self) -> tuple[Tensor, Tensor]:
        """See :class:`Estimator`. The error is that of the draws, given the data."""
        width = next(iter(self._found.values()))
        value, error = torch.zeros_like(width), torch.zeros_like(width)
        if self._certain:
            exact = torch.stack([self._found[i] for i in range(self._certain)])
            value = (self._weights[: self._certain, None] * exact).sum(0)
        if self._draws:
            drawn = torch.stack([self._found[i] for i in self._draws])
            whole = self._rest[self._certain]
            value = value + whole * drawn.mean(0)
            error = whole * drawn.std(0) / len(drawn) ** 0.5
        return value, error


class Paired:
    """The Gauss-Newton trace from signs u at the outputs: the sum over samples of ``<J^T A u, J^T u>``.

    A round is one pass over all samples. The error is found from each sample's spread over the passes.

    Args:
        curvature: ``A`` times a tensor of the outputs' shape.
        shape: of the outputs, (N, ...).
        squares: computes the inner products.
        generator: of the signs.
        most: passes at most.
        chunk: samples at a time.
    """

    def __init__(
        self,
        curvature: Callable[[Tensor], Tensor],
        outputs: Tensor,
        squares: Squares,
        generator: torch.Generator,
        most: int,
        chunk: int,
    ) -> None:
        self.name, self.done, self.probes = "gauss-newton", False, 0
        self._curvature, self._outputs, self._squares, self._generator = curvature, outputs, squares, generator
        self._most, self._chunk = most, chunk
        self._passes: list[Tensor] = []

    def advance(self, wanted: Tensor | None = None) -> None:
        """One more pass, two at first."""
        for _ in range(1 if self._passes else 2):
            signs = torch.randint(0, 2, self._outputs.shape, generator=self._generator).double() * 2 - 1
            signs = signs.to(self._outputs.device)
            curved = self._curvature(signs)
            n = len(signs)
            parts = torch.arange(n, device=signs.device).split(self._chunk)
            self._passes.append(torch.cat([self._squares(i, curved[i], signs[i]) for i in parts]))
            self.probes += n
        self.done = len(self._passes) >= self._most

    def estimate(self) -> tuple[Tensor, Tensor]:
        """See :class:`Estimator`."""
        found = torch.stack(self._passes)
        return found.sum(1).mean(0), (found.var(0).sum(0) / len(found)).sqrt()


class Hutchinson:
    """``z^T H z`` by block, over vectors z of random signs.

    All blocks share a vector: the products with other blocks' signs average out, and count in the error.
    """

    def __init__(self, products: HessianProducts, generator: torch.Generator, most: int, batch: int = 4) -> None:
        self.name, self.done, self.probes = "hutchinson", False, 0
        self._products, self._generator, self._most, self._batch = products, generator, most, batch
        self._found: list[Tensor] = []

    def advance(self, wanted: Tensor | None = None) -> None:
        """Some more vectors; twice as many at first, so that there is a spread."""
        count = min(self._batch * (1 if self._found else 2), max(2, self._most - self.probes))
        vectors = [self._products.random(self._generator) for _ in range(count)]
        found = self._products(vectors)
        self._found += [self._products.blocks(z, hz) for z, hz in zip(vectors, found, strict=True)]
        self.probes += count
        self.done = self.probes >= self._most

    def estimate(self) -> tuple[Tensor, Tensor]:
        """See :class:`Estimator`; the error is the spread of the vectors' values over the root of their number."""
        found = torch.stack(self._found)
        return found.mean(0), found.std(0) / len(found) ** 0.5


class Apart:
    """Hutchinson's estimator of each block by itself.

    A vector costs a product a block in place of one for all, but what lies between blocks isn't in the error, which
    for small blocks beside large ones is most of it.
    """

    def __init__(self, products: HessianProducts, generator: torch.Generator, most: int, batch: int = 4) -> None:
        self.name, self.done, self.probes = "hutchinson", False, 0
        self._products, self._generator, self._most, self._batch = products, generator, most, batch
        self._found: list[list[float]] = [[] for _ in products.names]

    def advance(self, wanted: Tensor | None = None) -> None:
        """Some more vectors for each block that is wanted; twice as many at first."""
        open_ = [b for b, found in enumerate(self._found) if wanted is None or bool(wanted[b]) or not found]
        blocks = [b for b in open_ if len(self._found[b]) < self._most]
        count = self._batch * (2 if wanted is None else 1)
        values = self._products.within(blocks, count, self._generator)
        for block, column in zip(blocks, values.T.tolist(), strict=True):
            self._found[block] += column
        self.probes = max(map(len, self._found))
        self.done = all(len(self._found[b]) >= self._most for b in open_)

    def estimate(self) -> tuple[Tensor, Tensor]:
        """See :class:`Estimator`."""
        found = [torch.tensor(each, dtype=torch.float64) for each in self._found]
        value, spread = (torch.stack([f(each) for each in found]) for f in (torch.mean, torch.std))
        return value, spread / torch.tensor([len(each) for each in found]).sqrt()


class HutchPlusPlus:
    """Hutch++ by block, on all blocks' vectors together.

    With an orthonormal Q whose span holds the leading eigenvectors (from H times ``sketch`` random vectors), and
    ``P = Q Q^T``,

        H = P H + H P - P H P + (I - P) H (I - P).

    The first three have blocks whose traces follow exactly from Q and H Q; the last is left to random signs.
    """

    def __init__(self, products: HessianProducts, generator: torch.Generator, most: int, sketch: int = 8) -> None:
        self.name, self.done, self.probes = "hutch++", False, 0
        self._products, self._generator, self._most = products, generator, most
        self._sketch = min(sketch, products.size)
        self._q: list[Tensor] = []
        self._known = torch.zeros(len(products.names), dtype=torch.float64)
        self._found: list[Tensor] = []

    def advance(self, wanted: Tensor | None = None) -> None:
        """The sketch at first, then vectors of signs."""
        count = 4 if self._found else 8
        if not self._found:
            self._project()
        vectors = [self._products.random(self._generator) for _ in range(count)]
        found = self._products([self._without(z) for z in vectors])
        self._found += [self._products.blocks(z, self._without(hz)) for z, hz in zip(vectors, found, strict=True)]
        self.probes += count
        self.done = self.probes >= self._most

    def _project(self) -> None:
        images = self._products([self._products.random(self._generator) for _ in range(self._sketch)])
        basis, r = torch.linalg.qr(torch.stack(images, 1))
        # Columns that depend on those before them are noise.
        kept = r.diagonal().abs() > 1e-6 * r.diagonal().abs().max()
        self._q = list(basis[:, kept].unbind(1))
        products = self._products(self._q)
        self.probes += self._sketch + len(self._q)
        for q, hq in zip(self._q, products, strict=True):
            self._known += 2 * self._products.blocks(q, hq)
            for other in self._q:
                self._known -= torch.dot(other, hq).double().cpu() * self._products.blocks(other, q)

    def _without(self, vector: Tensor) -> Tensor:
        for q in self._q:
            vector = vector - torch.dot(q, vector) * q
        return vector

    def estimate(self) -> tuple[Tensor, Tensor]:
        """See :class:`Estimator`."""
        found = torch.stack(self._found)
        return self._known + found.mean(0), found.std(0) / len(found) ** 0.5
