"""Which units a training run can do without: scores that are gathered while it runs.

The saliency of Chen et al. (OTOv2, section 3.2) calls a group redundant that is small and whose steps lead it towards
the origin anyway; its successor adds the first-order Taylor term of Molchanov et al., *Importance Estimation for
Neural Network Pruning*, CVPR 2019. Each is a number a unit; the lowest of a group go first.

- ``"magnitude"``: the norm :math:`\\|x_g\\|`, each parameter divided by its mean square over the group's units, so that
  a convolution doesn't drown a batch norm;
- ``"taylor"``: the mean of :math:`\\langle \\nabla f_g, x_g \\rangle^2` over the last steps;
- ``"saliency"``: the sum of the magnitude, of the root of the Taylor term, each divided by its mean over the
  group's units, and of :math:`1 - \\cos\\theta_g`, the angle between the mean step and the way to the origin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.prune.dhspg import Blocks

NAMES = ("saliency", "magnitude", "taylor")
SEEN = 20
"""Over how many steps before a choice the gradients are looked at."""


class Gradients:
    """What the gradients of the last steps say about each unit."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        zeros = torch.zeros(blocks.units, dtype=torch.float64, device=blocks.device)
        self._steps = 0
        self._product, self._square, self._length = zeros, zeros.clone(), zeros.clone()

    def see(self) -> None:
        """Take in the gradients that the parameters have."""
        x, g = self._blocks.gather(), self._blocks.gather(lambda parameter: parameter.grad)
        product = self._blocks.dot(g, x)
        self._product = self._product + product
        self._square = self._square + product.square()
        self._length = self._length + self._blocks.dot(g, g)
        self._steps += 1

    def forget(self) -> None:
        """Begin anew."""
        self.__init__(self._blocks)  # type: ignore[misc]  # the same object with nothing seen

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        sums = {"product": self._product, "square": self._square, "length": self._length}
        return {"steps": self._steps, **{name: value.cpu().clone() for name, value in sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._steps = int(state["steps"])
        device = self._blocks.device
        self._product, self._square, self._length = (state[k].to(device) for k in ("product", "square", "length"))

    def scores(self, criterion: str, slices: Sequence[slice]) -> list[Tensor]:
        """The scores of each group's units, float64 on the CPU; ``slices`` are the groups' units among all.

        Where no gradient was seen, the magnitude.
        """
        criterion = criterion if self._steps else "magnitude"
        taylor = (self._square / max(1, self._steps)).cpu()
        if criterion == "taylor":
            return [taylor[each] for each in slices]
        magnitude = self._magnitude(slices).cpu()
        if criterion == "magnitude":
            return [magnitude[each] for each in slices]
        x = self._blocks.gather()
        lengths = (self._blocks.dot(x, x) * self._length * max(1, self._steps)).sqrt().cpu()
        cosine = self._product.cpu() / lengths.clamp_min(torch.finfo(torch.float64).tiny)
        return [_even(magnitude[each]) + _even(taylor[each].sqrt()) + 1 - cosine[each] for each in slices]

    def _magnitude(self, slices: Sequence[slice]) -> Tensor:
        """Each parameter's squares over their mean in the group, summed, and the root."""
        total = torch.zeros(self._blocks.units, dtype=torch.float64, device=self._blocks.device)
        for part, value in zip(self._blocks.parts, self._blocks.gather(), strict=True):
            squares = torch.zeros_like(total).index_add_(0, part.owners, value.double().square().sum(1))
            first = int(part.owners.min())
            group = next(each for each in slices if each.start <= first < each.stop)
            total[group] += _even(squares[group])
        return total.sqrt()


def _even(values: Tensor) -> Tensor:
    return values / values.mean().clamp_min(torch.finfo(torch.float64).tiny)
