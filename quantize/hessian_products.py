"""Products with the Hessian of a network's loss, by layer, without ever forming it.

``H v`` is the derivative of ``<dL/dw, v>`` (Pearlmutter, *Fast exact multiplication by the Hessian*, 1994): one more
backward pass. The same product with ``L`` replaced by ``sum_n <r_n, z_n>``, where the slopes ``r = dL/dz`` are held
constant, is ``R v``, with ``R = H - G`` what the Gauss-Newton matrix leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compress.errors import BadInput
from compress.quantize.loss_curvature import Batch, Head, Problem, check
from compress.quantize.piecewise import Layer
from compress.quantize.sample_gradients import forward, twice_differentiable

Graph = tuple[list[Tensor], list[Tensor | None], list[slice]]
"""Of one batch: what is differentiated by, the gradients, and where each lies in a vector."""


class HessianProducts:
    """The Hessian by some layers' weights together, or by tensors of activations, one block a name.

    Args:
        problem: network, data, loss.
        layers: whose weights.
        tensors: name -> nodes or inputs of the network to differentiate by instead; every sample's is a variable of
            its own, and what a name's several give is summed.
        residual: None for H; else R, with the slopes of this head.
    """

    def __init__(
        self,
        problem: Problem,
        layers: Sequence[Layer],
        tensors: Mapping[str, Sequence[str]],
        residual: Head | None = None,
    ) -> None:
        self._problem, self._layers, self._residual = problem, tuple(layers), residual
        self._tensors = {name: tuple(each) for name, each in tensors.items()}
        self.names = (*(layer.name for layer in layers), *tensors)
        self._kept: list[Graph] | None = None
        self._owners: list[tuple[tuple[int, ...], slice]] = []
        self.size = 0
        like = next(t for t in problem.steps.parameters.values() if t.is_floating_point())
        self.device, self.dtype = like.device, like.dtype
        self._weights = [
            self._reserve((i,), problem.steps.parameters[layer.parameters[0]].numel()) for i, layer in enumerate(layers)
        ]
        # A tensor that two names have is one variable, with a place of its own for each batch.
        self._variables = list(dict.fromkeys(tensor for each in self._tensors.values() for tensor in each))
        self._places: list[list[slice]] = []
        for batch in problem.batches if self._variables else ():
            with torch.no_grad(), twice_differentiable():
                environment = forward(problem.steps, batch.inputs, keep=self._variables)
            self._places.append(
                [self._reserve(self._owners_of(tensor), environment[tensor].numel()) for tensor in self._variables]
            )

    def _owners_of(self, tensor: str) -> tuple[int, ...]:
        return tuple(len(self._layers) + i for i, names in enumerate(self._tensors.values()) if tensor in names)

    def _reserve(self, owners: tuple[int, ...], count: int) -> slice:
        place = slice(self.size, self.size + count)
        self._owners.append((owners, place))
        self.size += count
        return place

    def blocks(self, left: Tensor, right: Tensor) -> Tensor:
        """``<left, right>`` within each block, float64 on the CPU, (layers,); vectors have shape (size,)."""
        found = torch.zeros(len(self.names), dtype=torch.float64)
        for owners, place in self._owners:
            found[list(owners)] += float(torch.dot(left[place].double(), right[place].double()))
        return found

    def random(self, generator: torch.Generator) -> Tensor:
        """A vector (size,) of independent signs."""
        signs = torch.randint(0, 2, (self.size,), generator=generator, dtype=torch.int8)
        return signs.to(self.device, self.dtype).mul_(2).sub_(1)

    def __call__(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The products with each of ``vectors`` (size,)."""
        results = [torch.zeros_like(vector) for vector in vectors]
        for index, batch in enumerate(self._problem.batches):
            leaves, slopes, places = self._graph(index, batch)
            live = {i: slope for i, slope in enumerate(slopes) if slope is not None and slope.requires_grad}
            if not live:
                continue
            for vector, result in zip(vectors, results, strict=True):
                parts = [vector[places[i]].reshape(leaves[i].shape) for i in live]
                try:
                    products = torch.autograd.grad(
                        list(live.values()), leaves, parts, retain_graph=True, allow_unused=True
                    )
                except RuntimeError as error:
                    raise _no_second(error) from error
                for place, product in zip(places, products, strict=True):
                    if product is not None:
                        result[place] += product.reshape(-1)
        return results

    def _graph(self, index: int, batch: Batch) -> Graph:
        # The graph of a single batch serves every product; those of many would fill the memory.
        if self._kept is not None:
            return self._kept[0]
        graph = self._differentiated(index, batch)
        if len(self._problem.batches) == 1:
            self._kept = [graph]
        return graph

    def _differentiated(self, index: int, batch: Batch) -> Graph:
        problem = self._problem
        steps = problem.steps
        weights = [steps.parameters[layer.parameters[0]].detach().clone().requires_grad_() for layer in self._layers]
        replaced = {
            name: weight for layer, weight in zip(self._layers, weights, strict=True) for name in layer.parameters
        }
        tensors = self._variables
        shifts: dict[str, Tensor] = {}
        if tensors:
            with torch.no_grad(), twice_differentiable():
                plain = forward(steps, batch.inputs, keep=tensors)
            shifts = {tensor: torch.zeros_like(plain[tensor]).requires_grad_() for tensor in tensors}
        leaves = [*weights, *(shifts[tensor] for tensor in tensors)]
        places = [*self._weights, *(self._places[index] if tensors else ())]
        with torch.enable_grad(), twice_differentiable():
            outputs = forward(steps, batch.inputs, replaced, shifts)[steps.output]
            if self._residual is None:
                value = problem.loss(outputs, batch.targets) * (batch.n / problem.n)
                check(value)
            else:
                before = sum(each.n for each in problem.batches[:index])
                slopes = self._residual.slopes[before : before + batch.n].to(outputs.dtype)
                value = (outputs * slopes).sum()
            try:
                slopes_by_leaf = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
            except RuntimeError as error:
                raise _no_second(error) from error
        return leaves, list(slopes_by_leaf), places


def _no_second(error: RuntimeError) -> BadInput:
    line = (str(error).splitlines() or [""])[0][:160]
    return BadInput(f"the network can't be differentiated ({line}); use method='gauss-newton'")


def elements(problem: Problem, layers: Sequence[Layer]) -> dict[str, int]:
    """Weights of each layer."""
    return {layer.name: math.prod(problem.steps.parameters[layer.parameters[0]].shape) for layer in layers}
