"""The original network as it computes when units count for nothing: what surgery must equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from compress.graph.blocks import Block
from compress.graph.groups import Dependencies, Slot, Unit, removed_indices
from compress.graph.trace import Network, kind


def zeroed(
    model: nn.Module,
    dependencies: Dependencies,
    units: Sequence[Unit],
    inputs: Sequence[Any],
    blocks: Iterable[Block] = (),
) -> list[Any]:
    """The outputs of the traced network on ``inputs`` with every reader of ``units`` zeroed.

    Means and norms over channels leave removed channels out; the branches of ``blocks`` give zero.

    Args:
        model: whose parameters and buffers to take; it is not changed.
        dependencies: with the network that they are of.
        units: what to remove.
        inputs: the network's.
        blocks: residual blocks to remove.
    """
    network = dependencies.network
    assert network is not None
    readers = {slot for group in dependencies.groups for slot in group.consumers}
    gone = {slot: indices for slot, indices in removed_indices(units).items() if slot in readers}
    averaged: dict[str, set[int]] = {}
    for unit in units:
        for node, indices in unit.averaged.items():
            averaged.setdefault(node, set()).update(indices)
    sums = {name: operand for block in blocks for name, operand in block.sums.items()}
    values = _placeholders(network, model, gone, inputs)
    with torch.no_grad():
        return list(_Masked(network, dependencies.axes, averaged, sums).run(*values))


def _placeholders(
    network: Network, model: nn.Module, gone: Mapping[Slot, set[int]], inputs: Sequence[Any]
) -> list[Any]:
    signature = network.program.graph_signature
    lifted = {**signature.inputs_to_lifted_tensor_constants}
    user = iter(inputs)
    values = []
    for node in network.graph.nodes:
        if node.op != "placeholder":
            continue
        name = network.parameter(node)
        if name is None:
            values.append(network.program.constants[lifted[node.name]] if node.name in lifted else next(user))
            continue
        path, _, attribute = name.rpartition(".")
        tensor = getattr(model.get_submodule(path), attribute).detach()
        for (slot, axis), indices in gone.items():
            if slot == name:
                tensor = tensor.index_fill(axis, torch.tensor(sorted(indices)), 0.0)
        values.append(tensor)
    return values


class _Masked(fx.Interpreter):
    def __init__(
        self,
        network: Network,
        axes: Mapping[str, int],
        averaged: Mapping[str, set[int]],
        sums: Mapping[str, int],
    ) -> None:
        super().__init__(network.program.graph_module)
        self._axes, self._averaged, self._sums = axes, averaged, sums

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._averaged:
            return self._over_the_rest(n)
        if n.name in self._sums:
            args, _ = self.fetch_args_kwargs_from_env(n)
            return args[1 - self._sums[n.name]]
        return super().run_node(n)

    def _over_the_rest(self, node: fx.Node) -> Any:
        """The operator on the channels that stay, its result back in their places and zero elsewhere."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        x, axis = args[0], self._axes[node.name]
        gone = self._averaged[node.name]
        stay = torch.tensor([i for i in range(x.shape[axis]) if i not in gone])
        few = x.index_select(axis, stay)

        def vector(value: Any, first: int) -> Any:
            return value.index_select(axis - first, stay) if isinstance(value, torch.Tensor) else value

        assert callable(node.target)
        if kind(node) in ("layer_norm", "rms_norm"):
            normalized = tuple(few.shape[x.dim() - len(args[1]) :])
            first = x.dim() - len(normalized)
            result = node.target(few, normalized, *(vector(arg, first) for arg in args[2:]), **kwargs)
        elif kind(node) == "group_norm":
            result = node.target(few, 1, *(vector(arg, 1) for arg in args[2:]), **kwargs)
        else:
            return node.target(few, *args[1:], **kwargs)
        return torch.zeros_like(x).index_copy(axis, stay, result)
