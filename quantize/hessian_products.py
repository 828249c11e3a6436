"""Products with the Hessian of a network's loss, by layer, without ever forming it.

``H v`` is the derivative of ``<dL/dw, v>`` (Pearlmutter, *Fast exact multiplication by the Hessian*, 1994): one more
backward pass. The same product with ``L`` replaced by ``sum_n <r_n, z_n>``, where the slopes ``r = dL/dz`` are held
constant, is ``R v``, with ``R = H - G`` what the Gauss-Newton matrix leaves out.
"""

from __future__ import annotations

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
        self._weights = [self._reserve((i,), self._weight(layer).numel()) for i, layer in enumerate(layers)]
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
        return self._signs((self.size,), generator)

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
                products = self._second(list(live.values()), leaves, parts)
                for place, product in zip(places, products, strict=True):
                    if product is not None:
                        result[place] += product.reshape(-1)
        return results

    def within(self, blocks: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
        """``z^T H_b z`` of blocks by themselves for ``count`` vectors z of signs each, float64 (count, blocks).

        Unlike a product of the whole, its spread holds nothing of what lies between blocks.
        """
        found = torch.zeros(count, len(blocks), dtype=torch.float64)
        members = {block: self._members(block) for block in blocks}
        # Weights are the same for all batches, activations each batch's own.
        shared = {
            (row, block): self._signs(self._weight(self._layers[block]).shape, generator)
            for block in blocks
            if block < len(self._layers)
            for row in range(count)
        }
        for index, batch in enumerate(self._problem.batches):
            leaves, slopes, _ = self._graph(index, batch)
            for column, block in enumerate(blocks):
                inside = [leaves[i] for i in members[block]]
                for row in range(count):
                    given = shared.get((row, block))
                    signs = [given] if given is not None else [self._signs(leaf.shape, generator) for leaf in inside]
                    made = [(slopes[i], z) for i, z in zip(members[block], signs, strict=True)]
                    live = [(slope, z) for slope, z in made if slope is not None and slope.requires_grad]
                    if not live:
                        continue
                    products = self._second([slope for slope, _ in live], inside, [z for _, z in live])
                    found[row, column] += sum(
                        float((z.double() * product.double()).sum())
                        for z, product in zip(signs, products, strict=True)
                        if product is not None
                    )
        return found

    def _weight(self, layer: Layer) -> Tensor:
        return self._problem.steps.parameters[layer.parameters[0]]

    def _members(self, block: int) -> list[int]:
        """Which of the variables make up a block: weights, then tensors."""
        if block < len(self._layers):
            return [block]
        inside = [block in self._owners_of(tensor) for tensor in self._variables]
        return [len(self._layers) + i for i, mine in enumerate(inside) if mine]

    def _second(self, slopes: list[Tensor], leaves: list[Tensor], vectors: list[Tensor]) -> tuple[Tensor | None, ...]:
        try:
            return torch.autograd.grad(slopes, leaves, vectors, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise _no_second(error) from error

    def _signs(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        signs = torch.randint(0, 2, tuple(shape), generator=generator, dtype=torch.int8)
        return signs.to(self.device, self.dtype).mul_(2).sub_(1)

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
        weights = [self._weight(layer).detach().clone().requires_grad_() for layer in self._layers]
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
