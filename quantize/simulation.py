"""A traced network whose tensors are rounded on the way, a few operators at a time.

What is computed equals what :func:`compress.graph.qdq.insert` builds, and so what the file holds, but for the
rounding of biases to 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compress.graph.interpret import Environment, Steps
from compress.types import Grid


@dataclass(frozen=True)
class Simulation:
    """The operators of a network, and the grids of the tensors between them.

    Attributes:
        steps: the network; its parameters lie on their grids already.
        grids: node -> the grid that its value is rounded to.
    """

    steps: Steps
    grids: Mapping[str, Grid]

    def start(self, inputs: Sequence[Tensor]) -> Environment:
        """The environment before the first operator."""
        environment = self.steps.start(inputs)
        for name in self.steps.inputs:
            self._round(environment, name)
        return environment

    def run(self, environment: Environment, nodes: Iterable[fx.Node]) -> None:
        """Compute ``nodes`` and add their rounded values to ``environment``."""
        for node in nodes:
            self.steps.run(environment, [node])
            self._round(environment, node.name)

    def _round(self, environment: Environment, name: str) -> None:
        if name in self.grids:
            environment[name] = rounded(environment[name], self.grids[name])


def rounded(x: Tensor, grid: Grid) -> Tensor:
    """``x`` (float32, any shape) on a grid of one scale."""
    step = torch.tensor(grid.scale[0], dtype=torch.float32, device=x.device)
    return (torch.clamp(torch.round(x / step) + grid.zero_point, grid.low, grid.high) - grid.zero_point) * step
