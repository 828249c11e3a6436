"""The patterns of a sensing layer: what the hardware shows, what it allows, and how they are learned.

A layer with patterns computes ``z = S (y - l A 1) = S A (x - l)`` of the light x: its weight is ``S A``, two values
times one factor a row, and its bias is ``-l S A 1``. Here are A, S and l; :mod:`compress.quantize.sensing` measures.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from compress.errors import BadInput, UnknownName
from compress.quantize.binary import VALUES, BinaryWeight, Estimator, Values
from compress.quantize.pattern_constraints import Constraint, FirstOfOnes, signs
from compress.quantize.sensing_geometry import roughest_row, smooth_rows

Differential = bool | Literal["mean"]

INNER = 0.6
"""r of :mod:`compress.quantize.sensing`, where the median pattern's range is 1. What 8 bits lose is least about here,
and flat: 0.4 and 0.8 lose 0.02 dB more at a ratio of 25%."""


class BinaryPatterns(nn.Module):
    """Binary patterns with one factor each, as the weight and the bias of a layer.

    The patterns are fixed unless :meth:`learn` was called: ``weight`` is a parameter without gradient, so fine-tuning
    and pruning leave alone what the hardware has.

    Attributes:
        size: height and width of a pattern.
        measurements: how many patterns, m.
        values: what the hardware shows.
        constraint: what each pattern has to be like.
        differential: how +1 and -1 come out of light, see :mod:`compress.quantize.sensing`.
        weight: (m, 1, height, width) float32, the operator's values times one factor a row.
        shift: (m,) the bias.
        inner: r of differences of measurements, see :mod:`compress.quantize.sensing`; a number, which a state holds.
        inner_range: the same as Python's number, which a traced clip needs.
        shift_above, shift_below, above, below: (m,) biases of what lies above and below the inner range, of
            measurements and of differences.
        level: a number, what is taken off the light.
        learning: the latent weights while the patterns are learned.
        in_hardware: the parameters that pruning and quantization have to leave as they are.
    """

    in_hardware = ("weight",)
    inner: Tensor
    shift_above: Tensor
    shift_below: Tensor
    above: Tensor
    below: Tensor

    def __init__(
        self,
        count: int,
        size: tuple[int, int],
        *,
        values: Values,
        constraint: Constraint | None,
        differential: Differential,
    ) -> None:
        """Make it, with the smoothest patterns first; no randomness.

        Args:
            count: how many patterns.
            size, values, constraint, differential: see the class.

        Raises:
            BadInput: patterns of that size that can't meet the constraint.
            UnknownName: no such values, no such way of differential measurement.
        """
        super().__init__()
        if values not in VALUES:
            raise UnknownName("values of patterns", values, VALUES)
        if differential not in (True, False, "mean"):
            raise UnknownName("way of differential measurement", str(differential), ("True", "False", "mean"))
        self.measurements, self.size = count, size
        self.values, self.constraint, self.differential = values, constraint, differential
        self.learning: BinaryWeight | None = None
        self.weight = nn.Parameter(torch.zeros(count, 1, *size), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(count), requires_grad=False)
        self.level: Tensor
        self.register_buffer("inner", torch.tensor(INNER))
        for name in ("shift_above", "shift_below", "above", "below"):
            self.register_buffer(name, torch.zeros(count), persistent=False)
        self.register_buffer("level", torch.zeros(()))
        rows = smooth_rows(count, *size)
        if constraint is not None:
            # The roughest function decides between equal entries, so that no pattern becomes another one.
            rows = self.projected(rows + 1e-3 * roughest_row(*size))
        self.set_patterns((signs(rows) > 0).view(count, *size))

    # --- what they are -----------------------------------------------------------------------------------------------

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
        asked = self._asked
        wrong = None if asked is None else asked.violation(rows)
        if wrong is not None:
            raise BadInput(f"the patterns violate the hardware's constraint: {wrong}; project them first")

    def projected(self, rows: Tensor) -> Tensor:
        """The nearest allowed patterns, -1 and +1; the first pattern of ``"mean"`` stays ones."""
        return signs(rows) if self._asked is None else self._asked.project(rows)

    @property
    def _asked(self) -> Constraint | None:
        """What all patterns together have to be like."""
        return FirstOfOnes(self.constraint) if self.differential == "mean" else self.constraint

    # --- learning them -----------------------------------------------------------------------------------------------

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
        self.learning = BinaryWeight(latent.view(self.weight.shape), estimator=estimator, constraint=self._asked)
        with torch.no_grad():
            self.learning.latent.mul_(margin)
        self.learning.to(self.weight.device)
        self._put(self._learned_signs(), factor)

    def fix(self) -> None:
        """Keep the patterns that were learned, and drop their latent weights."""
        self._write()
        self.learning = None

    def train(self, mode: bool = True) -> Self:
        """As in any module; leaving training brings ``weight`` up to date with what was learned."""
        if not mode:
            self._write()
        super().train(mode)
        return self

    def penalty(self) -> Tensor:
        """The constraint's, with gradients while patterns are learned; a scalar."""
        if self.learning is not None:
            return self.learning.penalty()
        return self.weight.new_zeros(()) if self._asked is None else self._asked.penalty(self.signs())

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
        self._move_ends()

    def _move_ends(self) -> None:
        """To where the bias and the inner range are."""
        self.inner_range = float(self.inner)
        with torch.no_grad():
            self.shift_above.copy_(self.shift - INNER)
            self.shift_below.copy_(self.shift + INNER)
            self.above.copy_(-self.inner)
            self.below.copy_(self.inner)

    def set_inner(self, r: float) -> None:
        """Set r of differences, above 0."""
        if not 0 < r < float("inf"):
            raise BadInput(f"an inner range of {r:g}: give a number above 0")
        self.inner.fill_(r)
        self._move_ends()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        state.setdefault(f"{prefix}inner", torch.tensor(INNER))  # earlier files have none
        super()._load_from_state_dict(state, prefix, *args)
        self._move_ends()

    # --- as a layer --------------------------------------------------------------------------------------------------

    @property
    def signed(self) -> bool:
        """Whether a measurement is what -1 and +1 would give."""
        return self.values == "+-1" or self.differential is not False

    def operator_of(self, rows: Tensor) -> Tensor:
        """The matrix A of patterns (m, n) given as -1 and +1."""
        return rows if self.signed else (rows + 1) / 2

    def operator(self) -> Tensor:
        """The matrix A that measures, (m, n) float32; differentiable while patterns are learned."""
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

    def effective(self) -> tuple[Tensor, Tensor]:
        """Weight and bias; with gradients while patterns are learned."""
        if self.learning is None or not self.training:
            return self.weight, self.shift
        weight = self.operator().view(self.weight.shape) * self.factors().view(-1, 1, 1, 1)
        return weight, -self.level * weight.flatten(1).sum(1)
