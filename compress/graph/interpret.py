"""Run a traced network a few operators at a time, on tensors that are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx

from compress.errors import Untraceable
from compress.graph.module import plain_module
from compress.graph.trace import Network, kind, module_path, shape

Environment = dict[str, Any]
"""Node -> the value that it has."""


BATCH = ""
"""The name under which an environment has the batch size, which sizes of tensors long gone follow from."""

MEMORY_BYTES = 3 * 2**30
"""What the kept activations may take, roughly."""


@dataclass(frozen=True)
class Steps:
    """A network as a sequence of operators without side effects.

    Attributes:
        nodes: the operators in the order of execution.
        inputs: names of the network's inputs.
        parameters: qualified name -> parameter or buffer.
        constants: node -> the parameter or buffer that it reads.
        output: the node whose value the network returns.
        last_use: node -> the position in ``nodes`` of the operator that reads it last.
        hardware: parameters that nobody may change, see :class:`compress.graph.trace.Network`.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[str, ...]
    parameters: dict[str, torch.Tensor]
    constants: Mapping[str, str]
    output: str
    last_use: Mapping[str, int]
    hardware: frozenset[str] = frozenset()

    @classmethod
    def of(cls, network: Network, edit: Callable[[fx.Graph], None] = lambda graph: None) -> Steps:
        """The steps of a traced network, whose graph ``edit`` may change; its parameters are copies."""
        module = plain_module(network)
        _without_side_effects(module.graph)
        edit(module.graph)
        nodes = tuple(node for node in module.graph.nodes if node.op == "call_function")
        constants = {node.name: str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
        # A tensor that is registered under two names is listed under both.
        named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
        tensors = {name: tensor.detach() for name, tensor in named}
        end = next(node for node in module.graph.nodes if node.op == "output")
        last = {source.name: step for step, node in enumerate(nodes) for source in node.all_input_nodes}
        output = end.all_input_nodes[0].name
        last[output] = len(nodes)
        return cls(nodes, network.inputs, tensors, constants, output, last, network.hardware)

    def to(self, device: str) -> Steps:
        """The same on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.parameters.items()}
        return replace(self, parameters=moved)

    def value(self, environment: Mapping[str, Any], argument: Any) -> Any:
        """What an argument of a node stands for."""
        if isinstance(argument, fx.Node):
            name = argument.name
            if name in self.constants:
                return self.parameters[self.constants[name]]
            return environment[name] if name in environment else _size(argument, environment[BATCH])
        if isinstance(argument, (list, tuple)):
            return type(argument)(self.value(environment, each) for each in argument)
        return argument

    def run(self, environment: Environment, nodes: Iterable[fx.Node]) -> None:
        """Compute ``nodes`` from what ``environment`` holds, and add their values to it."""
        for node in nodes:
            args = [self.value(environment, each) for each in node.args]
            kwargs = {name: self.value(environment, each) for name, each in node.kwargs.items()}
            environment[node.name] = cast("Callable[..., Any]", node.target)(*args, **kwargs)

    def start(self, inputs: Sequence[torch.Tensor]) -> Environment:
        """The environment before the first operator."""
        return dict(zip(self.inputs, inputs, strict=True)) | {BATCH: len(inputs[0])}


def _size(node: fx.Node, batch: int) -> int:
    """A size that the network's code reads from a tensor, for another batch size."""
    value = node.meta["val"]
    if isinstance(value, torch.SymInt):
        expression = value.node.expr
        return int(expression.subs(dict.fromkeys(expression.free_symbols, batch)))
    return int(value)


def _beside(source: fx.Node) -> set[fx.Node]:
    """Other tensors in the memory of ``source``: what it is a view of, and views of either.

    Parts of a split tensor (``chunk``) don't overlap.
    """
    base = source
    while _is_view(base) and isinstance(base.args[0], fx.Node):
        base = base.args[0]
    found, fresh = {base}, [base]
    while fresh:
        whole = [each for each in fresh if isinstance(each.meta.get("val"), torch.Tensor)]
        fresh = list({user for each in whole for user in each.users if _is_view(user)} - found)
        found |= set(fresh)
    return found - {source}


def _is_view(node: fx.Node) -> bool:
    if kind(node) == "getitem":
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable and any(r.alias_info is not None for r in schema.returns)


def _without_side_effects(graph: fx.Graph) -> None:
    """Replace operators that write to their operand (``relu_``) by those that return the same (``relu``).

    Whoever reads the operand afterwards would have seen what was written, so it reads the result instead.

    Raises:
        Untraceable: what was written is read afterwards through another view of the same memory.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        schema = node.target._schema
        name = schema.name.split("::")[1]
        if not schema.is_mutable or not name.endswith("_"):
            continue
        packet = getattr(getattr(torch.ops, schema.name.split("::")[0]), name.rstrip("_"), None)
        plain = getattr(packet, schema.overload_name or "default", None)
        source = node.args[0]
        if plain is None or not isinstance(source, fx.Node):
            continue
        at = order[node]
        beside = {each for each in _beside(source) if order[each] < at}
        if any(order[user] > at for each in beside for user in each.users):
            raise Untraceable(
                schema.name, module_path(node), "it writes in place to a tensor that is read otherwise too"
            )
        later = [user for user in source.users if order[user] > at]
        for user in later:
            user.replace_input_with(source, node)
        node.target = plain


def affordable(network: Network) -> int:
    """How many inputs' activations fit into :data:`MEMORY_BYTES`."""
    largest = max((math.prod(shape(node)) for node in network.nodes if shape(node)), default=1)
    return max(16, MEMORY_BYTES // (24 * largest))


def probe_batch(whole: Steps, batch: int) -> int:
    """How many of ``batch`` inputs fit into :data:`MEMORY_BYTES` when a backward pass keeps all activations."""
    elements = sum(math.prod(shape(node)) for node in whole.nodes if shape(node))
    return max(1, min(batch, MEMORY_BYTES // (12 * max(1, elements))))
