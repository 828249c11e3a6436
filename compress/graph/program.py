"""A traced network that was changed since, as torch.export would capture it: by its nodes, without running it again."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

from compress.graph.module import tensor_at
from compress.graph.trace import Network


def as_program(module: fx.GraphModule, network: Network) -> ExportedProgram:
    """``module`` as a program.

    Args:
        module: made of the graph of ``network`` (:func:`compress.graph.module.plain_module`), some of its operators
            and tensors others than there; its inputs and what it returns are the same.
        network: the trace.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    inputs, tensors = list[InputSpec](), dict[str, torch.Tensor]()
    read: dict[str, fx.Node] = {}
    fake = _fake_mode(network)
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        name = str(node.target)
        if name not in read:
            tensors[name] = tensor = tensor_at(module, name)
            trained = isinstance(tensor, nn.Parameter)
            made = graph.placeholder(f"{'p' if trained else 'b'}_{name.replace('.', '_')}")
            made.meta = {**node.meta}
            made.meta.setdefault("val", fake.from_tensor(tensor, static_shapes=True))
            kind = InputKind.PARAMETER if trained else InputKind.BUFFER
            inputs.append(InputSpec(kind, TensorArgument(made.name), name, None if trained else True))
            read[name] = made
        copies[node] = read[name]
    for node in module.graph.nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node)
            inputs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(copies[node].name), None))
    for node in module.graph.nodes:
        if node.op == "call_function":
            copies[node] = made = graph.node_copy(node, lambda n: copies[n])
            if "val" not in made.meta:
                given = fx.map_arg((made.args, made.kwargs), lambda n: n.meta["val"])
                with fake:
                    made.meta["val"] = node.target(*given[0], **given[1])
    output = next(node for node in module.graph.nodes if node.op == "output")
    values = output.args[0] if isinstance(output.args[0], (tuple, list)) else (output.args[0],)
    returned = tuple(copies[value] if isinstance(value, fx.Node) else value for value in values)
    graph.output(returned)
    return ExportedProgram(
        root=nn.Module(),
        graph=graph,
        graph_signature=ExportGraphSignature(inputs, [_returned(value) for value in returned]),
        state_dict=tensors,
        range_constraints=network.program.range_constraints,
        module_call_graph=network.program.module_call_graph,
        example_inputs=network.program.example_inputs,
        constants={},
        verifiers=network.program.verifiers,
    )


def _returned(value: Any) -> OutputSpec:
    what = TensorArgument(value.name) if isinstance(value, fx.Node) else ConstantArgument("", value)
    return OutputSpec(OutputKind.USER_OUTPUT, what, None)


def _fake_mode(network: Network) -> Any:
    """What made the tensors without values that a trace holds."""
    for node in network.graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None:
            return mode
    raise AssertionError("a trace without a tensor")


__all__ = ["as_program"]
