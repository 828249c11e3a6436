"""From a network whose batch norms are folded back to the user's module, which has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from compress.graph.fold import Front, unfold
from compress.graph.interpret import Steps
from compress.graph.trace import kind


def write_back(model: nn.Module, pairs: Mapping[str, Front], steps: Steps, inputs: Tensor, batch: int) -> None:
    """Put the parameters of the folded ``steps`` into ``model``, which has its batch norms, in place.

    Args:
        model: of the same parameters' shapes.
        pairs: batch norm -> the layer that it was folded into.
        steps: what ``model`` has to compute.
        inputs: (N, ...), for the batch norms' statistics.
        batch: inputs at a time.
    """
    statistics = _statistics(steps, {layer.node: layer.path for layer in pairs.values()}, inputs, batch)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    inside = {f"{layer.path}.{name}" for layer in pairs.values() for name in ("weight", "bias")}
    with torch.no_grad():
        for name, value in steps.parameters.items():
            if name in tensors and name not in inside:
                tensors[name].copy_(value)
    for norm, layer in pairs.items():
        weight, bias = (steps.parameters[f"{layer.path}.{name}"].cpu() for name in ("weight", "bias"))
        mean, var = statistics[layer.node]
        unfold(model.get_submodule(layer.path), model.get_submodule(norm), layer.axis, weight, bias, mean - bias, var)


def _statistics(steps: Steps, nodes: Mapping[str, str], inputs: Tensor, batch: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Node -> mean and variance of each of its channels over ``inputs``."""
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def add(name: str, value: Tensor) -> None:
        axis = -1 if kind_of[name] == "linear" else 1
        flat = value.movedim(axis, 0).flatten(1).double()
        a, b, n = sums.get(name, (torch.zeros(len(flat)), torch.zeros(len(flat)), 0))
        sums[name] = a + flat.sum(1).cpu(), b + flat.square().sum(1).cpu(), n + flat.shape[1]

    kind_of = {node.name: kind(node) for node in steps.nodes}
    _watch(steps, nodes, inputs, batch, add)
    found = {}
    for name, (total, squares, n) in sums.items():
        mean = total / n
        found[name] = mean, (squares / n - mean.square()).clamp_min(0)
    return found


def _watch(
    steps: Steps, names: Mapping[str, str], inputs: Tensor, batch: int, see: Callable[[str, Tensor], None]
) -> None:
    """Run the network and show ``see`` the values of the nodes in ``names``."""
    with torch.no_grad():
        for x in inputs.split(batch):
            environment = steps.start((x,))
            for at, node in enumerate(steps.nodes):
                steps.run(environment, [node])
                if node.name in names:
                    see(node.name, environment[node.name])
                for source in {each.name for each in node.all_input_nodes}:
                    if steps.last_use.get(source) == at:
                        environment.pop(source, None)
